"""Generated games: layout on disk, splits, difficulty, determinism."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from random import Random

import pytest

from envs.alfworld.engine import NativeEngine
from envs.alfworld.games import LAYOUT, TASK_TYPES, list_games, task_type
from envs.alfworld.layout import LEVELS, draw_layout
from envs.alfworld.rooms import catalogue
from tools.make_alfworld_games import UNSEEN_ROOMS, main, make_games

SPLITS = ("train", "valid_seen", "valid_unseen")


def contents(path):
    """The game as its player meets it: what is where, and what is to be done."""
    data = json.loads(path.read_text())
    return data["pddl_problem"], data["grammar"]


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return sha256(b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in files)).hexdigest()


def test_layout_on_disk(small_games):
    for split in SPLITS:
        paths = list_games(str(small_games), split)
        assert {task_type(path) for path in paths} == set(TASK_TYPES)
        for path in paths:
            assert {file.name for file in path.parent.iterdir()} == {
                "game.tw-pddl",
                "initial_state.pddl",
                "traj_data.json",
            }
            data, record = (json.loads(path.with_name(name).read_text()) for name in ("game.tw-pddl", "traj_data.json"))
            assert data["solvable"] is True and data["pddl_problem"] == path.with_name("initial_state.pddl").read_text()
            parameters = record["pddl_params"]
            place = parameters["parent_target"] or parameters["toggle_target"]
            name = f"{record['task_type']}-{parameters['object_target']}-None-{place}-{record['scene']['scene_num']}"
            assert (path.parent.parent.name, path.parent.name) == (name, record["task_id"])


def test_splits_are_disjoint_and_unseen_rooms_are_new(small_games):
    games = {split: list_games(str(small_games), split) for split in SPLITS}
    everything = [contents(path) for paths in games.values() for path in paths]
    assert len(set(everything)) == len(everything) == 36
    rooms = {split: {int(path.parent.parent.name.rsplit("-", 1)[1]) for path in games[split]} for split in SPLITS}
    assert rooms["valid_unseen"] <= set(UNSEEN_ROOMS)
    assert not (rooms["train"] | rooms["valid_seen"]) & set(UNSEEN_ROOMS)


def test_every_plan_wins_and_no_game_starts_won(large_games):
    for path in list_games(str(large_games), "train"):
        engine = NativeEngine()
        turns = [engine.load(path)] + [engine.step(command) for command in json.loads(path.read_text())["walkthrough"]]
        assert [turn.won for turn in turns] == [False] * (len(turns) - 1) + [True]


def test_same_arguments_give_the_same_files_in_any_process(tmp_path):
    for number, hash_seed in enumerate(("1", "2")):
        command = [
            sys.executable,
            "-m",
            "tools.make_alfworld_games",
            "--out",
            str(tmp_path / str(number)),
            "--train",
            "12",
        ]
        command += ["--valid-seen", "6", "--valid-unseen", "6", "--difficulty", "1", "--seed", "4"]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
    make_games(tmp_path / "other", seed=5, counts={"train": 12, "valid_seen": 6, "valid_unseen": 6}, difficulty=1)
    digests = [digest(tmp_path / name) for name in ("0", "1", "other")]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("difficulty", range(len(LEVELS)))
def test_difficulty_sets_the_size(difficulty, tmp_path):
    make_games(tmp_path, seed=3, counts={"train": 18}, difficulty=difficulty)
    low, high = LEVELS[difficulty].receptacles
    for path in list_games(str(tmp_path), "train"):
        problem = path.with_name("initial_state.pddl").read_text().partition("(:goal")[0]
        count = problem.count("(receptacleAtLocation ")
        room = catalogue().rooms[int(path.parent.parent.name.rsplit("-", 1)[1])]
        assert min(low, sum(room.receptacles.values())) <= count <= high


def test_targets_are_mostly_at_home():
    rng, at_home, total = Random(0), 0, 0
    for _ in range(400):
        layout = draw_layout(rng, catalogue(), "pick_and_place_simple", list(catalogue().rooms), LEVELS[2])
        kinds = {receptacle.kind for receptacle in layout.receptacles} - {layout.goal.destination}
        homes = [kind for kind in catalogue().homes[layout.goal.target] if kind in kinds][:2]
        for thing, place in layout.places:
            if thing.kind == layout.goal.target and len(homes) == 2:
                at_home, total = at_home + (place.kind in homes), total + 1
            if thing.kind == layout.goal.target:
                assert place.kind != layout.goal.destination
    assert total > 200 and 0.75 < at_home / total < 0.95


def test_task_types_can_be_chosen(tmp_path):
    chosen = ("look_at_obj_in_light", "pick_heat_then_place_in_recep")
    make_games(tmp_path, seed=0, counts={"train": 4}, difficulty=0, task_types=chosen)
    assert {task_type(path) for path in list_games(str(tmp_path), "train")} == set(chosen)


def test_bad_arguments(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--train", "1", "--valid-seen", "0", "--valid-unseen", "0"]
    assert main([*arguments, "--difficulty", "9"]) == 2
    assert "--difficulty 9 is not between 0 and 3" in capsys.readouterr().err
    assert not (tmp_path / LAYOUT).exists()
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "exists; choose another --out" in capsys.readouterr().err


def test_rooms_that_cannot_host_a_task():
    with pytest.raises(ValueError, match=r"none of the rooms \[401\] can host pick_heat"):
        draw_layout(Random(0), catalogue(), "pick_heat_then_place_in_recep", [401], LEVELS[0])
