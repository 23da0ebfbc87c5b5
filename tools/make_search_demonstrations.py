"""Makes conversations for the cold start from an expert's answers to generated questions.

    python -m tools.make_search_demonstrations --data DIR --out demonstrations.jsonl --episodes 3000 --seed 0

DIR comes from `tools.prepare_search_qa generated`. The expert errs: in most episodes it searches for the first best
thing, and in many it answers before it knows, so the model starts with habits that training has to unlearn. Beside the
plain prompts there are prompts with a skill, made in hindsight from the same episode by the rules analyzer, whose
answers are what the skill makes right: so the model learns to read skills.
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
from megatron_opid.config import load
from rollout.trajectory import Trajectory
from tools.demonstrations import Played, conversation, play, write_episodes
from tools.extras import imports_of

with imports_of("search", __name__):
    from envs import search
    from envs.search.expert import Expert, Noise
    from envs.search.facts import Fact, parse_question
    from envs.search.plan import SEARCH, facts_of, next_action
    from envs.search.prompt import answer_action, parse_action, search_action
    from megatron_opid.skills.search_rules import search_skills


@dataclass(frozen=True)
class Mixture:
    """How the expert errs. A `clean_share` of the episodes has no errors; the others draw a rate of careless queries
    from [0, `max_careless_query`] and have the other rate."""

    clean_share: float
    max_careless_query: float
    hasty_answer: float

    def draw(self, rng: Random) -> Noise:
        if rng.random() < self.clean_share:
            return Noise()
        return Noise(rng.uniform(0, self.max_careless_query), self.hasty_answer)


def respond(action: str) -> str:
    """The response of an action: its tags, and a blank before the words, as words have it in the prompt."""
    kind, words = parse_action(action)
    return f"<{kind}> {words}</{kind}>"


def conversations(
    trajectory: Trajectory, history_length: int, style: str, max_step_skills: int
) -> Iterator[dict[str, Any]]:
    """The plain prompts with the expert's actions, then the prompts with skills and the actions they make right."""
    converse = partial(conversation, trajectory, history_length=history_length, style=style, respond=respond)
    skills = search_skills(trajectory, trajectory.success, max_step_skills)
    chain, known = parse_question(trajectory.goal), list[Fact]()
    for index, step in enumerate(trajectory.steps):
        yield converse(index, step.action)
        known += facts_of(step.observation)
        kind, words = next_action(chain, known)
        right = search_action(words) if kind == SEARCH else answer_action(words)
        yield converse(index, right, episode_skill=skills.episode)
        if index in skills.steps:
            yield converse(index, right, step_skill=skills.steps[index])


def main(arguments: list[str] | None = None) -> int:
    """Write the file and print what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--experiment", default="demo_search", help="whose prompts and lengths")
    parser.add_argument("--episodes", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-step-skills", type=int, default=3)
    parser.add_argument("--clean-share", type=float, default=0.3)
    parser.add_argument("--max-careless-query", type=float, default=0.3)
    parser.add_argument("--hasty-answer", type=float, default=0.4)
    options = parser.parse_args(arguments)
    env = load([f"experiment={options.experiment}", f"env.data={options.data}"]).env
    rng = Random(options.seed)
    mixture = Mixture(options.clean_share, options.max_careless_query, options.hasty_answer)
    try:
        environment = search.make_environment(env.package_options)
        num_questions = search.num_tasks(env.train_split, env.package_options)
    except ValueError as error:
        print(f"make_search_demonstrations: {error}", file=sys.stderr)
        return 2

    def episode() -> Played:
        expert = Expert(rng.getrandbits(32), mixture.draw(rng))
        task = Task("search", rng.randrange(num_questions), 0, env.train_split)
        trajectory = play(environment, task, expert, env.max_steps)
        return trajectory, conversations(trajectory, env.history_length, env.prompt_style, options.max_step_skills)

    with closing(environment):
        write_episodes(options.out, options.episodes, episode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
