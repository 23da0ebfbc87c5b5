"""A small real run: generated games, a model with random weights and a tokenizer of the games' own text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from envs import alfworld
from envs.base import PromptView, Task
from tests.trainer.served_run import SERVED, TroubledRun, trouble
from tools import make_alfworld_games, make_tiny_model


@dataclass(frozen=True)
class SmallRun:
    """Where the games and the model lie, and the overrides that make a run of them take seconds."""

    games: Path
    model: Path
    conversations: Path

    def overrides(self, run_dir: Path, **extra: object) -> list[str]:
        """Command-line overrides of a two-rank run in `run_dir`."""
        values = {
            "actor.model": self.model,
            "env.data": self.games,
            "env.max_steps": 4,
            "run.dir": run_dir,
            "run.num_steps": 4,
            "run.save_every": 2,
            "run.validate_every": 2,
            "run.save_trajectories_every": 1,
            "rollout.tasks_per_step": 4,
            "rollout.group_size": 2,
            "rollout.validation_tasks": 4,
            "actor.updates_per_step": 2,
            "sft.demonstrations": self.conversations,
        } | {key.replace("__", "."): value for key, value in extra.items()}
        return ["experiment=demo", *(f"{key}={value}" for key, value in values.items())]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    root = tmp_path_factory.mktemp("small_run")
    games, conversations, model = root / "games", root / "conversations.jsonl", root / "model"
    make_alfworld_games.main(
        ["--out", str(games), "--train", "12", "--valid-seen", "6", "--valid-unseen", "6", "--difficulty", "0"]
    )
    conversations.write_text("".join(json.dumps(c) + "\n" for c in _conversations(games)))
    make_tiny_model.main(
        ["--texts", str(conversations), "--out", str(model), "--vocabulary-size", "600", "--layers", "2"]
    )
    return SmallRun(games, model, conversations)


@pytest.fixture(scope="session")
def troubled(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> TroubledRun:
    """The run on a server that the tests share, with all its troubles."""
    root = tmp_path_factory.mktemp("served")
    return trouble(small_run.overrides(root / "run", **SERVED, run__hang_report_s=2), root)


@pytest.fixture(scope="session")
def on_server(troubled: TroubledRun) -> Path:
    return troubled.directory


def run_module(module: str, arguments: list[str], *, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` to its end, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


def _conversations(games: Path) -> list[dict]:
    environment = alfworld.make_environment({"engine": "native", "data": str(games)})
    conversations = []
    for index in range(12):
        start = environment.reset(Task("alfworld", index, 0, "train"))
        view = PromptView(start.goal, (), 0, start.observation.text, start.observation.admissible)
        prompt = alfworld.render_prompt(view, style="compact")
        for action in start.observation.admissible:
            answer = {"role": "assistant", "content": f"<think></think><action>{action}</action>"}
            conversations.append({"messages": [{"role": "user", "content": prompt}, answer]})
    return conversations
