"""What one training step does with its batch: score it, turn scores into advantages, update the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from megatron_opid.actor.actor import Actor
from megatron_opid.actor.samples import PolicySample, ScoreRequest, TokenSequence
from megatron_opid.algorithm.advantages import TeacherScores
from megatron_opid.algorithm.corrections import importance_correction
from megatron_opid.algorithm.losses import LossCoefficients, aggregation_weights, kl_divergence
from megatron_opid.batch import Batch, Sample, Scores, build_batch
from megatron_opid.config import AlgorithmConfig, Config
from megatron_opid.skills.prompting import teacher_prompts
from megatron_opid.skills.routing import route
from rollout.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MISMATCH_THRESHOLD_NATS = 0.1


def needs_reference(algorithm: AlgorithmConfig) -> bool:
    """Whether anything is scored under the frozen initial weights."""
    return algorithm.kl_coefficient > 0 or (algorithm.name == "opid" and algorithm.teacher == "reference")


def loss_coefficients(algorithm: AlgorithmConfig) -> LossCoefficients:
    """The constants of the loss from the configuration."""
    return LossCoefficients(
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        dual_clip=algorithm.dual_clip,
        kl=algorithm.kl_coefficient,
        entropy=algorithm.entropy_coefficient,
        distillation=algorithm.distillation_coefficient,
        distillation_weight=algorithm.distillation_weight,
        distillation_clip=algorithm.distillation_clip,
    )


def prepare(trajectories: Sequence[Trajectory], tokenizer: PreTrainedTokenizerBase, step: int, config: Config) -> Batch:
    """Route the skills, render the teacher prompts and pack: the batch of training step `step`."""
    algorithm = config.algorithm
    prompts = {
        trajectory.uid: teacher_prompts(
            trajectory,
            route(trajectory, step, config.skills, **_level_weights(algorithm)),
            tokenizer,
            style=config.env.prompt_style,
            history_length=config.env.history_length,
            max_prompt_tokens=config.rollout.max_prompt_tokens + config.skills.max_skill_tokens,
        )
        for trajectory in trajectories
        if trajectory.skills is not None
    }
    return build_batch(trajectories, prompts, algorithm.invalid_action_penalty)


def score(actor: Actor, batch: Batch, updates: Sequence[np.ndarray], algorithm: AlgorithmConfig) -> Scores:
    """Old, reference and teacher log-probs of the batch's responses in one pass per weight set.

    The samples of update k are packed as that update will pack them, so the first update's ratio is exactly 1.
    """
    sequences = [_sequence(sample, sample.prompt_ids) for sample in batch.samples]
    wanted: list[tuple[str, int]] = []
    requests: list[ScoreRequest] = []

    def ask(name: str, index: int, request: ScoreRequest) -> None:
        wanted.append((name, index))
        requests.append(request)

    for number, part in enumerate(updates):
        for index in part:
            ask("old", index, ScoreRequest(sequences[index], batch=number))
    if algorithm.kl_coefficient > 0:
        for index, sequence in enumerate(sequences):
            ask("reference", index, ScoreRequest(sequence, "reference"))
    for level in _levels(algorithm):
        for index, sample in enumerate(batch.samples):
            prompt = getattr(sample.teacher_prompts, level)
            if prompt is not None:
                request = ScoreRequest(_sequence(sample, prompt), algorithm.teacher, batch=len(updates))
                ask(level, index, request)
    values = actor.score(requests)
    return _scores(batch, wanted, values, algorithm)


def update(
    actor: Actor, batch: Batch, scores: Scores, advantages: Tensor, updates: Sequence[np.ndarray], a: AlgorithmConfig
) -> dict[str, float]:
    """One optimizer update per part of `updates`; the means of their statistics, weighted by samples, and the largest
    |ρ − 1| of all and of the first."""
    terms = {
        "old_logprobs": scores.old,
        "advantages": advantages,
        "reference_logprobs": scores.reference,
        "correction": importance_correction(
            scores.old,
            batch.flat("engine_logprobs"),
            mode=a.correction,
            low=a.correction_low,
            high=a.correction_high,
        ),
    }
    if a.distillation_coefficient:
        deltas = (level.delta * level.mask for level in scores.teachers.values())
        terms["teacher_delta"] = sum(deltas, torch.zeros_like(scores.old))
    arrays = {name: _split(value, batch) for name, value in terms.items() if value is not None}
    statistics = []
    for part in updates:
        chosen = {name: [values[index] for index in part] for name, values in arrays.items()}
        if a.distillation_coefficient:
            mask = torch.cat([_teacher_mask(batch.samples[index], a) for index in part])
            weights = aggregation_weights(batch.lengths[part], mask, a.aggregation) if mask.any() else mask
            chosen["distillation_weights"] = list(np.split(weights.numpy(), np.cumsum(batch.lengths[part])[:-1]))
        samples = [
            PolicySample(
                _sequence(batch.samples[index], batch.samples[index].prompt_ids),
                **{name: values[place] for name, values in chosen.items()},
            )
            for place, index in enumerate(part)
        ]
        statistics.append(actor.update(samples, loss_coefficients(a), aggregation=a.aggregation))
    share = np.array([len(part) for part in updates]) / sum(len(part) for part in updates)
    means = {name: float(share @ [s[name] for s in statistics]) for name in statistics[0]}
    return means | {
        "max_ratio_deviation": max(s["max_ratio_deviation"] for s in statistics),
        "first_update_max_ratio_deviation": statistics[0]["max_ratio_deviation"],
    }


def teacher_statistics(batch: Batch, scores: Scores) -> dict[str, float]:
    """How far the skills shift the log-probs: over all scored tokens, and apart for won and lost episodes (nats)."""
    if not scores.teachers:
        return {}
    won = torch.tensor([batch.trajectories[sample.trajectory].success for sample in batch.samples])
    won = torch.repeat_interleave(won, batch.lengths)
    masks = [level.mask.bool() for level in scores.teachers.values()]
    delta = torch.cat([level.delta[mask] for level, mask in zip(scores.teachers.values(), masks, strict=True)])
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


def mismatch_statistics(batch: Batch, scores: Scores) -> dict[str, float]:
    """Engine against trainer log-probs of the same tokens under the same weights (nats): their k3 KL, mean, largest."""
    engine = batch.flat("engine_logprobs")
    difference = (engine - scores.old).abs()
    return {
        "k3": float(kl_divergence(engine, scores.old, "k3").mean()),
        "logprob_abs_mean": float(difference.mean()),
        "logprob_abs_max": float(difference.max()),
        "large_share": float((difference > MISMATCH_THRESHOLD_NATS).float().mean()),
    }


def _level_weights(algorithm: AlgorithmConfig) -> dict[str, float]:
    """What a level counts for anywhere in the loss: one that counts nowhere is not scored."""
    return {
        "episode_weight": algorithm.episode_skill_weight or algorithm.distillation_coefficient,
        "step_weight": algorithm.step_skill_weight or algorithm.distillation_coefficient,
    }


def _levels(algorithm: AlgorithmConfig) -> tuple[str, ...]:
    if algorithm.name != "opid":
        return ()
    return tuple(level for level in ("episode", "step") if _level_weights(algorithm)[f"{level}_weight"])


def _sequence(sample: Sample, prompt_ids: Sequence[int]) -> TokenSequence:
    return TokenSequence(np.asarray(prompt_ids), np.asarray(sample.response_ids))


def _teacher_mask(sample: Sample, algorithm: AlgorithmConfig) -> Tensor:
    scored = any(getattr(sample.teacher_prompts, level) is not None for level in _levels(algorithm))
    return torch.full((len(sample.response_ids),), float(scored))


def _split(flat: Tensor, batch: Batch) -> list[np.ndarray]:
    return np.split(flat.numpy(), np.cumsum(batch.lengths.numpy())[:-1])


def _scores(
    batch: Batch, wanted: Sequence[tuple[str, int]], values: Sequence[np.ndarray], algorithm: AlgorithmConfig
) -> Scores:
    starts = np.concatenate([[0], np.cumsum(batch.lengths.numpy())])
    flat: dict[str, Tensor] = {}
    mask: dict[str, Tensor] = {}
    for (name, index), logprobs in zip(wanted, values, strict=True):
        tokens = slice(starts[index], starts[index + 1])
        flat.setdefault(name, torch.zeros(int(starts[-1])))[tokens] = torch.from_numpy(logprobs)
        mask.setdefault(name, torch.zeros(int(starts[-1])))[tokens] = 1.0
    weights = {"episode": algorithm.episode_skill_weight, "step": algorithm.step_skill_weight}
    teachers = {
        level: TeacherScores((flat[level] - flat["old"]) * mask[level], mask[level], weights[level])
        for level in _levels(algorithm)
        if level in flat
    }
    return Scores(flat["old"], flat.get("reference"), teachers)
