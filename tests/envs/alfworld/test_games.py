"""Finding game files, and one clear message for each thing that can be wrong with them."""

import json
import shutil

import pytest

from envs.alfworld.engine import NativeEngine
from envs.alfworld.games import LAYOUT, list_games, read_game, task_type


@pytest.fixture
def games(small_games, tmp_path):
    """A copy of the small games that a test may damage."""
    shutil.copytree(small_games / LAYOUT / "train", tmp_path / LAYOUT / "train")
    return tmp_path


def damage(path, **changes):
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not Ellipsis}))


def test_lists_what_the_official_environment_would_collect(games):
    everything = list_games(str(games), "train")
    assert len(everything) == 12 and list(everything) == sorted(everything)
    unsolvable, unmarked, other_task, missing, movable, sliced = everything[:6]
    damage(unsolvable, solvable=False)
    damage(unmarked, solvable=...)
    damage(other_task.with_name("traj_data.json"), task_type="pick_and_place_with_movable_recep")
    missing.unlink()
    for path, label in ((movable, "with_movable_recep"), (sliced, "AppleSliced")):
        shutil.move(path.parent, path.parent.parent.parent / f"pick-{label}" / "trial")
    list_games.cache_clear()
    assert list_games(str(games), "train") == everything[6:]


def test_agrees_with_the_official_environment(games, capsys):
    alfred_tw_env = pytest.importorskip("alfworld.agents.environment.alfred_tw_env")
    listed = list_games(str(games), "train")
    damage(listed[3], solvable=False)
    config = {
        "env": {"goal_desc_human_anns_prob": 0, "task_types": [1, 2, 3, 4, 5, 6]},
        "dataset": {"data_path": str(games / LAYOUT / "train"), "num_train_games": -1},
    }
    official = alfred_tw_env.AlfredTWEnv(config, train_eval="train").game_files
    capsys.readouterr()
    list_games.cache_clear()
    assert [str(path) for path in list_games(str(games), "train")] == sorted(official)


@pytest.mark.parametrize(
    ("data", "split", "message"),
    [
        ("", "train", "env.data is empty; set it to the folder that contains json_2.1.1"),
        ("/nowhere", "train", r"/nowhere/json_2\.1\.1/train; set env\.data"),
    ],
)
def test_missing_folder(data, split, message):
    with pytest.raises(ValueError, match=message):
        list_games(data, split)


def test_unknown_split_and_empty_split(games):
    with pytest.raises(ValueError, match="test_seen; set the split to one of train$"):
        list_games(str(games), "test_seen")
    (games / LAYOUT / "valid_seen").mkdir()
    with pytest.raises(ValueError, match="valid_seen holds no playable game"):
        list_games(str(games), "valid_seen")


def test_environment_variables_and_home_are_expanded(games, monkeypatch):
    monkeypatch.setenv("GAMES_OF_THIS_TEST", str(games))
    monkeypatch.setenv("HOME", str(games))
    assert list_games("$GAMES_OF_THIS_TEST", "train") == list_games("~", "train") == list_games(str(games), "train")


def torn(path):
    path.write_text(path.read_text()[:-300])


def without_goal(path):
    damage(path, pddl_problem=json.loads(path.read_text())["pddl_problem"].replace("(:goal", "(:other"))


def cut_problem(path):
    damage(path, pddl_problem=json.loads(path.read_text())["pddl_problem"][:-40])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: path.unlink(), "cannot read .*game.tw-pddl: No such file"),
        (torn, "game.tw-pddl is torn or not JSON"),
        (lambda path: path.write_text("[]"), "does not hold a JSON object"),
        (lambda path: damage(path, pddl_problem=...), "game.tw-pddl has no key 'pddl_problem'"),
        (lambda path: damage(path, pddl_problem="(define"), "ends before its last parenthesis"),
        (lambda path: damage(path, pddl_problem="(define))"), "closes a parenthesis too many"),
        (cut_problem, "ends before its last parenthesis"),
        (without_goal, "has no section :goal"),
        (lambda path: damage(path, grammar="put {o} in/on {r}"), "not that of alfworld 0.4"),
    ],
)
def test_broken_game_file(games, break_it, message):
    path = list_games(str(games), "train")[0]
    break_it(path)
    with pytest.raises(ValueError, match=message) as caught:
        read_game(path)
    assert str(path) in str(caught.value)


def test_unknown_predicate_and_unplaced_agent(games):
    path = list_games(str(games), "train")[0]
    problem = json.loads(path.read_text())["pddl_problem"]
    damage(path, pddl_problem=problem.replace("(pickupable ", "(edible ", 1))
    with pytest.raises(ValueError, match="no predicate 'edible'"):
        NativeEngine().load(path)
    damage(path, pddl_problem=problem.replace("(atLocation agent1", "(examined"))
    with pytest.raises(ValueError, match="must place the one agent"):
        NativeEngine().load(path)


def test_task_type_comes_from_the_record(games):
    path = list_games(str(games), "train")[0]
    assert path.parent.parent.name.startswith(task_type(path))
