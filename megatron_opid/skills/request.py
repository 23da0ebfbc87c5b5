"""The question put to a language model about one finished episode."""

from __future__ import annotations

from envs.base import is_admissible
from rollout.trajectory import Step, Trajectory

# Longer observations (search results, shop pages) keep their beginning; a request must fit a small model's context.
MAX_OBSERVATION_CHARACTERS = 1500

_TASK = """You review one finished episode of an agent in a text environment and write hindsight skills: short advice
that would have helped this agent, had it stood in the agent's prompt from the start.

Answer with one JSON object and nothing else:
{"summary": "...", "episode_skill": "...", "step_skills": [{"step": 0, "skill": "..."}]}

summary: one or two sentences on what happened.
episode_skill: %(episode)s
step_skills: %(steps)s

Use the names of things exactly as the episode spells them. Rely only on what the episode shows. Write to an agent that
is about to act: do not speak of the review, of the episode, or of its end."""

_SUCCESS = """the workflow that worked, as a few imperative clauses in the order in which they should be done, with the
facts that were found on the way (what is where) and without the detours. The episode SUCCEEDED: keep what did it."""

_FAILURE = """what to avoid and what to do instead, as a few imperative clauses, with the facts that were found on the
way (what is where, what is not where). The episode FAILED: name the mistake that cost the most, and its remedy."""

_STEPS = """at most %d entries, only for the steps that decided the outcome: a choice to repeat, or a mistake with what
should have been done at that very step given what the agent could know by then. "step" is the number printed before
the step; the first step is number 0; use each number at most once. "skill" is one sentence. Use [] if no step stands
out."""


def build_messages(trajectory: Trajectory, success: bool, max_step_skills: int) -> list[dict[str, str]]:
    """A chat of two messages that asks for the JSON of `parse.SCHEMA`. Steps are numbered from 0."""
    task = _TASK % {
        "episode": _SUCCESS if success else _FAILURE,
        "steps": _STEPS % max_step_skills if max_step_skills else "always [].",
    }
    outcome = "SUCCESS" if success else "FAILURE"
    lines = [
        f"Task: {trajectory.goal}",
        "",
        *(_describe(index, step) for index, step in enumerate(trajectory.steps)),
        f"Outcome after {len(trajectory.steps)} steps: {outcome}",
    ]
    return [{"role": "system", "content": task}, {"role": "user", "content": "\n".join(lines)}]


def _describe(index: int, step: Step) -> str:
    observation = step.observation
    if len(observation) > MAX_OBSERVATION_CHARACTERS:
        observation = observation[:MAX_OBSERVATION_CHARACTERS] + " [...]"
    return f"Step {index}\nObservation: {observation}\nAction: {step.action}{_remark(step)}\n"


def _remark(step: Step) -> str:
    if not step.valid:
        return "   (malformed answer)"
    if step.admissible and not is_admissible(step.action, step.admissible):
        return "   (not possible here)"
    return ""
