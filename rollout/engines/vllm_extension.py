"""What we add to a vLLM worker (`--worker-extension-cls rollout.engines.vllm_extension.WeightBook`).

The version of its weights, which dies with the process; weights taken in place; and digests of them by Hugging Face
name. vLLM runs some layers fused and all of them sharded, so that a weight is blocks of this rank's tensors: what comes
is copied into them, where vLLM's own update would rebuild each layer. A digest is a sum over elements, each weighed by
its position in the whole tensor (rollout/weight_sync/digest.py), so each rank sums up the elements that it holds, and
the client adds the ranks' sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rollout.weight_sync.bucket import Bucket
from rollout.weight_sync.digest import header, weighted_sum
from rollout.weight_sync.handles import open_handle
from rollout.weight_sync.stream import receive

# Layers whose weights lie in memory as in the checkpoint, but for fusing and sharding, if nothing quantizes them.
PLAIN_LAYERS = {
    *("QKVParallelLinear", "MergedColumnParallelLinear", "ColumnParallelLinear", "RowParallelLinear"),
    *("ReplicatedLinear", "VocabParallelEmbedding", "ParallelLMHead", "RMSNorm"),
}
PLAIN_METHODS = {"NoneType", "UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"}


class WeightBook:
    """Mixed into the worker class by vLLM: no name here may be one of the worker's."""

    def opid_begin_update(self) -> dict[str, bool]:
        """The weights have no version from now on. `in_place`: whether they are taken by `opid_receive` and
        `opid_read`; else by vLLM's own update."""
        self._opid_version = None
        model = self.model_runner.get_model()
        self._opid_blocks = blocks_by_name(model) if is_plain(model) else {}
        self._opid_awaited = set(self._opid_blocks)
        return {"in_place": bool(self._opid_blocks)}

    def opid_receive(self) -> None:
        """Take the buckets that the trainer broadcasts, until it says that all have come; may return before the GPU
        has them."""
        group = self.weight_transfer_engine.model_update_group
        filling = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        incoming = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        with torch.cuda.stream(incoming):
            for bucket in receive(lambda data: group.broadcast(data, src=0, stream=incoming), self.device):
                if filling is not None:
                    filling.wait_stream(incoming)
                    bucket.buffer.record_stream(filling)
                with torch.cuda.stream(filling):  # while the next one comes
                    self._opid_fill(bucket)

    def opid_read(
        self, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]], handles: Sequence[str]
    ) -> None:
        """Take the bucket that lies in another process's memory of this GPU; returns when it has been read."""
        self._opid_fill(Bucket.over(open_handle(handles, self.device), names, dtypes, shapes))
        torch.cuda.synchronize(self.device)

    def opid_end_update(self, version: int) -> None:
        """The weights are `version` from now on.

        Raises:
            RuntimeError: some were taken in place, but not all.
        """
        awaited, names = self._opid_awaited, set(self._opid_blocks)
        self._opid_blocks, self._opid_awaited = {}, set()
        if awaited and awaited != names:
            raise RuntimeError(f"{len(awaited)} of {len(names)} weights did not come, among them {min(awaited)}")
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._opid_version = version

    def opid_weight_version(self) -> dict[str, int | None]:
        return {"version": getattr(self, "_opid_version", None)}

    def opid_weight_digests(self) -> dict[str, str]:
        """This rank's part of each weight's digest, modulo 2^64, in decimal (JSON readers round large numbers)."""
        digests: dict[str, int] = {}
        for shard in shards(self.model_runner.get_model()):
            if not shard.is_replica:
                value = digests.get(shard.name, 0) + shard.digest()
                digests[shard.name] = value % 2**64
        return {name: str(value) for name, value in digests.items()}

    def _opid_fill(self, bucket: Bucket) -> None:
        for name, tensor in bucket.tensors():
            if name not in self._opid_blocks:
                raise ValueError(f"this model has no weight {name}")
            for shard in self._opid_blocks[name]:
                shard.fill(tensor)
            self._opid_awaited.discard(name)


