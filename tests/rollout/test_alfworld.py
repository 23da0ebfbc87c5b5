"""The rollout on generated ALFWorld games, with an engine that plays random admissible actions, and the replay tool."""

import json
import random
import subprocess
import sys
from dataclasses import replace

import pytest

from envs import alfworld
from envs.base import Task
from rollout.engines.base import Generation
from rollout.record import write_trajectories
from rollout.worker import RolloutWorker
from tests.rollout.tiny import make_settings, make_tokenizer


class AdmissibleActions:
    """An engine that picks one of the actions that the prompt offers."""

    busy_s = 0.0

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    async def generate(self, prompt_ids, sampling, *, session):
        text = self.tokenizer.decode(list(prompt_ids))
        actions = [
            part.strip() for part in text.replace("\n", ",").split(",") if part.strip().startswith(("go", "open"))
        ]
        action = random.Random(sampling.seed).choice(actions)
        response = f"<think>{session}</think><action>{action}</action>"
        ids = (*self.tokenizer(response, add_special_tokens=False)["input_ids"], 2)
        return Generation(ids, (-1.0,) * len(ids), "stop", 0)

    async def counters(self):
        return {}


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    out = tmp_path_factory.mktemp("games")
    counts = ["--train", "4", "--valid-seen", "1", "--valid-unseen", "1", "--difficulty", "0"]
    subprocess.run([sys.executable, "-m", "tools.make_alfworld_games", "--out", out, *counts], check=True)
    return {"engine": "native", "data": str(out)}


@pytest.fixture(scope="module")
def trajectories(games):
    tokenizer = make_tokenizer()
    settings = make_settings(max_steps=6, max_prompt_tokens=4000, prompt_style="compact", stop_token_ids=(2,))
    tasks = [Task("alfworld", index, 0, "train") for index in range(4)]
    played = []
    for num_processes in (0, 2):
        engine = AdmissibleActions(tokenizer)
        with RolloutWorker(
            alfworld, games, engine, tokenizer, run_seed=0, num_processes=num_processes, progress=False
        ) as worker:
            played.append(worker.collect_sync(tasks, 3, settings, training_step=0))
    assert played[0] == played[1]
    return played[0]


def replay(path, games, *arguments):
    command = [sys.executable, "-m", "rollout.replay", path, "--verify", "--env-options", json.dumps(games), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_episodes_are_played_and_verified(games, trajectories, tmp_path):
    assert all(t.failure is None and t.steps and all(s.valid for s in t.steps) for t in trajectories)
    assert len({step.observation for t in trajectories for step in t.steps}) > 10
    write_trajectories(tmp_path / "a.jsonl", trajectories)
    result = replay(tmp_path / "a.jsonl", games)
    assert result.returncode == 0, result.stderr
    assert f"verified: {len(trajectories)} episode(s)" in result.stdout


def test_a_tampered_record_is_found(games, trajectories, tmp_path):
    steps = (replace(trajectories[1].steps[0], observation="You see a unicorn."), *trajectories[1].steps[1:])
    write_trajectories(tmp_path / "a.jsonl", [trajectories[0], replace(trajectories[1], steps=steps)])
    result = replay(tmp_path / "a.jsonl", games)
    assert result.returncode == 1 and "unicorn" in result.stdout and trajectories[1].uid in result.stdout
    assert replay(tmp_path / "a.jsonl", games, "--index", "0").returncode == 0
