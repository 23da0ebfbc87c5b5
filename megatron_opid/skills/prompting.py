"""Teacher prompts: the prompt of a step as it was shown, with a skill in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envs.base import load
from megatron_opid.skills.routing import StepRoute
from rollout.prompt import encode_prompt
from rollout.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TeacherPrompts:
    """Prompt ids of one step under the episode skill and under the step skill; None where it is not scored so.

    `num_cut` counts those of the two that were over-long and lost their beginning.
    """

    episode: tuple[int, ...] | None = None
    step: tuple[int, ...] | None = None
    num_cut: int = 0


def teacher_prompts(
    trajectory: Trajectory,
    routes: Sequence[StepRoute],
    tokenizer: PreTrainedTokenizerBase,
    *,
    style: str,
    history_length: int,
    max_prompt_tokens: int,
) -> tuple[TeacherPrompts, ...]:
    """One TeacherPrompts per step. `style` and `history_length` are the rollout's, so that only the skill differs.

    Over-long prompts lose their beginning, where the episode skill stands: `max_prompt_tokens` is the rollout's and the
    room for a skill.

    Raises:
        ValueError: `routes` is not one per step.
    """
    render = load(trajectory.task.env).render_prompt

    def encode(index: int, **skill: str) -> tuple[int, ...]:
        view = trajectory.view(index, history_length)
        return encode_prompt(tokenizer, render(view, style=style, **skill), max_prompt_tokens + 1)

    def prompts(index: int, route: StepRoute) -> TeacherPrompts:
        found = {"episode": {"episode_skill": route.episode_skill}, "step": {"step_skill": route.step_skill}}
        encoded = {level: encode(index, **skill) for level, skill in found.items() if any(skill.values())}
        num_cut = sum(len(ids) > max_prompt_tokens for ids in encoded.values())
        return TeacherPrompts(**{level: ids[-max_prompt_tokens:] for level, ids in encoded.items()}, num_cut=num_cut)

    return tuple(prompts(index, route) for index, (_, route) in enumerate(zip(trajectory.steps, routes, strict=True)))
