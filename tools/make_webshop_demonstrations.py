"""Makes conversations for the cold start from a shopper's visits to a WebShop catalogue.

    python -m tools.make_webshop_demonstrations --data CATALOGUE_DIR --out demonstrations.jsonl --episodes 2000 --seed 0

The shopper errs: in most episodes it takes products carelessly and leaves out options, so the model starts with habits
that training has to unlearn. Its invalid actions are played but never written down. Beside the plain prompts there are
prompts with a skill, made in hindsight from the same episode by the rules analyzer, whose answers are what the skill
makes right: so the model learns to read skills.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from envs.base import Task
from rollout.trajectory import Trajectory
from tools.demonstrations import Played, conversation, play, write_episodes
from tools.extras import imports_of

with imports_of("webshop", __name__):
    from envs import webshop
    from envs.webshop.expert import Expert, Noise
    from envs.webshop.facts import ITEM, RESULTS, SEARCH, GoalParts, PageFacts, parse_goal
    from envs.webshop.pages import PREVIOUS
    from envs.webshop.plan import Visit, replay, right_actions
    from megatron_opid.skills.webshop_rules import Advice, advise, webshop_skills

SPLIT = "train"


@dataclass(frozen=True)
class Mixture:
    """How the shopper errs. A `clean_share` of the episodes has no errors; the others draw a rate of random actions
    from [0, `max_random_action`] and have the other rates."""

    clean_share: float
    max_random_action: float
    invalid_action: float
    careless_choice: float
    forget_option: float

    def draw(self, rng: Random) -> Noise:
        if rng.random() < self.clean_share:
            return Noise()
        random_action = rng.uniform(0, self.max_random_action)
        return Noise(random_action, self.invalid_action, self.careless_choice, self.forget_option)


def conversations(
    trajectory: Trajectory, history_length: int, style: str, max_step_skills: int
) -> Iterator[dict[str, Any]]:
    """The plain prompts with the shopper's actions, then the prompts with skills and the actions they make right."""
    converse = partial(conversation, trajectory, history_length=history_length, style=style)
    for index, step in enumerate(trajectory.steps):
        if step.valid:
            yield converse(index, step.action)
    skills = webshop_skills(trajectory, trajectory.success, max_step_skills)
    if skills is None:
        return
    goal = parse_goal(trajectory.goal)
    known = replay(goal, ((step.observation, step.admissible, step.action) for step in trajectory.steps))
    advice = advise(goal, trajectory, known, trajectory.success)
    for index, (visit, page) in enumerate(known):
        action = advised_action(goal, advice, visit, page)
        if action:
            yield converse(index, action, episode_skill=skills.episode)
        if index in skills.steps:
            name, _, argument = skills.steps[index].removeprefix("now ").removesuffix(" .").partition(" ")
            yield converse(index, f"{name}[{argument}]", step_skill=skills.steps[index])


def advised_action(goal: GoalParts, advice: Advice, visit: Visit, page: PageFacts) -> str | None:
    """What the episode skill makes right at a step; None if it has nothing to say there."""
    if page.kind == SEARCH:
        return f"search[{advice.query}]"
    if page.kind == RESULTS and advice.product in (hit.asin for hit in page.hits):
        return f"click[{advice.product}]"
    if page.kind == ITEM and advice.product and visit.item != advice.product:
        return f"click[{PREVIOUS}]"
    return next(iter(right_actions(goal, visit, page)), None)


def main(arguments: list[str] | None = None) -> int:
    """Write the file and print what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--style", default="compact", choices=("compact", "full"))
    parser.add_argument("--history", type=int, default=4)
    parser.add_argument("--max-steps", type=int, default=10)
    parser.add_argument("--max-step-skills", type=int, default=3)
    parser.add_argument("--clean-share", type=float, default=0.4)
    parser.add_argument("--max-random-action", type=float, default=0.1)
    parser.add_argument("--invalid-action", type=float, default=0.02)
    parser.add_argument("--careless-choice", type=float, default=0.2)
    parser.add_argument("--forget-option", type=float, default=0.2)
    options = parser.parse_args(arguments)
    rng = Random(options.seed)
    rates = (options.max_random_action, options.invalid_action, options.careless_choice, options.forget_option)
    mixture = Mixture(options.clean_share, *rates)
    data = {"data": str(options.data)}
    try:
        num_goals = webshop.num_tasks(SPLIT, data)
    except ValueError as error:
        print(f"make_webshop_demonstrations: {error}", file=sys.stderr)
        return 2
    environment = webshop.make_environment(data)

    def episode() -> Played:
        expert = Expert(rng.getrandbits(32), mixture.draw(rng))
        task = Task("webshop", rng.randrange(num_goals), 0, SPLIT)
        trajectory = play(environment, task, expert, options.max_steps)
        return trajectory, conversations(trajectory, options.history, options.style, options.max_step_skills)

    with closing(environment):
        write_episodes(options.out, options.episodes, episode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
