"""From trajectories to the packed batch of one training step, and from its scores to the advantages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from megatron_opid.algorithm.advantages import (
    TeacherLogprobs,
    discounted_returns,
    group_advantage,
    label_ids,
    per_token,
    state_advantage,
)
from megatron_opid.config import AlgorithmConfig
from megatron_opid.skills.prompting import TeacherPrompts
from rollout.trajectory import Trajectory

NO_TEACHER = TeacherPrompts()


@dataclass(frozen=True)
class Sample:
    """One agent step ready to train: step `index` of the batch's trajectory number `trajectory`.

    `teacher_prompts` are the skill-augmented prompts under which the same response is scored; `score` is the episode's
    outcome less the invalid-action penalty; `reward` the step's own.
    """

    trajectory: int
    index: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    engine_logprobs: tuple[float, ...]
    teacher_prompts: TeacherPrompts
    score: float
    reward: float


@dataclass(frozen=True)
class Batch:
    """The samples of one step, in trajectory order. Tensors: lengths int64 [n]; the labels int64 [n]."""

    trajectories: tuple[Trajectory, ...]
    samples: tuple[Sample, ...]
    lengths: Tensor
    groups: Tensor
    trajectory_ids: Tensor
    states: Tensor

    def with_teachers(
        self, trajectories: Sequence[Trajectory], prompts: Mapping[str, Sequence[TeacherPrompts]]
    ) -> Batch:
        """The same samples, of the `trajectories` with their skills, under these prompts as well.

        Args: prompts: trajectory uid -> the prompts of each of its steps; absent: no teacher for that trajectory.
        """
        by_uid = {trajectory.uid: trajectory for trajectory in trajectories}
        learned = tuple(by_uid[trajectory.uid] for trajectory in self.trajectories)

        def taught(sample: Sample) -> Sample:
            own = prompts.get(learned[sample.trajectory].uid)
            return sample if own is None else replace(sample, teacher_prompts=own[sample.index])

        return replace(self, trajectories=learned, samples=tuple(map(taught, self.samples)))

    def flat(self, name: str) -> Tensor:
        """A per-sample number as float32 [n], or `engine_logprobs` as float32 [T]."""
        if name == "engine_logprobs":
            return torch.tensor(
                np.concatenate([sample.engine_logprobs for sample in self.samples]), dtype=torch.float32
            )
        return torch.tensor([getattr(sample, name) for sample in self.samples], dtype=torch.float32)


@dataclass(frozen=True)
class Scores:
    """Log-probs of the batch's response tokens, float32 [T]; old: None until the update's forward pass makes them."""

    old: Tensor | None
    reference: Tensor | None
    teachers: Mapping[str, TeacherLogprobs]


def build_batch(trajectories: Sequence[Trajectory], invalid_action_penalty: float) -> Batch:
    """Pack every step of every trajectory that did not fail; without teachers.

    Raises:
        RuntimeError: every episode of the step failed; the message counts the causes.
    """
    learned = tuple(t for t in trajectories if t.failure is None and t.steps)
    if not learned:
        causes = sorted({t.failure or "no step" for t in trajectories})
        raise RuntimeError(f"all {len(trajectories)} episodes failed, nothing to train on: {'; '.join(causes)}")
    samples = tuple(
        Sample(
            trajectory=number,
            index=index,
            prompt_ids=step.prompt_ids,
            response_ids=step.response_ids,
            engine_logprobs=step.response_logprobs,
            teacher_prompts=NO_TEACHER,
            score=trajectory.score - invalid_action_penalty * (not step.valid),
            reward=step.reward,
        )
        for number, trajectory in enumerate(learned)
        for index, step in enumerate(trajectory.steps)
    )
    owners = [learned[sample.trajectory] for sample in samples]
    return Batch(
        trajectories=learned,
        samples=samples,
        lengths=torch.tensor([len(sample.response_ids) for sample in samples]),
        groups=label_ids([owner.group for owner in owners]),
        trajectory_ids=label_ids([owner.uid for owner in owners]),
        states=label_ids([o.steps[s.index].observation for o, s in zip(owners, samples, strict=True)]),
    )


def outcome_advantages(batch: Batch, algorithm: AlgorithmConfig) -> Tensor:
    """The advantage of every response token, float32 [T], without the skill term: outcome + state term."""
    group = group_advantage(batch.flat("score"), batch.groups, algorithm.advantage_mode)
    total = per_token(group, batch.lengths)
    if algorithm.name != "grpo" and algorithm.state_weight:
        returns = discounted_returns(batch.flat("reward"), batch.trajectory_ids, algorithm.gamma)
        state = state_advantage(returns, batch.groups, batch.states, algorithm.advantage_mode)
        total = total + algorithm.state_weight * per_token(state, batch.lengths)
    return total


def split_updates(num_samples: int, num_updates: int, seed: int, step: int) -> list[np.ndarray]:
    """A permutation of the samples cut into `num_updates` nearly equal parts (fewer if there are fewer samples)."""
    order = np.random.default_rng((seed, step)).permutation(num_samples)
    return [np.sort(part) for part in np.array_split(order, min(num_updates, num_samples))]
