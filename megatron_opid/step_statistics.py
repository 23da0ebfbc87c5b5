"""What a training step's log-probs say about the skills, and about the engine that sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_opid.algorithm.losses import kl_divergence
from megatron_opid.batch import Batch, Scores

MISMATCH_THRESHOLD_NATS = 0.1


def teacher_statistics(batch: Batch, scores: Scores) -> dict[str, float]:
    """How far the skills shift the log-probs: over all scored tokens, and apart for won and lost episodes (nats)."""
    if not scores.teachers:
        return {}
    won = torch.tensor([batch.trajectories[sample.trajectory].success for sample in batch.samples])
    won = torch.repeat_interleave(won, batch.lengths)
    levels = [teacher.scores(scores.old) for teacher in scores.teachers.values()]
    masks = [level.mask.bool() for level in levels]
    delta = torch.cat([level.delta[mask] for level, mask in zip(levels, masks, strict=True)])
    success = torch.cat([won[mask] for mask in masks])
    statistics = {
        "scored_fraction": float(torch.stack(masks).any(dim=0).float().mean()),
        "cut_prompts": float(sum(sample.teacher_prompts.num_cut for sample in batch.samples)),
    }
    if len(delta):
        statistics |= {
            "delta_mean": float(delta.mean()),
            "delta_abs_mean": float(delta.abs().mean()),
            "delta_std": float(delta.std(unbiased=False)),
        }
    for name, chosen in (("won", success), ("lost", ~success)):
        if chosen.any():
            statistics[f"delta_mean_{name}"] = float(delta[chosen].mean())
    return statistics


def mismatch_statistics(engine: Tensor, trainer: Tensor) -> dict[str, float]:
    """Engine against trainer log-probs [T] of the same tokens under the same weights (nats): k3 KL, mean, largest.

    Tokens whose trainer log-prob is not known (NaN) are left out.
    """
    known = ~trainer.isnan()
    engine, trainer = engine[known], trainer[known]
    difference = (engine - trainer).abs()
    return {
        "k3": float(kl_divergence(engine, trainer, "k3").mean()),
        "logprob_abs_mean": float(difference.mean()),
        "logprob_abs_max": float(difference.max()),
        "large_share": float((difference > MISMATCH_THRESHOLD_NATS).float().mean()),
    }
