"""The official engine is the oracle: the native one must show the same at every step of every game."""

import json
import re
from pathlib import Path
from random import Random

import pytest

from envs.alfworld.engine import NativeEngine, Turn
from envs.alfworld.games import TASK_TYPES, list_games, task_type
from envs.alfworld.rooms import DATA
from tests.envs.alfworld.test_engine import PROBLEM, TRANSCRIPT
from tools.make_alfworld_games import make_games

pytest.importorskip("alfworld", reason="the oracle needs the extra alfworld")
pytest.importorskip("textworld", reason="the oracle needs the extra alfworld")


class Pair:
    """Both engines on one game; every step compares text, admissible commands in order, score and won."""

    def __init__(self) -> None:
        from envs.alfworld.official import OfficialEngine

        self.native, self.official = NativeEngine(), OfficialEngine()
        self.num_steps = 0

    def load(self, path: Path) -> Turn:
        turn = self.native.load(path)
        assert turn == self.official.load(path), path
        return turn

    def step(self, command: str) -> Turn:
        turn = self.native.step(command)
        assert turn == self.official.step(command), command
        self.num_steps += 1
        return turn


def adversarial(rng: Random, turn: Turn) -> str:
    """A command that an agent should not give, or that only looks."""
    known = rng.choice(turn.admissible)
    words = known.split()
    return rng.choice(
        [
            "help",
            "inventory",
            "look",
            f"  {known}\n",
            known.upper(),
            known.replace(" ", "  "),
            f"{known} now",
            known[:-1],
            "",
            "frobnicate the mug",
            "take mug 9 from shelf 9",
            "put mug 1 in/on desk 1",
            f"open {words[-2]} {words[-1]}" if len(words) > 2 else "open",
            f"examine {words[-2]} {words[-1]}" if len(words) > 2 else "examine",
            f"clean {words[-2]} {words[-1]} with sinkbasin 1" if len(words) > 2 else "clean",
        ]
    )


def harmless(command: str, turn: Turn) -> bool:
    """Whether the command leaves the game as it is, so that a plan can go on."""
    return command.strip() not in turn.admissible or command.startswith(("look", "inventory", "help", "examine"))


def interacting(rng: Random, turn: Turn) -> str:
    """An admissible command, preferably one that does something with what is here."""
    busy = [command for command in turn.admissible if not command.startswith(("go to", "help", "look", "inventory"))]
    return rng.choice(busy if busy and rng.random() < 0.7 else turn.admissible)


def play(pair: Pair, path: Path, rng: Random, *, num_random: int, adversarial_share: float) -> None:
    """Follow the game's plan with adversarial commands in between, then act at random."""
    turn = pair.load(path)
    for command in json.loads(path.read_text())["walkthrough"]:
        while rng.random() < adversarial_share and not turn.won:
            command_between = adversarial(rng, turn)
            turn = pair.step(command_between if harmless(command_between, turn) else "look")
        assert not turn.won
        turn = pair.step(command)
    assert turn.won, path
    for _ in range(num_random):
        turn = pair.step(adversarial(rng, turn) if rng.random() < adversarial_share else interacting(rng, turn))


@pytest.mark.timeout(600)
def test_equals_official_engine(small_games, large_games):
    rng, pair = Random(7), Pair()
    small, large = list_games(str(small_games), "train"), list_games(str(large_games), "train")
    for path in small:
        play(pair, path, rng, num_random=16, adversarial_share=0.3)
    for path in large:
        play(pair, path, rng, num_random=8, adversarial_share=0.2)
    assert {task_type(path) for path in small} == {task_type(path) for path in large} == set(TASK_TYPES)
    assert pair.num_steps > 350


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_equals_official_engine_on_200_games(tmp_path):
    rng, pair = Random(11), Pair()
    for difficulty in range(4):
        out = tmp_path / str(difficulty)
        make_games(
            out, seed=100 + difficulty, counts={"train": 36, "valid_seen": 0, "valid_unseen": 14}, difficulty=difficulty
        )
        for path in list_games(str(out), "train") + list_games(str(out), "valid_unseen"):
            play(pair, path, rng, num_random=30, adversarial_share=0.25)
    assert pair.num_steps > 3500


