"""What the makers of demonstrations share: an expert's episode, conversations, and the file of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from envs.base import Environment, PromptView, Task, is_admissible, load
from rollout.trajectory import Step, Trajectory

Played = tuple[Trajectory, Iterable[dict[str, Any]]]


class Expert(Protocol):
    """Chooses actions from what an agent sees; a view of index 0 starts a new episode."""

    def act(self, view: PromptView) -> str: ...


def play(environment: Environment, task: Task, expert: Expert, max_steps: int) -> Trajectory:
    """One episode of the expert; its steps hold texts only, no tokens. A step is valid if its action was offered,
    or if the environment does not list its actions."""
    start = environment.reset(task)
    observation, steps, won = start.observation, [], False
    for index in range(max_steps):
        offered, affordances = observation.admissible, observation.affordances
        action = expert.act(PromptView(start.goal, (), index, observation.text, offered, affordances))
        outcome = environment.step(action)
        valid = not offered or is_admissible(action, offered)
        text, reward = observation.text, outcome.reward
        steps.append(Step(text, offered, (), (), (), "", action, valid, reward, 0, affordances=affordances))
        observation, won = outcome.observation, outcome.done and outcome.won
        if outcome.done:
            break
    uid, score = str(task.index), load(task.env).success_score(won)
    return Trajectory(task, uid, uid, start.goal, start.category, tuple(steps), won, score)


def tagged(action: str) -> str:
    """The response that acts without thinking."""
    return f"<think></think><action>{action}</action>"


def conversation(
    trajectory: Trajectory,
    index: int,
    action: str,
    *,
    history_length: int,
    style: str,
    respond: Callable[[str], str] = tagged,
    **skill: str,
) -> dict[str, Any]:
    """The prompt of step `index`, with a skill in it if one is given, and the response that stands for `action`."""
    render = load(trajectory.task.env).render_prompt
    prompt = render(trajectory.view(index, history_length), style=style, **skill)
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": respond(action)}]}


def write_episodes(out: Path, num_episodes: int, play_one: Callable[[], Played]) -> None:
    """Write the conversations of `num_episodes` episodes as JSON lines, whole or not at all, and print what they are.

    Args: play_one: an episode, and the conversations that it gives.
    """
    num_won = 0

    def conversations() -> Iterator[dict[str, Any]]:
        nonlocal num_won
        for _ in tqdm(range(num_episodes), desc="demonstrations", disable=not sys.stderr.isatty()):
            trajectory, lines = play_one()
            num_won += trajectory.success
            yield from lines

    count = _write(out, conversations())
    print(f"{out}: {count} conversations, the expert won {num_won / max(1, num_episodes):.0%}")


def _write(out: Path, conversations: Iterable[dict[str, Any]]) -> int:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    count = 0
    with partial.open("w", encoding="utf-8") as file:
        for line in conversations:
            file.write(json.dumps(line) + "\n")
            count += 1
    partial.replace(out)
    return count
