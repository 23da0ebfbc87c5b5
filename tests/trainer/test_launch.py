"""Ranks of one machine: the first failure ends all of them, soon, and stands last on the screen."""

from __future__ import annotations

import time

import pytest

from megatron_opid.launch import start_ranks
from tests.trainer.conftest import SmallRun, run_module


@pytest.mark.parametrize(
    "how, exit_code, last_words",
    [("raise", 1, "RuntimeError: the reason of it all"), ("exit", 7, "rank 1"), ("kill", 137, "rank 1")],
)
def test_one_ranks_failure_ends_all(capfd: pytest.CaptureFixture[str], how: str, exit_code: int, last_words: str):
    started_s = time.monotonic()
    code = start_ranks("tests.trainer.crashing_rank", [how], 2, shutdown_grace_s=20)
    assert time.monotonic() - started_s < 60
    assert code == exit_code
    screen = capfd.readouterr().err
    assert last_words in screen[screen.rindex("rank 1 ended first") :]


@pytest.mark.parametrize(
    "override, message",
    [
        ("actor.tensor_parallel=3", "tensor_parallel=3"),
        ("env.data=/nowhere", "/nowhere"),
        ("actor.model=/nowhere", "/nowhere"),
        ("algorithm.gama=1", "algorithm.gama"),
        ("rollout.max_prompt_tokens=4000", "max_position_embeddings"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(small_run: SmallRun, tmp_path, override: str, message: str):
    finished = run_module("megatron_opid.train", [*small_run.overrides(tmp_path / "run"), override])
    assert finished.returncode == 2
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "run").exists()


def test_all_faults_come_at_once(small_run: SmallRun, tmp_path):
    overrides = [*small_run.overrides(tmp_path / "run"), "actor.tensor_parallel=3", "env.data=/nowhere"]
    finished = run_module("megatron_opid.train", [*overrides, "algorithm.name=opid", "skills.analyzer=none"])
    assert finished.returncode == 2
    for fragment in ("tensor_parallel=3", "/nowhere", "skills.analyzer=none"):
        assert fragment in finished.stderr


def test_torn_weights_are_refused_by_name(small_run: SmallRun, tmp_path):
    torn = tmp_path / "torn"
    torn.mkdir()
    for path in small_run.model.iterdir():
        (torn / path.name).write_bytes(path.read_bytes())
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    finished = run_module("megatron_opid.train", [*small_run.overrides(tmp_path / "run"), f"actor.model={torn}"])
    assert finished.returncode == 2
    assert str(weights) in finished.stderr