@dataclass(frozen=True)
class Shard:
    """A block of a weight: `tensor` lies at (`row`, `column`) of a whole of `shape` (1 or 2 dimensions).

    `leads` marks the one shard that adds the part of the digest which is not of elements, `is_replica` one that another
    rank adds.
    """

    name: str
    tensor: Tensor
    shape: tuple[int, ...]
    row: int = 0
    column: int = 0
    leads: bool = True
    is_replica: bool = False

    def fill(self, whole: Tensor) -> None:
        """Copy this block of `whole` into its place.

        Raises:
            ValueError: the whole has another shape.
        """
        if tuple(whole.shape) != tuple(self.shape):
            raise ValueError(f"{self.name} is {tuple(self.shape)} here, {tuple(whole.shape)} came")
        rows = whole[self.row : self.row + len(self.tensor)]
        self.tensor.copy_(rows if whole.dim() == 1 else rows[:, self.column : self.column + self.tensor.shape[1]])

    def digest(self) -> int:
        """This block's share of the whole tensor's digest."""
        width = self.shape[1] if len(self.shape) == 2 else 1
        total = header(self.tensor.dtype, self.shape) if self.leads else 0
        if self.tensor.numel() == 0:  # a rank that holds padding only
            return total
        block = self.tensor.reshape(len(self.tensor), -1)
        columns = torch.arange(self.column, self.column + block.shape[1], device=block.device)
        rows_at_once = max(1, (1 << 22) // block.shape[1])
        for start in range(0, len(block), rows_at_once):
            part = block[start : start + rows_at_once]
            rows = torch.arange(self.row + start, self.row + start + len(part), device=block.device)
            total += weighted_sum(part.reshape(-1), (rows[:, None] * width + columns).reshape(-1))
        return total % 2**64


def shards(model: nn.Module) -> Iterator[Shard]:
    """The blocks that this rank holds; replicas of what an earlier rank has are marked.

    Fused experts (w13_weight, w2_weight) are left out: when vLLM loads them it pads, swaps or shuffles them as the
    kernels of this GPU want (fused_moe/oracle/unquantized.py), so that the bytes of the checkpoint are gone.
    """
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        if any(kind.__name__ == "RoutedExperts" for kind in type(module).__mro__):
            continue
        for kind, parameter in module.named_parameters(recurse=False):
            if parameter.data_ptr() in seen:
                continue  # tied to one that was named before
            seen.add(parameter.data_ptr())
            yield from _blocks(f"{prefix}.{kind}", module, parameter.detach())


def blocks_by_name(model: nn.Module) -> dict[str, list[Shard]]:
    blocks: dict[str, list[Shard]] = {}
    for shard in shards(model):
        blocks.setdefault(shard.name, []).append(shard)
    return blocks


def is_plain(model: nn.Module) -> bool:
    """Whether `shards` are all of the model's weights, with the checkpoint's own bytes."""
    holders = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    return all(
        type(module).__name__ in PLAIN_LAYERS and type(getattr(module, "quant_method", None)).__name__ in PLAIN_METHODS
        for module in holders
    )


def _blocks(name: str, module: Any, tensor: Tensor) -> Iterator[Shard]:
    rank, size = getattr(module, "tp_rank", 0), getattr(module, "tp_size", 1)
    match type(module).__name__:
        case "QKVParallelLinear":
            yield from _qkv(name, module, tensor, rank, size)
        case "MergedColumnParallelLinear":
            yield from _merged(name, module, tensor, rank)
        case "ColumnParallelLinear":
            yield Shard(name, tensor, (len(tensor) * size, *tensor.shape[1:]), len(tensor) * rank, 0, rank == 0)
        case "RowParallelLinear" if tensor.dim() == 2:
            shape = (len(tensor), tensor.shape[1] * size)
            yield Shard(name, tensor, shape, 0, tensor.shape[1] * rank, rank == 0)
        case "VocabParallelEmbedding" | "ParallelLMHead":
            indices = module.shard_indices  # rows beyond the vocabulary are padding
            held = tensor[: indices.num_org_elements]
            shape = (module.org_vocab_size, *tensor.shape[1:])
            start = indices.org_vocab_start_index  # this class keeps no tp_rank
            yield Shard(name, held, shape, start, 0, start == 0)
        case _:
            yield Shard(name, tensor, tuple(tensor.shape), is_replica=not _is_first_rank())


def _qkv(name: str, module: Any, tensor: Tensor, rank: int, size: int) -> Iterator[Shard]:
    heads = {"q": module.num_heads, "k": module.num_kv_heads, "v": module.num_kv_heads}
    sizes = [count * module.head_size for count in heads.values()]
    for letter, part in zip(heads, tensor.split(sizes), strict=True):
        replicas = 1 if letter == "q" else module.num_kv_head_replicas
        shape = (len(part) * size // replicas, *part.shape[1:])
        own = name.replace("qkv_proj", f"{letter}_proj")
        yield Shard(own, part, shape, len(part) * (rank // replicas), 0, rank == 0, rank % replicas != 0)


def _merged(name: str, module: Any, tensor: Tensor, rank: int) -> Iterator[Shard]:
    parts = tensor.split(list(module.output_partition_sizes))
    for own, part, whole in zip(("gate_proj", "up_proj"), parts, module.output_sizes, strict=True):
        shape = (whole, *part.shape[1:])
        yield Shard(name.replace("gate_up_proj", own), part, shape, len(part) * rank, 0, rank == 0)


def _is_first_rank() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
