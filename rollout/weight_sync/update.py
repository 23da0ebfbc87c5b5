"""The requests of one weight update, as each server takes them: in place where what we add to their workers can
(vllm_extension.py, sglang_hooks.py), else by vLLM's own update, which rebuilds each layer, or by SGLang's loading."""

from __future__ import annotations

from collections.abc import Sequence

from rollout.engines.http import HttpEngine
from rollout.engines.sglang_names import STREAM
from rollout.weight_sync.bucket import Bucket
from rollout.weight_sync.groups import Rendezvous
from rollout.weight_sync.handles import vllm_payload


async def begin(engine: HttpEngine) -> None:
    """What comes before the first bucket, after `engine.begin_update`, and joining a group where there is one."""
    if not engine.is_asleep:
        await engine.pause()  # between two buckets it would generate
    if _is_own_update(engine):
        await engine.post_update("/start_weight_update", {})


async def begin_without_group(engine: HttpEngine) -> None:
    """The same where nothing is joined: vLLM wants to be told."""
    if _is_own_update(engine):
        await engine.post_update("/init_weight_transfer_engine", {"init_info": {}})
    await begin(engine)


async def receive_stream(engine: HttpEngine, rendezvous: Rendezvous, version: int) -> None:
    """Have one server take in place all that a `stream.Sender` sends, which must come meanwhile: its weights are
    `version` then."""
    if engine.dialect == "sglang":
        told_by_stream = {"names": [], "dtypes": [], "shapes": []}
        # What runs is aborted: it would be waited for. What comes is held back until the weights are there.
        options = {"load_format": STREAM, "flush_cache": False, "abort_all_requests": True}
        place = {"group_name": rendezvous.name, "weight_version": str(version)}
        await engine.post_update("/update_weights_from_distributed", told_by_stream | options | place)
    else:
        await engine.call_workers("opid_receive", version=version)


async def receive(engine: HttpEngine, rendezvous: Rendezvous, bucket: Bucket) -> None:
    """Have one server take a bucket, not in place: one broadcast, which must come meanwhile."""
    tensors = {"names": bucket.names, "shapes": bucket.shapes}
    if engine.dialect == "sglang":
        options = {"load_format": "flattened_bucket", "flush_cache": False, "group_name": rendezvous.name}
        await engine.post_update("/update_weights_from_distributed", tensors | {"dtypes": bucket.dtypes} | options)
    else:
        # Its buffer is exactly the bucket: it would break a larger one into several broadcasts.
        packing = {"dtype_names": bucket.dtypes, "packed": True, "packed_buffer_size_bytes": len(bucket.data)}
        await engine.post_update("/update_weights", {"update_info": tensors | packing})


async def read(engine: HttpEngine, bucket: Bucket, handles: Sequence[str]) -> None:
    """Have one server read a bucket in the memory of its GPUs; returns when it has."""
    tensors = {"names": bucket.names, "shapes": bucket.shapes}
    if engine.dialect == "sglang":
        body = {"serialized_named_tensors": list(handles), "load_format": "flattened_bucket", "flush_cache": False}
        await engine.post_update("/update_weights_from_tensor", body)
    elif engine.loads_in_place:
        await engine.call_workers("opid_read", **tensors, dtypes=bucket.dtypes, handles=list(handles))
    else:
        packing = {"dtype_names": bucket.dtypes, "tensor_sizes": bucket.sizes, "packed": True}
        memory = {"ipc_handles_pickled": vllm_payload(handles)}
        await engine.post_update("/update_weights", {"update_info": tensors | packing | memory})


async def finish(engine: HttpEngine) -> None:
    """What comes after the last bucket, before `engine.end_update`."""
    if _is_own_update(engine):
        await engine.post_update("/finish_weight_update", {})


def _is_own_update(engine: HttpEngine) -> bool:
    """Whether it is vLLM's own, which has a beginning and an end."""
    return engine.dialect == "vllm" and not engine.loads_in_place
