"""LM head, log-prob and loss in one op, over a vocabulary that may be split over a tensor-parallel group.

Rows are response tokens: give no prompt rows. Logits exist for one chunk of rows at a time.

With `tp_group`, `hidden` and all per-token arguments are equal on its ranks; so are, bit for bit, the results and
d hidden, which is summed over the ranks here: a caller with sequence parallelism gathers hidden with a backward that
splits (`tensor_parallel_output_grad=False`), one without it needs no `copy_to_tensor_model_parallel_region`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_opid.algorithm.losses import LossCoefficients, PolicyTerms
from megatron_opid.kernels.linear_logprob.backends import make_head
from megatron_opid.kernels.linear_logprob.loss import RecomputedLogprobs, TokenLoss, logprobs, token_loss
from megatron_opid.kernels.linear_logprob.objectives import CrossEntropy, PolicyObjective

__all__ = [
    "CrossEntropy",
    "PolicyObjective",
    "TokenLoss",
    "linear_cross_entropy",
    "linear_logprob",
    "linear_policy_loss",
    "linear_token_loss",
]


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    num_valid_columns: int | None = None,
    tp_group: dist.ProcessGroup | None = None,
    with_entropy: bool = False,
    backend: str = "auto",
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden · weightᵀ / temperature) at the targets, and the softmax's entropy.

    Differentiable where gradients are enabled; the backward makes the logits a second time (8·T·H·V operations in all).
    For losses that are sums over tokens use `linear_policy_loss` (6·T·H·V).

    Args: hidden [T, H] and weight [V/tp, H] of one dtype; targets int64 [T], global token ids; temperature: a number or
    float [T]; num_valid_columns: of the global vocabulary, the columns from there on being padding (default: none is);
    tp_group: over which the vocabulary is split in rank order; backend: `auto`, `torch`, `triton` or `cuda`
    (backends.py); chunk_tokens: rows per chunk, which the memory is proportional to. T may be 0.
    Returns: log-prob [T] and entropy [T] or None, float32 (float64 for float64 inputs). A target that is no valid
    column gets −inf. Raises: ValueError on shapes and dtypes that do not fit.
    """
    head = make_head(hidden, weight, targets, temperature, num_valid_columns, tp_group, backend, chunk_tokens)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return RecomputedLogprobs.apply(hidden, weight, head, targets, temperature, with_entropy)
    return logprobs(head, hidden, targets, temperature, with_entropy)


def linear_token_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss: TokenLoss,
    *,
    temperature: float | Tensor = 1.0,
    num_valid_columns: int | None = None,
    tp_group: dist.ProcessGroup | None = None,
    with_entropy: bool = False,
    accumulate_main_grad: bool = False,
    backend: str = "auto",
    chunk_tokens: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss Σ_t l_t(log-prob_t, entropy_t), differentiable in hidden and weight; 6·T·H·V operations.

    Args as `linear_logprob`'s, and loss: called once per chunk as loss(log-probs [C], entropies [C] or None, rows:
    slice) -> PolicyLoss, differentiable; entropies are None unless with_entropy. accumulate_main_grad: the backward
    adds d weight to `weight.main_grad` (float32), sets `weight.grad_added_to_main_grad` and returns a zero gradient;
    by default it returns d weight in weight's dtype. d weight is summed in float32 over chunks either way.
    Returns: loss, a scalar, and the sums of the chunks' statistics.
    """
    head = make_head(hidden, weight, targets, temperature, num_valid_columns, tp_group, backend, chunk_tokens)
    return token_loss(head, hidden, weight, targets, temperature, loss, with_entropy, accumulate_main_grad)


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    terms: PolicyTerms,
    coefficients: LossCoefficients,
    *,
    with_entropy: bool = True,
    **options,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The OPID loss of algorithm.losses.policy_loss through the LM head; options are `linear_token_loss`'s.

    Raises: ValueError where the entropy has a coefficient and with_entropy is off, or a term is not [T].
    """
    for name, value in vars(terms).items():
        if value is not None and value.shape != targets.shape:
            raise ValueError(f"terms.{name} is {tuple(value.shape)}; give one value per target, {tuple(targets.shape)}")
    if coefficients.entropy and not with_entropy:
        raise ValueError(f"entropy coefficient {coefficients.entropy} without the entropy; set with_entropy=True")

    return linear_token_loss(
        hidden, weight, targets, PolicyObjective(terms, coefficients), with_entropy=with_entropy, **options
    )


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor, **options
) -> tuple[Tensor, dict[str, Tensor]]:
    """−Σ_t w_t · log-prob_t (supervised fine-tuning) through the LM head; options are `linear_token_loss`'s.

    Args: token_weights float [T]. Returns: loss, and {"cross_entropy": the same sum, detached}.
    """
    return linear_token_loss(hidden, weight, targets, CrossEntropy(token_weights), **options)
