"""The GPU back ends: tiles of exponentials from one of two sources, Triton row kernels, cuBLAS for the gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_opid.kernels.linear_logprob import triton_rows
from megatron_opid.kernels.linear_logprob.triton_rows import Tiles
from megatron_opid.kernels.linear_logprob.vocab_parallel import RowStatistics

TileStatistics = Callable[[Tensor, Tensor, Tensor, Tensor, Tiles], None]
"""(hidden [C, H], weight [V/tp, H], targets [C], 1/temperature [C], tiles to fill)."""


class GpuBackend:
    """Arithmetic of one chunk (see reference.TorchBackend); what it keeps of the logits are Tiles."""

    def __init__(self, weight: Tensor, num_columns: int, fill_tiles: TileStatistics):
        self.weight, self.num_columns, self.fill_tiles = weight, num_columns, fill_tiles

    def forward(
        self, hidden: Tensor, targets: Tensor, inverse_temperature: Tensor, with_entropy: bool, keep: bool
    ) -> tuple[Tiles, Tensor]:
        tiles = Tiles.empty(hidden, self.num_columns, with_entropy, keep)
        self.fill_tiles(hidden, self.weight, targets, inverse_temperature, tiles)
        return tiles, triton_rows.combine_tiles(tiles)

    def logits_gradient(
        self,
        tiles: Tiles,
        targets: Tensor,
        inverse_temperature: Tensor,
        rows: RowStatistics,
        d_logprob: Tensor,
        d_entropy: Tensor | None,
    ) -> Tensor:
        return triton_rows.logits_gradient(tiles, targets, inverse_temperature, rows, d_logprob, d_entropy)

    def hidden_gradient(self, d_logits: Tensor, out: Tensor) -> None:
        torch.mm(d_logits, self.weight[: self.num_columns], out=out)

    def weight_gradient(self, d_logits: Tensor, hidden: Tensor, out: Tensor, beta: int) -> None:
        if d_logits.is_cuda and d_logits.dtype != torch.float32:
            torch.addmm(out, d_logits.t(), hidden, beta=beta, out_dtype=torch.float32, out=out)
        else:
            out.addmm_(d_logits.t().to(out.dtype), hidden.to(out.dtype), beta=beta)


def cublas_tiles(hidden: Tensor, weight: Tensor, targets: Tensor, inverse_temperature: Tensor, tiles: Tiles) -> None:
    """Tiles by way of float32 logits in memory: any GPU, and the CPU under Triton's interpreter."""
    columns = weight[: tiles.num_columns]
    if hidden.is_cuda and hidden.dtype != torch.float32:
        logits = torch.mm(hidden, columns.t(), out_dtype=torch.float32)
    else:
        logits = hidden.float() @ columns.float().t()
    triton_rows.tile_statistics(logits, targets, inverse_temperature, tiles)