def test_the_transcript_of_the_engine_tests(tmp_path):
    data = {
        "pddl_domain": (DATA / "alfred.pddl").read_text(),
        "grammar": (DATA / "alfred.twl2").read_text().replace("UNKNOWN GOAL", "cool some potato"),
        "pddl_problem": PROBLEM,
    }
    path = tmp_path / "game.tw-pddl"
    path.write_text(json.dumps(data))
    pair = Pair()
    pair.load(path)
    assert [pair.step(command).text for command, _ in TRANSCRIPT] == [answer for _, answer in TRANSCRIPT]
    assert pair.step("look").won


def rewrite(path: Path, out: Path, *replacements: tuple[str, str], goal: str = "") -> Path:
    """A copy of a game with its problem changed."""
    data = json.loads(path.read_text())
    problem = data["pddl_problem"]
    for old, new in replacements:
        assert old in problem
        problem = problem.replace(old, new)
    if goal:
        problem = problem[: problem.index("(:goal")] + f"(:goal {goal}))"
    data["pddl_problem"] = problem
    out.write_text(json.dumps(data))
    return out


def of_type(games: Path, name: str) -> Path:
    return next(path for path in list_games(str(games), "train") if task_type(path) == name)


def test_unusual_scenes(small_games, tmp_path):
    """Two receptacles at one place, the agent starting there, a filled bowl, things already open, clean and sliced."""
    path = of_type(small_games, "pick_cool_then_place_in_recep")
    facts = re.findall(r"^ +\((\w+) ([^()]*)\)$", json.loads(path.read_text())["pddl_problem"], re.MULTILINE)
    standing = [arguments.split() for name, arguments in facts if name == "receptacleAtLocation"]
    things = [arguments.split()[0] for name, arguments in facts if name == "inReceptacle"]
    opening = [arguments for name, arguments in facts if name == "openable"]
    start = next(arguments for name, arguments in facts if name == "atLocation")
    (_, here), (_, there) = standing[:2]
    extra = [
        f"(inReceptacleObject {things[0]} {things[1]})",
        f"(isReceptacleObject {things[1]})",
        f"(opened {opening[0]})",
        *(f"(isClean {thing})" for thing in things[::2]),
        *(f"(isSliced {thing})" for thing in things[::3]),
        *(f"(isCool {thing})" for thing in things[1:]),
    ]
    crowded = rewrite(
        path, tmp_path / "crowded.tw-pddl", (f" {there})", f" {here})"), ("(:init", "(:init " + "\n".join(extra))
    )
    facing = rewrite(crowded, tmp_path / "facing.tw-pddl", (f"(atLocation {start})", f"(atLocation agent1 {here})"))
    rng, pair = Random(3), Pair()
    for game in (crowded, facing):
        turn = pair.load(game)
        for _ in range(60):
            turn = pair.step(interacting(rng, turn))


GOALS = {
    "all of a kind": "(exists (?r - receptacle) (forall (?o - object) (or (not (objectType ?o {target})) "
    "(and (objectType ?o {target}) (receptacleType ?r {place}) (inReceptacle ?o ?r)))))",
    "one way or another": "(and (not (holdsAny agent1)) (or (exists (?o - object) (isSliced ?o)) (exists "
    "(?r - receptacle ?l - location) (and (receptacleType ?r {place}) (receptacleAtLocation ?r ?l) "
    "(atLocation agent1 ?l)))))",
    "a shadowed name": "(exists (?o - object) (and (holds agent1 ?o) (exists (?r - receptacle) (and (receptacleType ?r "
    "{place}) (exists (?o - object) (and (inReceptacle ?o ?r) (not (objectType ?o {target}))))))))",
}


@pytest.mark.parametrize("name", GOALS)
def test_any_goal_is_judged_as_the_planner_does(name, small_games, tmp_path):
    path = of_type(small_games, "pick_cool_then_place_in_recep")
    parameters = json.loads(path.with_name("traj_data.json").read_text())["pddl_params"]
    goal = GOALS[name].format(target=f"{parameters['object_target']}Type", place=f"{parameters['parent_target']}Type")
    pair = Pair()
    pair.load(rewrite(path, tmp_path / "game.tw-pddl", goal=goal))
    verdicts = {pair.step(command).won for command in json.loads(path.read_text())["walkthrough"]}
    rng, turn = Random(5), pair.step("look")
    for _ in range(40):
        turn = pair.step(interacting(rng, turn))
        verdicts.add(turn.won)
    assert name == "a shadowed name" or verdicts == {True, False}
