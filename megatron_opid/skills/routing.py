"""Which skills each step is scored under, at this point of the training; and the control that shuffles them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_opid.config import SkillsConfig
from megatron_opid.skills.outcome import succeeded
from rollout.trajectory import HindsightSkills, Trajectory, with_skills


@dataclass(frozen=True)
class StepRoute:
    """The skills that one step is scored under, each in a prompt of its own; "" = not scored under that level."""

    episode_skill: str = ""
    step_skill: str = ""


def is_scheduled(trajectory: Trajectory, training_step: int, config: SkillsConfig) -> bool:
    """Whether this episode's skills count at `training_step` (from 0); if not, it need not be analyzed either.

    Skills count from `start_after_steps` on and before `stop_after_steps`; with `failed_only`, or from
    `failed_only_after_steps` on, only those of failed episodes. An episode that broke off by a fault never counts.
    """
    if trajectory.failure is not None or not trajectory.steps:
        return False
    if training_step < (config.start_after_steps or 0):
        return False
    if config.stop_after_steps is not None and training_step >= config.stop_after_steps:
        return False
    failed_only_after = config.failed_only_after_steps
    failed_only = config.failed_only or (failed_only_after is not None and training_step >= failed_only_after)
    return not (failed_only and succeeded(trajectory, config.success_threshold))


def route(
    trajectory: Trajectory, training_step: int, config: SkillsConfig, episode_weight: float, step_weight: float
) -> tuple[StepRoute, ...]:
    """One StepRoute per step of the episode.

    `step_priority`: a step with a skill of its own has that one, any other the episode's. `additive`: both. A level of
    weight 0 is then left out, which changes no number, as its term is multiplied by 0: under `step_priority` a step
    with its own skill does not fall back to the episode's because `step_weight` is 0.
    """
    if trajectory.skills is None or not is_scheduled(trajectory, training_step, config):
        return (StepRoute(),) * len(trajectory.steps)
    routes = []
    for index in range(len(trajectory.steps)):
        step_skill = trajectory.skills.steps.get(index, "")
        has_priority = config.routing == "step_priority" and step_skill != ""
        episode_skill = "" if has_priority else trajectory.skills.episode
        routes.append(StepRoute(episode_skill if episode_weight else "", step_skill if step_weight else ""))
    return tuple(routes)


def shuffle_skills(trajectories: Sequence[Trajectory], seed: int) -> list[Trajectory]:
    """The control: the same episodes with the skills of other games.

    The same `seed` gives the same result. Skilled episodes, ordered by group, take the skills of the one as many places
    further as the largest group has members: no episode keeps its own, and none gets those of its own game unless one
    group has more than half of all. Step skills for steps that the receiver does not have are dropped.
    """
    generator = random.Random(seed)
    by_group: dict[str, list[int]] = {}
    for index, trajectory in enumerate(trajectories):
        if trajectory.skills is not None:
            by_group.setdefault(trajectory.group, []).append(index)
    groups = list(by_group.values())
    generator.shuffle(groups)
    for members in groups:
        generator.shuffle(members)
    skilled = [index for members in groups for index in members]
    distance = max(map(len, groups), default=0)
    distance = distance if distance < len(skilled) else 1
    shuffled = list(trajectories)
    for receiver, giver in zip(skilled, skilled[distance:] + skilled[:distance], strict=True):
        skills = _fit(trajectories[giver].skills, len(trajectories[receiver].steps))
        shuffled[receiver] = with_skills(trajectories[receiver], skills)
    return shuffled


def _fit(skills: HindsightSkills, num_steps: int) -> HindsightSkills:
    steps = {index: text for index, text in skills.steps.items() if index < num_steps}
    return HindsightSkills(skills.summary, skills.episode, steps)
