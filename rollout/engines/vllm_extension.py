"""What we add to a vLLM worker (`--worker-extension-cls rollout.engines.vllm_extension.WeightBook`).

The version of its weights, which dies with the process, and digests of them by Hugging Face name. vLLM runs some
layers fused and all of them sharded. A digest is a sum over elements, each weighed by its position in the whole tensor
(rollout/weight_sync/digest.py), so each rank sums up the elements that it holds, and the client adds the ranks' sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rollout.weight_sync.digest import header, weighted_sum


class WeightBook:
    """Mixed into the worker class by vLLM: no name here may be one of the worker's."""

    def opid_set_weight_version(self, version: int | None) -> None:
        """The weights are `version` from now on; None while they change."""
        self._opid_version = version

    def opid_weight_version(self) -> dict[str, int | None]:
        return {"version": getattr(self, "_opid_version", None)}

    def opid_weight_digests(self) -> dict[str, str]:
        """This rank's part of each weight's digest, modulo 2^64, in decimal (JSON readers round large numbers)."""
        digests: dict[str, int] = {}
        for shard in shards(self.model_runner.get_model()):
            value = digests.get(shard.name, 0) + shard.digest()
            digests[shard.name] = value % 2**64
        return {name: str(value) for name, value in digests.items()}


@dataclass(frozen=True)
class Shard:
    """A block of a weight: `tensor` lies at (`row`, `column`) of a whole of `shape` (1 or 2 dimensions).

    `leads` marks the one shard that adds the part of the digest which is not of elements.
    """

    name: str
    tensor: Tensor
    shape: tuple[int, ...]
    row: int = 0
    column: int = 0
    leads: bool = True

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
    """The blocks that this rank answers for: replicas are left to the first rank that has one.

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
            if _is_first_rank():
                yield Shard(name, tensor, tuple(tensor.shape))


def _qkv(name: str, module: Any, tensor: Tensor, rank: int, size: int) -> Iterator[Shard]:
    heads = {"q": module.num_heads, "k": module.num_kv_heads, "v": module.num_kv_heads}
    sizes = [count * module.head_size for count in heads.values()]
    for letter, part in zip(heads, tensor.split(sizes), strict=True):
        replicas = 1 if letter == "q" else module.num_kv_head_replicas
        if rank % replicas == 0:
            shape = (len(part) * size // replicas, *part.shape[1:])
            own = name.replace("qkv_proj", f"{letter}_proj")
            yield Shard(own, part, shape, len(part) * (rank // replicas), 0, rank == 0)


def _merged(name: str, module: Any, tensor: Tensor, rank: int) -> Iterator[Shard]:
    parts = tensor.split(list(module.output_partition_sizes))
    for own, part, whole in zip(("gate_proj", "up_proj"), parts, module.output_sizes, strict=True):
        shape = (whole, *part.shape[1:])
        yield Shard(name.replace("gate_up_proj", own), part, shape, len(part) * rank, 0, rank == 0)


def _is_first_rank() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
