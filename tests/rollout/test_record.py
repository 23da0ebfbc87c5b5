"""Trajectories through a file or to another rank, and the replay tool on them."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from envs.base import Task
from rollout.compact import from_compact, to_compact
from rollout.engines.local import LocalEngine
from rollout.record import read_trajectories, write_trajectories
from rollout.replay import differences, show
from rollout.trajectory import HindsightSkills
from rollout.worker import RolloutWorker
from tests.rollout import toy_env
from tests.rollout.tiny import make_model, make_settings, make_tokenizer


@pytest.fixture(scope="module")
def trajectories():
    with RolloutWorker(toy_env, {}, LocalEngine(make_model()), make_tokenizer(), run_seed=0, progress=False) as worker:
        tasks = [*(Task("toy", index, 0, "train") for index in range(4)), Task("toy", 0, 0, "crash")]
        played = worker.collect_sync(tasks, 2, make_settings(), training_step=0)
    return [replace(played[0], skills=HindsightSkills("why", "go right", {0: "now", 2: "then"})), *played[1:]]


@pytest.mark.parametrize("name", ["a.jsonl", "deeper/a.jsonl.gz"])
def test_round_trip_is_exact_and_leaves_no_other_file(name, tmp_path, trajectories):
    path = tmp_path / name
    write_trajectories(path, trajectories)
    assert list(read_trajectories(path)) == trajectories
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    first = path.read_bytes()
    write_trajectories(path, trajectories)
    assert path.read_bytes() == first  # gzip's time stamp is left out


def test_another_rank_gets_the_same_trajectories(trajectories):
    sent = json.dumps([to_compact(trajectory) for trajectory in trajectories])
    assert [from_compact(data) for data in json.loads(sent)] == trajectories


def test_a_writer_that_fails_leaves_the_old_file(tmp_path, trajectories):
    path = tmp_path / "a.jsonl"
    write_trajectories(path, trajectories)

    def broken():
        yield trajectories[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_trajectories(path, broken())
    assert list(read_trajectories(path)) == trajectories


def test_a_torn_file_is_refused_by_line(tmp_path, trajectories):
    path = tmp_path / "a.jsonl"
    write_trajectories(path, trajectories)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=f"a.jsonl:{len(trajectories)} is not a trajectory"):
        list(read_trajectories(path))


def test_replay_finds_no_difference_and_then_the_planted_one(trajectories):
    for trajectory in trajectories:
        if trajectory.failure is None:
            assert list(differences(trajectory, toy_env, {})) == []
    whole = next(t for t in trajectories if t.failure is None and len(t.steps) > 1)
    steps = list(whole.steps)
    steps[1] = replace(steps[1], observation="you are at sea")
    [line] = differences(replace(whole, steps=tuple(steps)), toy_env, {})
    assert "step 1" in line and "you are at sea" in line
    assert "success" in list(differences(replace(whole, success=not whole.success), toy_env, {}))[-1]
    steps[1] = replace(whole.steps[1], reward=0.5)
    assert "reward 0.5" in next(differences(replace(whole, steps=tuple(steps)), toy_env, {}))


def test_show_names_everything(trajectories):
    text = "\n".join(show(trajectories[0], make_tokenizer(), coloured=False))
    step = trajectories[0].steps[0]
    for part in (trajectories[0].uid, "go right", "now", step.observation, f"> {step.action}", "<|im_start|>walk to"):
        assert part in text
    assert "\033[" not in text
    assert "\033[" in "\n".join(show(trajectories[0], None, coloured=True))


def test_command_line(tmp_path, trajectories):
    path, tokenizer = tmp_path / "a.jsonl.gz", tmp_path / "tokenizer"
    write_trajectories(path, trajectories)
    make_tokenizer().save_pretrained(tokenizer)

    def replay(*arguments):
        command = [sys.executable, "-m", "rollout.replay", path, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    shown = replay("--uid", trajectories[3].uid, "--tokenizer", tokenizer)
    assert shown.returncode == 0
    assert trajectories[3].uid in shown.stdout and "<|im_start|>" in shown.stdout
    assert trajectories[0].uid not in shown.stdout
    missing = replay("--index", "99")
    assert missing.returncode == 1 and "99" in missing.stderr
