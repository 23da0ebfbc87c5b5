"""Drawing tokens by inverse CDF from uniforms of the request's own, so that a draw does not depend on the batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def request_uniforms(seed: int | None, num_draws: int) -> np.ndarray:
    """The uniforms of one request, float64 [num_draws] in [0, 1): a Philox counter stream keyed by `seed`.

    None takes a key from the operating system, so that the draw cannot be repeated.
    """
    return np.random.Generator(np.random.Philox(key=seed)).random(num_draws)


def sample(logits: Tensor, temperatures: Tensor, top_ps: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row and its log-prob.

    The log-prob is log_softmax(logits / temperature) of the token over the whole vocabulary, in fp32: top-p narrows the
    draw and does not renormalise the log-prob, because the trainer computes it without top-p. Temperature 0 takes the
    most probable token; its log-prob is that at temperature 1.

    Args:
        logits: [n, vocabulary], any float dtype.
        temperatures, top_ps: float32 [n]; uniforms: float64 [n] in [0, 1).

    Returns:
        Ids, int64 [n], and log-probs, float32 [n].

    Raises:
        RuntimeError: a row of logits has no finite probabilities.
    """
    greedy = temperatures == 0
    scale = torch.where(greedy, 1.0, temperatures)
    logprobs = torch.log_softmax(logits.float() / scale[:, None], dim=-1)
    weights = logprobs.exp()
    if bool((top_ps < 1).any()):
        weights = _nucleus(weights, top_ps)
    cdf = weights.double().cumsum(dim=-1)
    total = cdf[:, -1:]
    if not bool(torch.isfinite(total).all()):
        raise RuntimeError("the model returned logits that are not finite; its weights are damaged or have diverged")
    # The first token whose cumulated weight exceeds u * total: there is one, as u <= 1 - 2^-53 rounds below the total.
    drawn = torch.searchsorted(cdf, uniforms[:, None] * total, right=True)[:, 0]
    ids = torch.where(greedy, logits.argmax(dim=-1), drawn)
    return ids, logprobs.gather(1, ids[:, None])[:, 0]


def _nucleus(weights: Tensor, top_ps: Tensor) -> Tensor:
    """The weights of each row's smallest most-probable set that reaches `top_p`, zero elsewhere; [n, vocabulary]."""
    ranked, order = weights.sort(dim=-1, descending=True, stable=True)
    before = ranked.double().cumsum(dim=-1) - ranked
    return torch.zeros_like(weights).scatter(1, order, torch.where(before < top_ps[:, None], ranked, 0.0))
