"""Shows a saved trajectory on the terminal, and checks that its actions still lead to the same observations.

    python -m rollout.replay FILE [--index N | --uid UID] [--tokenizer DIR] [--verify] [--env-options JSON]

Exit code 1: a verified episode went otherwise, or the file has no such trajectory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import envs.base
from envs.base import EnvironmentPackage, Observation
from rollout.record import read_trajectories
from rollout.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COLOURS = {"title": "1", "observation": "36", "prompt": "2", "action": "33", "skill": "35", "good": "32", "bad": "31"}


def main() -> int:
    arguments = _arguments()
    if not arguments.file.is_file():
        print(f"{arguments.file} does not exist; runs keep theirs in RUN/trajectories", file=sys.stderr)
        return 2
    chosen = list(_choose(read_trajectories(arguments.file), arguments.index, arguments.uid))
    if not chosen:
        print(f"{arguments.file} has no trajectory {arguments.uid or arguments.index}", file=sys.stderr)
        return 1
    tokenizer = _tokenizer(arguments.tokenizer) if arguments.tokenizer else None
    for trajectory in chosen:
        print("\n".join(show(trajectory, tokenizer, coloured=sys.stdout.isatty())))
    if not arguments.verify:
        return 0
    try:
        differences = [difference for trajectory in chosen for difference in _verify(trajectory, arguments.env_options)]
    except ValueError as error:
        print(f"--env-options: {error}", file=sys.stderr)
        return 2
    print("\n".join(differences) or f"verified: {len(chosen)} episode(s) went the same way")
    return 1 if differences else 0


def show(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase | None, *, coloured: bool) -> Iterator[str]:
    """The episode as lines of text; with a tokenizer the prompts too."""

    def paint(colour: str, text: str) -> str:
        return f"\033[{_COLOURS[colour]}m{text}\033[0m" if coloured else text

    outcome = trajectory.failure or ("won" if trajectory.success else "lost")
    yield paint("title", f"{trajectory.uid}  {trajectory.category}  {trajectory.goal}")
    if trajectory.skills:
        yield paint("skill", f"episode skill: {trajectory.skills.episode}")
    for index, step in enumerate(trajectory.steps):
        yield paint("title", f"--- step {index}, weights {step.weight_version}, {len(step.prompt_ids)} prompt tokens")
        if tokenizer is not None:
            yield paint("prompt", tokenizer.decode(step.prompt_ids))
        yield paint("observation", step.observation)
        if trajectory.skills and index in trajectory.skills.steps:
            yield paint("skill", f"step skill: {trajectory.skills.steps[index]}")
        yield f"{step.response}  [{sum(step.response_logprobs):.2f} nats, {len(step.response_ids)} tokens]"
        yield paint("action" if step.valid else "bad", f"> {step.action}{'' if step.valid else '  (invalid)'}")
    yield paint("good" if trajectory.success else "bad", f"=== {outcome}, score {trajectory.score:g}")


def differences(trajectory: Trajectory, package: EnvironmentPackage, options: Mapping[str, Any]) -> Iterator[str]:
    """Play the recorded actions again; one line for every observation, reward or end that is not the recorded one."""
    environment = package.make_environment(options)
    try:
        observation, won = environment.reset(trajectory.task).observation, False
        for index, step in enumerate(trajectory.steps):
            where = f"{trajectory.uid} step {index}"
            recorded = Observation(step.observation, step.admissible, step.affordances)
            if observation != recorded:
                yield f"{where}: recorded {step.observation!r}, now {observation.text!r} (or the actions differ)"
            outcome = environment.step(step.action)
            observation, won = outcome.observation, outcome.done and outcome.won
            if outcome.reward != step.reward:
                yield f"{where}: recorded reward {step.reward}, now {outcome.reward}"
        if trajectory.failure is None and won != trajectory.success:
            yield f"{trajectory.uid}: recorded success {trajectory.success}, now {won}"
    finally:
        environment.close()


def _verify(trajectory: Trajectory, options: Mapping[str, Any]) -> Iterator[str]:
    return differences(trajectory, envs.base.load(trajectory.task.env), options)


def _choose(trajectories: Iterator[Trajectory], index: int | None, uid: str | None) -> Iterator[Trajectory]:
    """All, or the one at `index`, or those called `uid`."""
    for position, trajectory in enumerate(trajectories):
        if index in (None, position) and uid in (None, trajectory.uid):
            yield trajectory


def _tokenizer(path: Path) -> PreTrainedTokenizerBase:
    # Slow to import, and most replays need no tokenizer.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, local_files_only=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON lines of trajectories, .gz or not")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--index", type=int, help="the N-th trajectory of the file, from 0")
    which.add_argument("--uid", help="the trajectory of that name")
    parser.add_argument("--tokenizer", type=Path, help="a Hugging Face directory: prompts are shown decoded")
    parser.add_argument("--verify", action="store_true", help="play the actions again and compare observations")
    parser.add_argument("--env-options", type=json.loads, default={}, help='the config\'s env section: {"data": "..."}')
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
