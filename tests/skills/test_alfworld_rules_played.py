"""Rules on games that are really played: what a skill claims must be so, and what it advises must win."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from envs import alfworld
from envs.alfworld.facts import parse_goal
from envs.alfworld.games import TASK_TYPES
from envs.alfworld.knowledge import Knowledge
from envs.alfworld.plan import right_actions, search_actions
from envs.base import Outcome, Task
from megatron_opid.skills.alfworld_rules import alfworld_skills
from rollout.trajectory import Step, Trajectory
from tests.skills.episodes import make_step
from tools.make_alfworld_games import make_games

NUM_GAMES = 12


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[alfworld.environment.AlfworldEnvironment]:
    data = tmp_path_factory.mktemp("games")
    make_games(data, seed=5, counts={"train": NUM_GAMES}, difficulty=1)
    environment = alfworld.make_environment({"engine": "native", "data": str(data)})
    yield environment
    environment.close()


def play(environment, index: int, error_rate: float, max_steps: int) -> Trajectory:
    """Act by the rules' own idea of what is right, with random and impossible actions in between."""
    task = Task("alfworld", index, 0, "train")
    rng = random.Random(index)
    start = environment.reset(task)
    goal, observation, knowledge, won = parse_goal(start.goal), start.observation, Knowledge(), False
    steps: list[Step] = []
    while len(steps) < max_steps and not won:
        admissible = observation.admissible
        knowledge.read(observation.text, admissible)
        good = right_actions(goal, knowledge, admissible) or search_actions(knowledge, admissible)
        bad = rng.choice([rng.choice(admissible), f"take {goal.target} 1 from {knowledge.location}"])
        action = bad if rng.random() < error_rate else good[0]
        steps.append(make_step(observation.text, action, admissible=admissible))
        outcome = environment.step(action)
        observation, won = outcome.observation, outcome.won
    return Trajectory(task, "u", "g", start.goal, start.category, tuple(steps), won, 10.0 * won)


def follow(environment, task: Task, skill: str) -> bool:
    """Play a new game with nothing but an episode skill: look for what it names, do what it says."""
    observation = environment.reset(task).observation
    outcome: Outcome | None = None

    def act(command: str) -> bool:
        nonlocal outcome, observation
        if command not in observation.admissible:
            return False
        outcome = environment.step(command)
        observation = outcome.observation
        return True

    def reach(place: str) -> None:
        act(f"go to {place}")
        act(f"open {place}")

    def find(name: str) -> str:
        """The place of an object (any of a class), by going everywhere."""
        for command in [command for command in observation.admissible if command.startswith("go to ")]:
            place = command.removeprefix("go to ")
            reach(place)
            if re.search(rf"\b{name}\b", observation.text):
                return place
        raise AssertionError(f"{name} is nowhere")

    target = re.match(r"find (\w+) \.", skill).group(1)
    held = ""
    for command in re.findall(r"then ([^.]*) \.", skill):
        verb, name, place = re.fullmatch(r"(\w+) (\w+ \d+)(?: (?:with|to) (\w+ \d+))?", command).groups()
        wanted = name if place else target  # a lamp is used with the target in the hand
        if not held:
            source = find(wanted)
            taken = re.search(rf"\b{wanted}(?: \d+)?\b", observation.text).group()
            assert act(f"take {taken} from {source}")
            held = taken
        reach(place or find(name))
        act(command)
        held = "" if verb == "move" else held
    return outcome is not None and outcome.won


def test_all_task_types_are_there(environment):
    starts = [environment.reset(Task("alfworld", index, 0, "train")) for index in range(NUM_GAMES)]
    assert {start.category for start in starts} == set(TASK_TYPES)


@pytest.mark.parametrize("index", range(NUM_GAMES))
def test_what_the_rules_call_right_wins(environment, index: int):
    trajectory = play(environment, index, error_rate=0.0, max_steps=150)
    assert trajectory.success
    skills = alfworld_skills(trajectory, True, 99)
    assert all(text == f"now {trajectory.steps[index].action} ." for index, text in skills.steps.items())
    assert len(trajectory.steps) - 1 in skills.steps  # what won the game is among them
    assert follow(environment, trajectory.task, skills.episode)


@pytest.mark.parametrize("index", range(NUM_GAMES))
def test_skills_of_clumsy_episodes(environment, index: int):
    trajectory = play(environment, index, error_rate=0.4, max_steps=30)
    skills = alfworld_skills(trajectory, trajectory.success, 99)
    numbers = re.findall(r"(?:then \w+|with|to) [a-z]+( \d+)?", skills.episode)
    if all(numbers):  # it names nothing by its class alone
        assert follow(environment, trajectory.task, skills.episode)
    assert skills.steps
    for step, text in skills.steps.items():
        assert text.removeprefix("now ").removesuffix(" .") in trajectory.steps[step].admissible
