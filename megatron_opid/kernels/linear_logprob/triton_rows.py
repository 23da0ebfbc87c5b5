"""Triton kernels over the tiles of a chunk of logits: statistics, their combination per row, and the gradient.

A tile is one row's 256 neighbouring columns. A chunk of C rows is kept as exp(z − tile's maximum), z the scaled logits,
in the weight's dtype with the tile's maximum beside it: rounding to bf16 then costs 2⁻⁹ of each probability, where
rounding the logit itself would cost 2⁻⁹·|z|. All statistics are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_opid.kernels.linear_logprob.vocab_parallel import RowStatistics

TILE_COLUMNS = 256
TILES_PER_PROGRAM = 16
NUM_WARPS = 4


@dataclass(frozen=True)
class Tiles:
    """Of C rows in N tiles, float32: maximum and sum [C, N], Σexp(z − max)·(z − max) [C, N] or None, target z [C]
    (−inf where it is not on this shard); exponentials [C, N·256] in the weight's dtype, or None for scoring."""

    maximum: Tensor
    total: Tensor
    moment: Tensor | None
    target: Tensor
    exponentials: Tensor | None
    num_columns: int

    @classmethod
    def empty(cls, hidden: Tensor, num_columns: int, with_entropy: bool, keep: bool) -> Tiles:
        num_tiles, rows = triton.cdiv(num_columns, TILE_COLUMNS), len(hidden)
        options = {"dtype": torch.float32, "device": hidden.device}
        return cls(
            maximum=torch.empty(rows, num_tiles, **options),
            total=torch.empty(rows, num_tiles, **options),
            moment=torch.empty(rows, num_tiles, **options) if with_entropy else None,
            target=torch.full((rows,), -torch.inf, **options),
            exponentials=hidden.new_empty(rows, num_tiles * TILE_COLUMNS) if keep else None,
            num_columns=num_columns,
        )


def tile_statistics(logits: Tensor, targets: Tensor, inverse_temperature: Tensor, tiles: Tiles) -> None:
    """Fills `tiles` from float32 logits [C, V]."""
    rows, num_tiles = tiles.maximum.shape
    if rows and num_tiles:
        _tile_statistics[(rows, triton.cdiv(num_tiles, TILES_PER_PROGRAM))](
            logits,
            targets,
            inverse_temperature,
            tiles.maximum,
            tiles.total,
            tiles.moment,
            tiles.target,
            tiles.exponentials,
            logits.shape[1],
            num_tiles,
            TILE=TILE_COLUMNS,
            TILES=TILES_PER_PROGRAM,
            num_warps=NUM_WARPS,
        )


def combine_tiles(tiles: Tiles) -> Tensor:
    """The shard's partial statistics of each row, [C, 3 or 4], for vocab_parallel.combine."""
    rows, num_tiles = tiles.maximum.shape
    partials = tiles.target.new_empty(rows, 3 if tiles.moment is None else 4)
    if rows:
        _combine_tiles[(rows,)](
            tiles.maximum,
            tiles.total,
            tiles.moment,
            tiles.target,
            partials,
            num_tiles,
            partials.shape[1],
            BLOCK=triton.next_power_of_2(max(num_tiles, 1)),
        )
    return partials


def logits_gradient(
    tiles: Tiles,
    targets: Tensor,
    inverse_temperature: Tensor,
    rows: RowStatistics,
    d_logprob: Tensor,
    d_entropy: Tensor | None,
) -> Tensor:
    """The gradient of the unscaled logits [C, V], in place of the exponentials: reference.TorchBackend's formula."""
    num_rows, num_tiles = tiles.maximum.shape
    if num_rows and num_tiles:
        _logits_gradient[(num_rows, triton.cdiv(num_tiles, TILES_PER_PROGRAM))](
            tiles.exponentials,
            tiles.maximum,
            targets,
            inverse_temperature,
            rows.logprob,
            rows.logsumexp,
            rows.entropy,
            d_logprob,
            d_entropy,
            num_tiles,
            TILE=TILE_COLUMNS,
            TILES=TILES_PER_PROGRAM,
            num_warps=NUM_WARPS,
        )
    return tiles.exponentials[:, : tiles.num_columns]


