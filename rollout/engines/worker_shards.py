"""Which block of which Hugging Face weight each tensor of a worker of vLLM 0.24.0 or SGLang 0.5.14 is.

Both run some layers fused and all of them sharded: a weight is blocks of the ranks' tensors, and a tensor of theirs may
hold blocks of several weights. SGLang's layers are vLLM's of old, with the same names for what is used here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rollout.weight_sync.digest import header, weighted_sum

# Layers whose weights lie in memory as in the checkpoint, but for fusing and sharding, if nothing quantizes them.
PLAIN_LAYERS = {
    *("QKVParallelLinear", "MergedColumnParallelLinear", "ColumnParallelLinear", "RowParallelLinear"),
    *("ReplicatedLinear", "VocabParallelEmbedding", "ParallelLMHead", "RMSNorm"),
}
PLAIN_METHODS = {"NoneType", "UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"}
# Fused experts: vLLM's, SGLang's.
EXPERTS = {"RoutedExperts", "FusedMoE"}


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

    def is_whole(self, shape: Sequence[int]) -> bool:
        """Whether this is all of the weight, which has `shape`."""
        return tuple(shape) == tuple(self.shape) == tuple(self.tensor.shape)

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

    Fused experts (w13_weight, w2_weight) are left out: they are padded, swapped or shuffled when they are loaded, as
    the kernels of this GPU want (vLLM's fused_moe/oracle/unquantized.py, SGLang's quantization/unquant.py), so that the
    bytes of the checkpoint are gone.
    """
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        if any(kind.__name__ in EXPERTS for kind in type(module).__mro__):
            continue
        for kind, parameter in module.named_parameters(recurse=False):
            if parameter.data_ptr() in seen:
                continue  # tied to one that was named before
            seen.add(parameter.data_ptr())
            yield from _blocks(f"{prefix}.{kind}", module, parameter.detach())


def blocks_by_name(model: nn.Module) -> dict[str, list[Shard]]:
    """The blocks that this rank holds, by the name of the weight that they are of."""
    blocks: dict[str, list[Shard]] = {}
    for shard in shards(model):
        blocks.setdefault(shard.name, []).append(shard)
    return blocks


def is_plain(model: nn.Module) -> bool:
    """Whether `shards` are all of the model's weights, with the checkpoint's own bytes."""
    holders = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
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
