"""What one training step does with its batch: score it, then update the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from megatron_opid.actor.actor import Actor
from megatron_opid.actor.samples import OnPolicySample, PolicySample, ScoreRequest, TokenSequence
from megatron_opid.actor.update import PolicyUpdate
from megatron_opid.algorithm.advantages import TeacherLogprobs
from megatron_opid.algorithm.losses import LossCoefficients, aggregation_weights
from megatron_opid.algorithm.old_policy import OldPolicyRules, old_policy_terms
from megatron_opid.batch import Batch, Sample, Scores, outcome_advantages
from megatron_opid.config import AlgorithmConfig, Config
from megatron_opid.skills.prompting import teacher_prompts
from megatron_opid.skills.routing import route
from rollout.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def with_skills(
    batch: Batch, trajectories: Sequence[Trajectory], tokenizer: PreTrainedTokenizerBase, step: int, config: Config
) -> Batch:
    """The batch with the skills of its `trajectories` at training step `step`: routed and rendered into prompts."""
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
    return batch.with_teachers(trajectories, prompts)


def score(
    actor: Actor, batch: Batch, updates: Sequence[np.ndarray], algorithm: AlgorithmConfig, scored: Scores | None = None
) -> Scores:
    """Old, reference and teacher log-probs of the batch's responses in one pass per weight set.

    The samples of update k are packed as that update will pack them, so the first update's ratio is exactly 1. Old
    log-probs are not scored where `algorithm.old_logprob` has them from elsewhere. `scored`: of the same batch before
    it had skills; then teachers alone are scored, to the same numbers.
    """
    asked = _plain_requests(batch, updates, algorithm) if scored is None else {}
    for level in _levels(algorithm):
        for index, sample in enumerate(batch.samples):
            prompt = getattr(sample.teacher_prompts, level)
            if prompt is not None:
                asked[level, index] = ScoreRequest(_sequence(sample, prompt), algorithm.teacher, batch=len(updates))
    flat, masks = _scored(actor, asked, batch)
    weights = {"episode": algorithm.episode_skill_weight, "step": algorithm.step_skill_weight}
    teachers = {
        level: TeacherLogprobs(flat[level], masks[level], weights[level])
        for level in _levels(algorithm)
        if level in flat
    }
    if scored is not None:
        return replace(scored, teachers=teachers)
    old = batch.flat("engine_logprobs") if algorithm.old_logprob == "engine" else flat.get("old")
    return Scores(old, flat.get("reference"), teachers)


def _plain_requests(
    batch: Batch, updates: Sequence[np.ndarray], algorithm: AlgorithmConfig
) -> dict[tuple[str, int], ScoreRequest]:
    """Under the prompts that the responses were sampled with: by name and number of the sample."""
    sequences = [_sequence(sample, sample.prompt_ids) for sample in batch.samples]
    asked: dict[tuple[str, int], ScoreRequest] = {}
    for number, part in enumerate(updates if algorithm.old_logprob == "recompute" else ()):
        asked |= {("old", index): ScoreRequest(sequences[index], batch=number) for index in part}
    if algorithm.kl_coefficient > 0:
        asked |= {("reference", i): ScoreRequest(sequence, "reference") for i, sequence in enumerate(sequences)}
    return asked


@dataclass(frozen=True)
class Learned:
    """What a step's updates were.

    statistics: means of the updates' statistics, weighted by samples, and the largest |ρ − 1| of all and of the first;
    scores: with the old log-probs; advantages [T]: what the tokens were trained with; trainer_logprobs [T]: under the
    weights before the step, NaN for tokens that were not scored and not in the first update.
    """

    statistics: dict[str, float]
    scores: Scores
    advantages: Tensor
    trainer_logprobs: Tensor


def learn(actor: Actor, batch: Batch, scores: Scores, updates: Sequence[np.ndarray], a: AlgorithmConfig) -> Learned:
    """One optimizer update per part of `updates`."""
    outcome, engine, teachers = (
        outcome_advantages(batch, a),
        batch.flat("engine_logprobs"),
        list(scores.teachers.values()),
    )
    rules = old_policy_rules(a, teachers)
    if scores.old is None:
        kind, terms = OnPolicySample, _on_policy_terms(outcome, engine, teachers, rules)
    else:
        made = old_policy_terms(scores.old, outcome, teachers, engine, rules)
        kind, terms = PolicySample, {"old_logprobs": scores.old, **vars(made)}
    terms["reference_logprobs"] = scores.reference
    arrays = {name: _split(value, batch) for name, value in terms.items() if value is not None}
    results = [
        actor.update(
            _samples(kind, batch, part, arrays, a), loss_coefficients(a), aggregation=a.aggregation, rules=rules
        )
        for part in updates
    ]
    first = _flat_of_samples(batch, updates[0], results[0].logprobs)
    if scores.old is None:
        scores = replace(scores, old=first)
        made = old_policy_terms(first, outcome, teachers, engine, rules)
    trainer = scores.old if a.old_logprob == "recompute" else first
    return Learned(_statistics(results, updates), scores, made.advantages, trainer)


def old_policy_rules(a: AlgorithmConfig, teachers: Sequence[TeacherLogprobs]) -> OldPolicyRules:
    """The constants of the terms that compare with the old policy, from the configuration."""
    return OldPolicyRules(
        teacher_weights=tuple(teacher.weight for teacher in teachers),
        normalize_teacher=a.normalize_teacher,
        teacher_clip=a.teacher_clip,
        distills=a.distillation_coefficient > 0,
        correction=a.correction,
        correction_low=a.correction_low,
        correction_high=a.correction_high,
    )


def _on_policy_terms(
    outcome: Tensor, engine: Tensor, teachers: Sequence[TeacherLogprobs], rules: OldPolicyRules
) -> dict[str, Tensor | None]:
    return {
        "advantages": outcome,
        "engine_logprobs": engine if rules.correction != "none" else None,
        "teacher_logprobs": torch.stack([teacher.logprobs for teacher in teachers], dim=1) if teachers else None,
        "teacher_masks": torch.stack([teacher.mask for teacher in teachers], dim=1) if teachers else None,
    }


def _samples(
    kind: type[PolicySample] | type[OnPolicySample],
    batch: Batch,
    part: np.ndarray,
    arrays: Mapping[str, Sequence[np.ndarray]],
    a: AlgorithmConfig,
) -> list[PolicySample] | list[OnPolicySample]:
    """The samples of one update."""
    chosen = {name: [values[index] for index in part] for name, values in arrays.items()}
    if a.distillation_coefficient:
        mask = torch.cat([_teacher_mask(batch.samples[index], a) for index in part])
        weights = aggregation_weights(batch.lengths[part], mask, a.aggregation) if mask.any() else mask
        chosen["distillation_weights"] = list(np.split(weights.numpy(), np.cumsum(batch.lengths[part])[:-1]))
    return [
        kind(
            _sequence(batch.samples[index], batch.samples[index].prompt_ids),
            **{name: values[place] for name, values in chosen.items()},
        )
        for place, index in enumerate(part)
    ]


def _statistics(results: Sequence[PolicyUpdate], updates: Sequence[np.ndarray]) -> dict[str, float]:
    statistics = [result.statistics for result in results]
    share = np.array([len(part) for part in updates]) / sum(len(part) for part in updates)
    means = {name: float(share @ [s[name] for s in statistics]) for name in statistics[0]}
    return means | {
        "max_ratio_deviation": max(s["max_ratio_deviation"] for s in statistics),
        "first_update_max_ratio_deviation": statistics[0]["max_ratio_deviation"],
    }


def _flat_of_samples(batch: Batch, part: np.ndarray, values: Sequence[np.ndarray]) -> Tensor:
    """[T], NaN but for the tokens of the samples in `part`."""
    flat = torch.full((int(batch.lengths.sum()),), torch.nan)
    places = flat.split(batch.lengths.tolist())
    for index, value in zip(part, values, strict=True):
        places[index].copy_(torch.from_numpy(value))
    return flat


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


def _scored(
    actor: Actor, asked: Mapping[tuple[str, int], ScoreRequest], batch: Batch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By name, the log-probs [T] of what is asked for of the samples, and which tokens [T] they are of."""
    starts = np.concatenate([[0], np.cumsum(batch.lengths.numpy())])
    flat: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for (name, index), logprobs in zip(asked, actor.score(list(asked.values())), strict=True):
        tokens = slice(starts[index], starts[index + 1])
        flat.setdefault(name, torch.zeros(int(starts[-1])))[tokens] = torch.from_numpy(logprobs)
        masks.setdefault(name, torch.zeros(int(starts[-1])))[tokens] = 1.0
    return flat, masks
