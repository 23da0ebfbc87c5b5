"""Where old log-probs come from: what must be the same when the passes are fewer."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_opid.actor.actor import Actor
from megatron_opid.actor.samples import OnPolicySample, PolicySample
from megatron_opid.algorithm.advantages import TeacherLogprobs
from megatron_opid.algorithm.old_policy import OldPolicyRules, old_policy_terms
from megatron_opid.batch import Batch, Sample
from megatron_opid.config import AlgorithmConfig
from megatron_opid.learning import learn, score
from megatron_opid.skills.prompting import TeacherPrompts
from tests.actor.tiny_actors import COEFFICIENTS, actor_of, score_policy
from tests.actor.tiny_models import make_sequences

ALGORITHM = AlgorithmConfig(
    episode_skill_weight=0.3,
    step_skill_weight=0.2,
    teacher_clip=0.5,
    state_weight=0.5,
    distillation_coefficient=0.1,
    aggregation="seq-mean-token-mean",
)


def reuse_case(models: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One update whose old log-probs are its own forward's, and the same update with old log-probs scored before."""
    return {
        "recompute": first_update(models, options, reuses=False),
        "reuse": first_update(models, options, reuses=True),
    }


def first_update(models: Path, options: dict[str, Any], *, reuses: bool) -> dict[str, Any]:
    """Two teachers, the second scoring every other sample, clipped; a correction; the distillation loss."""
    rules = OldPolicyRules((0.3, 0.2), teacher_clip=0.5, distills=True, correction="truncate", correction_high=1.2)
    generator, sequences = np.random.default_rng(1), make_sequences(11)
    lengths = [len(sequence.response_ids) for sequence in sequences]
    masks = [np.stack([np.ones(n), np.full(n, float(number % 2))], axis=1) for number, n in enumerate(lengths)]
    with actor_of(models, "qwen3_tied", **options) as actor:
        known = [
            OnPolicySample(
                sequence=sequence,
                advantages=generator.normal(size=n),
                reference_logprobs=generator.normal(size=n) - 5,
                engine_logprobs=generator.normal(size=n) - 5,
                teacher_logprobs=(generator.normal(size=(n, 2)) - 5) * mask,
                teacher_masks=mask,
                distillation_weights=np.full(n, 1 / sum(lengths)),
            )
            for sequence, n, mask in zip(sequences, lengths, masks, strict=True)
        ]
        samples = known if reuses else with_old_logprobs(known, score_policy(actor, sequences), rules)
        result = actor.update(samples, COEFFICIENTS, rules=rules)
        weights = weights_digest(actor)
    logprobs = [values.tolist() for values in result.logprobs]
    return {"statistics": result.statistics, "weights": weights, "logprobs": logprobs}


def with_old_logprobs(
    known: list[OnPolicySample], scores: list[np.ndarray], rules: OldPolicyRules
) -> list[PolicySample]:
    samples = []
    for sample, logprobs_before in zip(known, scores, strict=True):
        old, outcome, engine, logprobs, masks = (
            torch.as_tensor(np.asarray(values, dtype=np.float32))
            for values in (
                logprobs_before,
                sample.advantages,
                sample.engine_logprobs,
                sample.teacher_logprobs,
                sample.teacher_masks,
            )
        )
        teachers = [
            TeacherLogprobs(logprobs[:, n], masks[:, n], weight) for n, weight in enumerate(rules.teacher_weights)
        ]
        made = old_policy_terms(old, outcome, teachers, engine, rules)
        samples.append(
            PolicySample(
                sample.sequence,
                old_logprobs=logprobs_before,
                reference_logprobs=sample.reference_logprobs,
                distillation_weights=sample.distillation_weights,
                **{name: value.numpy() for name, value in vars(made).items()},
            )
        )
    return samples


def learning_case(models: Path) -> dict[str, Any]:
    """One training step's scoring and update, by where the old log-probs come from.

    `engine`: the engine's log-probs are exactly the trainer's; `corrected_*`: they are not, and that is corrected.
    """
    with actor_of(models, "qwen3_tied") as actor:
        exact = np.concatenate(score_policy(actor, make_sequences(11)))
    off = exact + np.random.default_rng(2).normal(size=len(exact)).astype(np.float32) * 0.1
    corrected = replace(ALGORITHM, correction="mask", correction_high=1.1)
    return {
        "recompute": learn_once(models, ALGORITHM, exact),
        "recompute_before_skills": learn_once(models, ALGORITHM, exact, in_two_passes=True),
        "reuse": learn_once(models, replace(ALGORITHM, old_logprob="reuse"), exact),
        "engine": learn_once(models, replace(ALGORITHM, old_logprob="engine"), exact),
        "corrected_recompute": learn_once(models, corrected, off),
        "corrected_reuse": learn_once(models, replace(corrected, old_logprob="reuse"), off),
    }


def learn_once(
    models: Path, algorithm: AlgorithmConfig, engine_logprobs: np.ndarray, *, in_two_passes: bool = False
) -> dict[str, Any]:
    with actor_of(models, "qwen3_tied") as actor:
        batch = make_batch(engine_logprobs)
        updates = [np.arange(len(batch.samples))]
        plain = replace(batch, samples=tuple(replace(s, teacher_prompts=TeacherPrompts()) for s in batch.samples))
        scored = score(actor, plain, updates, algorithm) if in_two_passes else None
        scores = score(actor, batch, updates, algorithm, scored)
        learned = learn(actor, batch, scores, updates, algorithm)
        return {
            "scored_before": scores.old is not None,
            "statistics": learned.statistics,
            "old": learned.scores.old.tolist(),
            "advantages": learned.advantages.tolist(),
            "trainer_logprobs": learned.trainer_logprobs.tolist(),
            "weights": weights_digest(actor),
        }


def make_batch(engine_logprobs: np.ndarray) -> Batch:
    """Eleven steps of three trajectories of one group; every other one with an episode skill, every third a step's."""
    sequences, teachers = make_sequences(11), make_sequences(11, seed=5)
    bounds = np.cumsum([0, *(len(sequence.response_ids) for sequence in sequences)])
    samples = tuple(
        Sample(
            trajectory=number // 4,
            index=number % 4,
            prompt_ids=tuple(sequence.prompt_ids),
            response_ids=tuple(sequence.response_ids),
            engine_logprobs=tuple(engine_logprobs[bounds[number] : bounds[number + 1]].tolist()),
            teacher_prompts=TeacherPrompts(
                episode=tuple(teacher.prompt_ids) if number % 2 == 0 else None,
                step=tuple(teacher.prompt_ids[:1]) if number % 3 == 0 else None,
            ),
            score=float(number // 4 == 1),
            reward=float(number % 4 == 3),
        )
        for number, (sequence, teacher) in enumerate(zip(sequences, teachers, strict=True))
    )
    owners = torch.tensor([sample.trajectory for sample in samples])
    lengths = torch.tensor([len(sample.response_ids) for sample in samples])
    states = torch.tensor([sample.index for sample in samples])
    return Batch((), samples, lengths, torch.zeros_like(owners), owners, states)


def weights_digest(actor: Actor) -> dict[str, str]:
    return {name: hashlib.sha256(tensor.cpu().float().numpy().tobytes()).hexdigest() for name, tensor in actor.export()}
