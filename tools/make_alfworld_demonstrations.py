"""Makes conversations for the cold start from an expert's play in generated ALFWorld games.

    python -m tools.make_alfworld_demonstrations --data GAMES_DIR --out demonstrations.jsonl --episodes 2000 --seed 0

The expert errs: in most episodes it takes random actions and forgets to clean, heat or cool, so the model starts with
habits that training has to unlearn. Its invalid actions are played but never written down. Beside the plain prompts
there are prompts with a skill, made in hindsight from the same episode by the rules analyzer, whose answers are what
the skill makes right: so the model learns to read skills, without which their shift of log-probs would mean nothing.
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

from envs import alfworld
from envs.alfworld.expert import Expert, Noise
from envs.alfworld.facts import parse_goal
from envs.alfworld.knowledge import replay
from envs.alfworld.plan import right_actions, search_actions
from envs.base import Task
from megatron_opid.skills.alfworld_rules import alfworld_skills
from rollout.trajectory import Trajectory
from tools.demonstrations import Played, conversation, play, write_episodes

SPLIT = "train"


@dataclass(frozen=True)
class Mixture:
    """How the expert errs. A `clean_share` of the episodes has no errors; the others draw a rate of random actions from
    [0, `max_random_action`] and forget the processing with probability `forget`."""

    clean_share: float
    max_random_action: float
    invalid_action: float
    forget: float

    def draw(self, rng: Random) -> Noise:
        if rng.random() < self.clean_share:
            return Noise()
        return Noise(rng.uniform(0, self.max_random_action), self.invalid_action, self.forget)


def conversations(
    trajectory: Trajectory, history_length: int, style: str, max_step_skills: int
) -> Iterator[dict[str, Any]]:
    """The plain prompts with the expert's actions, then the prompts with skills and the actions they make right."""
    converse = partial(conversation, trajectory, history_length=history_length, style=style)
    for index, step in enumerate(trajectory.steps):
        if step.valid:
            yield converse(index, step.action)
    skills = alfworld_skills(trajectory, trajectory.success, max_step_skills)
    if skills is None:
        return
    goal = parse_goal(trajectory.goal)
    known = replay((step.observation, step.admissible) for step in trajectory.steps)
    for index, step in enumerate(trajectory.steps):
        right = right_actions(goal, known[index], step.admissible)
        if right:
            yield converse(index, right[0], episode_skill=skills.episode)
        elif step.valid and step.action in search_actions(known[index], step.admissible):
            yield converse(index, step.action, episode_skill=skills.episode)
        if index in skills.steps:
            action = skills.steps[index].removeprefix("now ").removesuffix(" .")
            yield converse(index, action, step_skill=skills.steps[index])


def main(arguments: list[str] | None = None) -> int:
    """Write the file and print what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--style", default="compact", choices=("compact", "full"))
    parser.add_argument("--history", type=int, default=4)
    parser.add_argument("--max-steps", type=int, default=16)
    parser.add_argument("--max-step-skills", type=int, default=3)
    parser.add_argument("--clean-share", type=float, default=0.25)
    parser.add_argument("--max-random-action", type=float, default=0.3)
    parser.add_argument("--invalid-action", type=float, default=0.08)
    parser.add_argument("--forget", type=float, default=0.75)
    options = parser.parse_args(arguments)
    rng = Random(options.seed)
    mixture = Mixture(options.clean_share, options.max_random_action, options.invalid_action, options.forget)
    data = {"engine": "native", "data": str(options.data)}
    try:
        num_games = alfworld.num_tasks(SPLIT, data)
    except ValueError as error:
        print(f"make_alfworld_demonstrations: {error}", file=sys.stderr)
        return 2
    environment = alfworld.make_environment(data)

    def episode() -> Played:
        expert = Expert(rng.getrandbits(32), mixture.draw(rng))
        task = Task("alfworld", rng.randrange(num_games), 0, SPLIT)
        trajectory = play(environment, task, expert, options.max_steps)
        return trajectory, conversations(trajectory, options.history, options.style, options.max_step_skills)

    with closing(environment):
        write_episodes(options.out, options.episodes, episode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
