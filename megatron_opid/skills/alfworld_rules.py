"""Rules that write ALFWorld skills in the game's own words, short enough for a tiny model to read.

An episode skill is the workflow: `find mug . then clean mug 1 with sinkbasin 1 . then move mug 1 to shelf 1 .` It does
not say where the mug was: skills that did taught a small model the places of single rooms, at the cost of success in
rooms that it had not seen (README). A step skill names one command: `now take mug 1 from cabinet 2 .`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from envs.alfworld.facts import GoalParts, class_of, parse_goal
from envs.alfworld.knowledge import Knowledge, at_the_end, replay
from envs.alfworld.plan import APPLIANCES, is_delivered, right_actions, search_actions
from rollout.trajectory import HindsightSkills, Step, Trajectory

# Which critical steps come first when there are more than may get a skill.
_MISSED, _IMPOSSIBLE, _DECISIVE = range(3)


def alfworld_skills(trajectory: Trajectory, success: bool, max_step_skills: int) -> HindsightSkills | None:
    """Skills from what the episode showed; None if the goal is in free words."""
    goal = parse_goal(trajectory.goal)
    if goal is None or not trajectory.steps:
        return None
    known = replay((step.observation, step.admissible) for step in trajectory.steps)
    played = [(step.observation, step.action) for step in trajectory.steps]
    episode = _episode_skill(goal, at_the_end(known[-1], played, success))
    summary = f"{'won' if success else 'lost'} after {len(trajectory.steps)} steps: {trajectory.goal}"
    return HindsightSkills(summary, episode, _step_skills(goal, trajectory.steps, known, success, max_step_skills))


def _episode_skill(goal: GoalParts, knowledge: Knowledge) -> str:
    """What is to be done, with the objects that were found and the places that were used or seen."""
    targets = _targets(goal, knowledge)
    named = targets + [goal.target] * (goal.count - len(targets))
    actions = [action for name in named for action in _rest_of_plan(goal, knowledge, name)]
    return " ".join([f"find {goal.target} ."] + [f"then {action} ." for action in actions])


def _targets(goal: GoalParts, knowledge: Knowledge) -> list[str]:
    """The objects to speak of, at most `goal.count`: those that got furthest, then those seen first."""

    def progress(name: str) -> tuple[bool, bool, bool]:
        is_processed = goal.processing in knowledge.processed.get(name, ())
        return is_delivered(goal, knowledge, name), is_processed, name == knowledge.held

    return sorted(knowledge.objects(goal.target), key=progress, reverse=True)[: goal.count]


def _rest_of_plan(goal: GoalParts, knowledge: Knowledge, name: str) -> list[str]:
    """The commands for an object once it is in the hand."""
    if goal.lamp:
        return [f"use {(knowledge.objects(goal.lamp) or [goal.lamp])[0]}"]
    place = knowledge.where(name)
    if class_of(place) != goal.destination:
        place = _choose_place(goal.destination, knowledge)
    plan = [f"move {name} to {place}"]
    if goal.processing:
        plan.insert(0, f"{goal.processing} {name} with {_choose_place(APPLIANCES[goal.processing], knowledge)}")
    return plan


def _choose_place(class_name: str, knowledge: Knowledge) -> str:
    """The receptacle of a class that was used, else seen into last, else the lowest number known, else the class."""
    if class_name in knowledge.used:
        return knowledge.used[class_name]
    seen = [place for place in knowledge.searched if class_of(place) == class_name]
    return (seen[-1:] or knowledge.places(class_name) or [class_name])[0]


def _step_skills(
    goal: GoalParts, steps: Sequence[Step], known: Sequence[Knowledge], success: bool, max_step_skills: int
) -> dict[int, str]:
    """Skills of the most critical steps. Of a mistake repeated in a loop the first time counts most."""
    repeats: Counter[str] = Counter()
    critical = []
    for index, (step, knowledge) in enumerate(zip(steps, known, strict=True)):
        judged = _judge(goal, step, knowledge, success)
        if judged is not None:
            rank, command = judged
            critical.append((repeats[command], rank, index, f"now {command} ."))
            repeats[command] += 1
    chosen = sorted(critical)[:max_step_skills]
    return dict(sorted((index, text) for _, _, index, text in chosen))


def _judge(goal: GoalParts, step: Step, knowledge: Knowledge, success: bool) -> tuple[int, str] | None:
    """(rank, right command) of a critical step.

    Critical are an impossible action; a known target not taken, a processing forgotten, a wrong way with the target in
    the hand; on a success also what took, processed and delivered the target. The order of search is no mistake.
    """
    right = right_actions(goal, knowledge, step.admissible)
    if not step.valid or step.action not in step.admissible:
        commands = right or search_actions(knowledge, step.admissible)
        command = step.action if step.action in commands else next(iter(commands), None)
        return (_IMPOSSIBLE, command) if command else None
    if not right:
        return None
    if step.action not in right:
        return _MISSED, right[0]
    if success and not step.action.startswith(("go to ", "open ")):
        return _DECISIVE, step.action
    return None
