"""Handles of a bucket in a GPU's memory, as our extension of vLLM 0.24.0's worker, vLLM itself and SGLang 0.5.14 take
them: the last two unpickle what they get.

Ranks hand theirs to the rank that talks to a server as plain text: nothing here unpickles.
"""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Sequence
from typing import Any

import torch

from rollout.weight_sync.bucket import Bucket

# Of `rebuild_cuda_tensor`.
DEVICE_ARGUMENT = 6


def make_handle(bucket: Bucket, dialect: str) -> str:
    """How a server of that dialect finds the bucket, if it has a process on this GPU."""
    return _vllm_handle(bucket) if dialect == "vllm" else _sglang_handle(bucket)


def vllm_payload(handles: Sequence[str]) -> str:
    """What vLLM's workers take: for each GPU of the server, by its UUID, the arguments of torch's
    `rebuild_cuda_tensor`; pickled, base64."""
    return base64.b64encode(pickle.dumps(dict(map(_vllm_arguments, handles)))).decode()


def open_handle(handles: Sequence[str], device: torch.device) -> torch.Tensor:
    """The bucket's memory, uint8 [capacity], of the one handle that is of this GPU.

    Raises:
        ValueError: none is.
    """
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    uuid = str(torch.cuda.get_device_properties(device).uuid)
    arguments = dict(map(_vllm_arguments, handles))
    if uuid not in arguments:
        raise ValueError(f"no handle is of this GPU, {uuid}, but of {', '.join(arguments)}")
    own = list(arguments[uuid])
    own[DEVICE_ARGUMENT] = torch.device(device).index or 0  # the sender counts its GPUs otherwise
    return rebuild_cuda_tensor(*own)


def _vllm_handle(bucket: Bucket) -> str:
    from torch.multiprocessing.reductions import reduce_tensor

    buffer = bucket.buffer
    _, arguments = reduce_tensor(buffer)
    # Before these come classes and the shape, which are those of a flat tensor of bytes.
    memory = [{"base64": base64.b64encode(a).decode()} if isinstance(a, bytes) else a for a in arguments[6:]]
    uuid = str(torch.cuda.get_device_properties(buffer.device).uuid)
    return json.dumps({"uuid": uuid, "num_bytes": len(buffer), "offset": buffer.storage_offset(), "memory": memory})


def _vllm_arguments(handle: str) -> tuple[str, tuple[Any, ...]]:
    told = json.loads(handle)
    memory = [base64.b64decode(a["base64"]) if isinstance(a, dict) else a for a in told["memory"]]
    shape = (torch.Size([told["num_bytes"]]), (1,), told["offset"])
    return told["uuid"], (torch.Tensor, *shape, torch.storage.TypedStorage, torch.uint8, *memory)


def _sglang_handle(bucket: Bucket) -> str:
    from sglang.srt.utils import MultiprocessingSerializer
    from sglang.srt.utils.patch_torch import monkey_patch_torch_reductions
    from sglang.srt.weight_sync.tensor_bucket import FlattenedTensorMetadata

    monkey_patch_torch_reductions()
    ends = [sum(bucket.sizes[: index + 1]) for index in range(len(bucket.sizes))]
    metadata = [
        FlattenedTensorMetadata(name, torch.Size(shape), getattr(torch, dtype), end - size, end, size)
        for name, shape, dtype, end, size in zip(
            bucket.names, bucket.shapes, bucket.dtypes, ends, bucket.sizes, strict=True
        )
    ]
    content = {"flattened_tensor": bucket.data, "metadata": metadata}
    return MultiprocessingSerializer.serialize(content, output_str=True)
