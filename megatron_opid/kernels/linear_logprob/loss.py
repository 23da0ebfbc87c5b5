"""Losses through the LM head: the gradient is made in the pass that makes the logits, or logits are made twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megatron_opid.algorithm.losses import PolicyLoss
from megatron_opid.kernels.linear_logprob.head import Chunk, Head
from megatron_opid.kernels.linear_logprob.reference import accumulation_dtype

TokenLoss = Callable[[Tensor, Tensor | None, slice], PolicyLoss]
"""(log-probs [C], entropies [C] or None, which rows they are) -> Σ over these rows, differentiable in both."""


def logprobs(
    head: Head, hidden: Tensor, targets: Tensor, temperature: float | Tensor, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-prob [T] and, if wanted, entropy [T] of each row; 2·T·H·V operations, no gradient."""
    logprob = torch.empty(len(hidden), dtype=accumulation_dtype(hidden), device=hidden.device)
    entropy = torch.empty_like(logprob) if with_entropy else None
    for chunk in head.chunks(hidden, targets, temperature):
        statistics = head.forward(chunk, with_entropy, keep=False)[1]  # the logits are let go here
        logprob[chunk.rows] = statistics.logprob
        if entropy is not None:
            entropy[chunk.rows] = statistics.entropy
    return logprob, entropy


class RecomputedLogprobs(torch.autograd.Function):
    """`logprobs` with a gradient for any function of its results; the backward makes the logits anew (8·T·H·V)."""

    @staticmethod
    def forward(ctx, hidden, weight, head: Head, targets, temperature, with_entropy):
        ctx.save_for_backward(hidden, weight, targets)
        ctx.set_materialize_grads(False)
        ctx.head, ctx.temperature = head, temperature
        return logprobs(head, hidden, targets, temperature, with_entropy)

    @staticmethod
    def backward(ctx, d_logprob, d_entropy):
        hidden, weight, targets = ctx.saved_tensors
        d_hidden, d_weight = _gradient_buffers(ctx.head, hidden, weight, ctx.needs_input_grad)
        for chunk in ctx.head.chunks(hidden, targets, ctx.temperature):
            logits, statistics = ctx.head.forward(chunk, with_entropy=d_entropy is not None, keep=True)
            d_logprob_rows = torch.zeros_like(statistics.logprob) if d_logprob is None else d_logprob[chunk.rows]
            d_entropy_rows = None if d_entropy is None else d_entropy[chunk.rows]
            ctx.head.backward(chunk, logits, statistics, d_logprob_rows, d_entropy_rows, d_hidden, d_weight)
            del logits  # one chunk of logits at a time
        return d_hidden, d_weight, None, None, None, None


def token_loss(
    head: Head,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    loss: TokenLoss,
    with_entropy: bool,
    accumulate_main_grad: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ_t loss_t and its statistics; d hidden and d weight are ready when it returns (6·T·H·V operations)."""
    needs = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, weight)]
    d_hidden, d_weight = _gradient_buffers(head, hidden, weight, needs)
    total, statistics = None, {}
    with torch.no_grad():
        for chunk in head.chunks(hidden, targets, temperature):
            piece = _loss_of_chunk(head, chunk, loss, with_entropy, d_hidden, d_weight)
            total = piece.total if total is None else total + piece.total
            for name, value in piece.statistics.items():
                statistics[name] = statistics[name] + value if name in statistics else value
    return LossWithGradients.apply(hidden, weight, total, d_hidden, d_weight, accumulate_main_grad), statistics


class LossWithGradients(torch.autograd.Function):
    """Ties a loss to gradients that are known already; the backward multiplies them by the upstream scalar."""

    @staticmethod
    def forward(ctx, hidden, weight, total, d_hidden, d_weight, accumulate_main_grad):
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight, ctx.accumulate_main_grad = weight, accumulate_main_grad
        return total.clone()

    @staticmethod
    def backward(ctx, scale):
        d_hidden, d_weight = ctx.saved_tensors
        hidden_gradient = None if d_hidden is None else d_hidden * scale.to(d_hidden.dtype)
        weight_gradient = None
        if d_weight is not None:
            weight = ctx.weight
            if ctx.accumulate_main_grad:
                # Megatron's convention: the flag says that main_grad has it, and what is returned must be zero.
                weight.main_grad.addcmul_(d_weight, scale)
                weight.grad_added_to_main_grad = True
                weight_gradient = torch.zeros_like(weight)
            else:
                weight_gradient = d_weight.to(weight.dtype, copy=True).mul_(scale)
        return hidden_gradient, weight_gradient, None, None, None, None


def _loss_of_chunk(
    head: Head, chunk: Chunk, loss: TokenLoss, with_entropy: bool, d_hidden: Tensor | None, d_weight: Tensor | None
) -> PolicyLoss:
    differentiate = d_hidden is not None or d_weight is not None
    logits, statistics = head.forward(chunk, with_entropy, keep=differentiate)
    if not differentiate:
        return loss(statistics.logprob, statistics.entropy, chunk.rows)
    with torch.enable_grad():
        # The loss of a row depends on these two numbers alone: autograd on [C] vectors gives its coefficients.
        logprob = statistics.logprob.detach().requires_grad_()
        entropy = None if statistics.entropy is None else statistics.entropy.detach().requires_grad_()
        piece = loss(logprob, entropy, chunk.rows)
        inputs = (logprob,) if entropy is None else (logprob, entropy)
        d_logprob, *d_entropy = torch.autograd.grad(piece.total, inputs, allow_unused=True)
    if d_logprob is None:
        d_logprob = torch.zeros_like(statistics.logprob)
    head.backward(chunk, logits, statistics, d_logprob, d_entropy[0] if d_entropy else None, d_hidden, d_weight)
    return PolicyLoss(piece.total.detach(), piece.statistics)


def _gradient_buffers(
    head: Head, hidden: Tensor, weight: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    d_hidden = torch.empty_like(hidden) if needs[0] else None
    d_weight = torch.empty_like(weight, dtype=accumulation_dtype(weight)) if needs[1] else None
    if d_weight is not None:
        d_weight[head.shard.num_columns :] = 0  # padding; the rest is written by the first chunk
    return d_hidden, d_weight
