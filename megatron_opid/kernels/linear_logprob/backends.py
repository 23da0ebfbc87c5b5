"""Choice of the back end, and the checks that every call makes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_opid.kernels.linear_logprob.head import Backend, Head
from megatron_opid.kernels.linear_logprob.reference import TorchBackend
from megatron_opid.kernels.linear_logprob.vocab_parallel import VocabShard

CHUNK_TOKENS = {"torch": 512, "triton": 2048, "cuda": 8192}


def make_head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    num_valid_columns: int | None,
    tp_group: dist.ProcessGroup | None,
    backend: str,
    chunk_tokens: int | None,
) -> Head:
    """Checks the arguments' shapes and dtypes and chooses the back end.

    Raises: ValueError naming what does not fit.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)}; give [T, H] and [V/tp, H]")
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise ValueError(f"hidden is {hidden.dtype} and weight {weight.dtype}; give both in one floating-point dtype")
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets {tuple(targets.shape)} {targets.dtype}; give int64 token ids [{len(hidden)}]")
    if isinstance(temperature, Tensor) and temperature.shape not in ((), hidden.shape[:1]):
        raise ValueError(f"temperature {tuple(temperature.shape)}; give a number or a tensor [{len(hidden)}]")
    shard = VocabShard.of(weight, num_valid_columns, tp_group)
    name = best_backend(weight) if backend == "auto" else backend
    return Head(_backend(name, weight.detach(), shard.num_columns), shard, chunk_tokens or CHUNK_TOKENS[name])


def best_backend(weight: Tensor) -> str:
    """`cuda` (fused kernel, Hopper), else `triton` on a GPU, else `torch`."""
    if not weight.is_cuda or weight.dtype == torch.float64:
        return "torch"
    from megatron_opid.kernels.linear_logprob import fused

    return "cuda" if fused.supports(weight) else "triton"


def _backend(name: str, weight: Tensor, num_columns: int) -> Backend:
    if name == "torch":
        return TorchBackend(weight[:num_columns])
    # Triton is imported only where it is used: machines without a GPU need not have it.
    from megatron_opid.kernels.linear_logprob import fused, gpu

    if name == "triton":
        return gpu.GpuBackend(weight, num_columns, gpu.cublas_tiles)
    if name == "cuda":
        if not fused.supports(weight):
            raise ValueError(f"backend='cuda' cannot serve a {weight.dtype} {tuple(weight.shape)} head; {fused.NEEDS}")
        return gpu.GpuBackend(weight, num_columns, fused.tile_statistics)
    raise ValueError(f"backend={name!r}; set auto, torch, triton or cuda")