@triton.jit
def _tile_statistics(
    logits_ptr,
    target_ptr,
    inverse_temperature_ptr,
    maximum_ptr,
    total_ptr,
    moment_ptr,
    target_logit_ptr,
    exponential_ptr,
    num_columns,
    num_tiles,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1) * TILES + tl.arange(0, TILES)
    column = tile[:, None] * TILE + tl.arange(0, TILE)[None, :]
    valid = column < num_columns
    z = tl.load(logits_ptr + row * num_columns + column, mask=valid, other=0.0) * tl.load(inverse_temperature_ptr + row)
    maximum = tl.max(tl.where(valid, z, -float("inf")), axis=1)
    shifted = tl.where(valid, z - maximum[:, None], 0.0)
    exponential = tl.where(valid, tl.exp(shifted), 0.0)
    at = row * num_tiles + tile
    tl.store(maximum_ptr + at, maximum, mask=tile < num_tiles)
    tl.store(total_ptr + at, tl.sum(exponential, axis=1), mask=tile < num_tiles)
    if moment_ptr is not None:
        tl.store(moment_ptr + at, tl.sum(exponential * shifted, axis=1), mask=tile < num_tiles)
    target = tl.load(target_ptr + row)
    is_target = (column == target) & valid
    target_logit = tl.sum(tl.sum(tl.where(is_target, z, 0.0), axis=1), axis=0)
    here = (target >= 0) & (target < num_columns) & (target // (TILE * TILES) == tl.program_id(1))
    tl.store(target_logit_ptr + row, target_logit, mask=here)
    if exponential_ptr is not None:
        to = exponential_ptr + row * num_tiles * TILE + column
        tl.store(to, exponential.to(exponential_ptr.dtype.element_ty), mask=(tile < num_tiles)[:, None])


@triton.jit
def _combine_tiles(
    maximum_ptr,
    total_ptr,
    moment_ptr,
    target_logit_ptr,
    partial_ptr,
    num_tiles,
    num_partials,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, BLOCK)
    inside = tile < num_tiles
    at = row * num_tiles + tile
    tile_maximum = tl.load(maximum_ptr + at, mask=inside, other=-float("inf"))
    maximum = tl.max(tile_maximum, axis=0)
    shift = tl.where(inside, tile_maximum - maximum, 0.0)
    scale = tl.exp(shift)
    tile_total = tl.load(total_ptr + at, mask=inside, other=0.0)
    to = partial_ptr + row * num_partials
    tl.store(to, maximum)
    tl.store(to + 1, tl.sum(tile_total * scale, axis=0))
    tl.store(to + 2, tl.load(target_logit_ptr + row))
    if moment_ptr is not None:
        tile_moment = tl.load(moment_ptr + at, mask=inside, other=0.0)
        tl.store(to + 3, tl.sum(scale * (tile_moment + tile_total * shift), axis=0))


@triton.jit
def _log2(x):
    """log₂ x within 1e-4 for a normal float32 (−127 for 0): exponent plus a polynomial of the mantissa in [1, 2)."""
    bits = x.to(tl.int32, bitcast=True)
    # The bits of 2²³ + n are those of 2²³ or'ed with n: subtracting 2²³ + 127 leaves the exponent as a float.
    exponent = ((bits >> 23) | 0x4B000000).to(tl.float32, bitcast=True) - 8388735.0
    f = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    return exponent + (-2.50561466 + f * (4.04961689 + f * (-2.09940228 + f * (0.63551112 - f * 0.08001088))))


@triton.jit
def _logits_gradient(
    exponential_ptr,
    maximum_ptr,
    target_ptr,
    inverse_temperature_ptr,
    logprob_ptr,
    logsumexp_ptr,
    entropy_ptr,
    d_logprob_ptr,
    d_entropy_ptr,
    num_tiles,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1) * TILES + tl.arange(0, TILES)
    inside = tile < num_tiles
    column = tile[:, None] * TILE + tl.arange(0, TILE)[None, :]
    pointer = exponential_ptr + row * num_tiles * TILE + column
    exponential = tl.load(pointer, mask=inside[:, None], other=0.0).to(tl.float32)
    shift = tl.load(maximum_ptr + row * num_tiles + tile, mask=inside, other=0.0) - tl.load(logsumexp_ptr + row)
    logprob = tl.load(logprob_ptr + row)
    d_logprob = tl.load(d_logprob_ptr + row)
    inverse_temperature = tl.load(inverse_temperature_ptr + row)
    # With p = exponential · exp(shift) and log p = log(exponential) + shift: what is constant in a tile is taken out.
    scale = tl.exp(shift) * inverse_temperature
    # 1 − p of the target, from its log-prob: where p is near 1 the subtraction would cancel.
    complement = tl.where(logprob > -0.01, -logprob * (1 + logprob * (0.5 + logprob / 6)), 1 - tl.exp(logprob))
    at_target = d_logprob * complement
    if d_entropy_ptr is not None:
        d_entropy = tl.load(d_entropy_ptr + row)
        entropy = tl.load(entropy_ptr + row)
        constant = -scale * (d_logprob + d_entropy * (shift + entropy))
        slope = -scale * d_entropy * 0.6931471805599453
        gradient = exponential * (constant[:, None] + slope[:, None] * _log2(exponential))
        at_target -= d_entropy * tl.exp(logprob) * (logprob + entropy)
    else:
        gradient = exponential * (-scale * d_logprob)[:, None]
    target = tl.load(target_ptr + row)
    if target // (TILE * TILES) == tl.program_id(1):
        gradient = tl.where(column == target.to(tl.int32), at_target * inverse_temperature, gradient)
    tl.store(pointer, gradient.to(exponential_ptr.dtype.element_ty), mask=inside[:, None])
