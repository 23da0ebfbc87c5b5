"""Correction for the difference between the engine's log-probs (which sampled) and the trainer's (which is updated)."""

from __future__ import annotations

from torch import Tensor


def importance_correction(old: Tensor, engine: Tensor, *, mode: str, low: float, high: float) -> Tensor | None:
    """The weight of each token's policy loss, [T], detached.

    w = π_trainer/π_engine = exp(old − engine). `truncate`: min(w, high) (token-level truncated importance sampling);
    `mask`: w inside [low, high], else 0; `none`: None.
    """
    if mode == "none":
        return None
    weight = (old - engine).exp().detach()
    if mode == "truncate":
        return weight.clamp(max=high)
    if mode == "mask":
        return weight * ((weight >= low) & (weight <= high)).to(weight.dtype)
    raise ValueError(f"algorithm.correction={mode!r}; set none, truncate or mask")
