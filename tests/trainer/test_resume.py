"""A run that is stopped, or killed, and started again equals the uninterrupted one: N = k + resume + (N − k)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_opid.metrics import read_metrics
from tests.trainer.conftest import SmallRun, run_module


def is_wall_clock(name: str) -> bool:
    """Everything else must agree."""
    return name.startswith("time/") or name.endswith(("/seconds", "_s", "/engine_busy_share"))


@pytest.fixture(scope="module")
def uninterrupted(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    finished = run_module("megatron_opid.train", small_run.overrides(run_dir))
    assert finished.returncode == 0, finished.stderr[-3000:]
    return run_dir


def test_the_first_update_is_exactly_on_policy(uninterrupted: Path):
    for line in read_metrics(uninterrupted / "metrics.jsonl")[1:]:
        assert line["actor/first_update_max_ratio_deviation"] == 0.0


def test_a_run_leaves_a_report_an_export_and_trajectories(uninterrupted: Path):
    assert (uninterrupted / "report.html").stat().st_size > 100_000
    assert (uninterrupted / "hf" / "model.safetensors").is_file()
    (checkpoint, *_) = (uninterrupted / "checkpoints").glob("step_*")
    assert checkpoint.stat().st_mode == (uninterrupted / "hf").stat().st_mode  # whoever may read one may read both
    assert sorted(p.name for p in (uninterrupted / "trajectories").glob("step_*[0-9].jsonl")) == [
        f"step_{step:06d}.jsonl" for step in range(4)
    ]


def test_a_run_says_where_its_model_and_report_are_once_and_again(small_run: SmallRun, tmp_path: Path):
    overrides = small_run.overrides(tmp_path, run__num_steps=1)
    first, again = (run_module("megatron_opid.train", overrides).stderr.splitlines() for _ in range(2))
    places = f"the model: {tmp_path / 'hf'}, the report: {tmp_path / 'report.html'}"
    assert first[0] == f"megatron_opid.train: starting 2 ranks, run.dir={tmp_path}"
    assert [line for line in first if places in line] == [f"{tmp_path} is complete; {places}"]
    assert [line for line in again if places in line] == [f"{tmp_path} was complete already; {places}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_an_interrupted_run_continues_as_if_nothing_had_happened(
    small_run: SmallRun, uninterrupted: Path, tmp_path: Path, number: signal.Signals
):
    """SIGTERM and SIGUSR1 save after the step in progress; SIGKILL of everything falls back to the last checkpoint."""
    overrides = small_run.overrides(tmp_path, run__async_checkpoints=number == signal.SIGUSR1)
    process = start(overrides)
    wait_for_step(tmp_path, process, step=2 if number == signal.SIGKILL else 0)
    others = psutil.Process(process.pid).children(recursive=True)
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    code = process.wait(timeout=120)
    assert code == (-9 if number == signal.SIGKILL else 128 + number)
    _, alive = psutil.wait_procs(others, timeout=30)
    assert not alive
    if number == signal.SIGKILL:
        assert len(others) > 2  # besides the ranks there is Megatron's process that hears of what was written
    assert (tmp_path / "checkpoints" / "latest").is_file()
    finished = run_module("megatron_opid.train", overrides)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert timeless(tmp_path) == timeless(uninterrupted)
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == (
        uninterrupted / "hf" / "model.safetensors"
    ).read_bytes()


def test_other_settings_take_effect_from_the_resume_on(small_run: SmallRun, uninterrupted: Path, tmp_path: Path):
    """Megatron's parameter groups bring the learning rate and its bounds that they were saved with."""
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir)
    written = (run_dir / "config.yaml").read_text()
    changed = {"optimizer__learning_rate": 3e-6, "optimizer__beta2": 0.9}
    assert run_module("megatron_opid.train", small_run.overrides(run_dir, **changed)).returncode == 0
    assert (run_dir / "config.yaml").read_text() == written  # of the steps there are, which are all
    resumed = run_module("megatron_opid.train", small_run.overrides(run_dir, **changed, run__num_steps=5))
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert f"resuming from {run_dir / 'checkpoints' / 'step_4'}\n" in resumed.stderr
    assert "resuming at step 4 with other settings: " in resumed.stderr and "learning_rate=3e-06" in resumed.stderr
    assert read_metrics(run_dir / "metrics.jsonl")[-1]["actor/learning_rate"] == 3e-6
    assert (run_dir / "config_until_step_4.yaml").read_text() == written


def start(overrides: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "megatron_opid.train", *overrides]
    return subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True
    )


def wait_for_step(run_dir: Path, process: subprocess.Popen, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the run ended by itself, exit code {process.returncode}"
        path = run_dir / "metrics.jsonl"
        if path.exists() and any(json.loads(line)["step"] >= step for line in path.read_text().splitlines()):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not logged within 120 s")


def timeless(run_dir: Path) -> list[dict]:
    return [
        {name: value for name, value in line.items() if not is_wall_clock(name)}
        for line in read_metrics(run_dir / "metrics.jsonl")
    ]
