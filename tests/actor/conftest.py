"""Each launch of ranks runs once per session; the tests compare what it wrote."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_opid.weights.stored import TargetLayout
from tests.actor.launch import start, wait
from tests.actor.tiny_models import write_models
from tools.convert import hf_to_megatron

LAUNCH_TIMEOUT_S = 600  # a minute on idle cores


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    write_models(directory)
    for model, layout in (
        ("qwen3_moe", TargetLayout(pipeline_parallel=2, expert_parallel=4)),
        ("qwen2_untied", TargetLayout(tensor_parallel=2)),
        ("qwen3_tied", TargetLayout(pipeline_parallel=4)),
        ("qwen3_untied_other", TargetLayout()),
    ):
        hf_to_megatron(directory / model, directory / "converted" / model, layout)
    return directory


@pytest.fixture(scope="session")
def one_rank(models: Path) -> dict[str, Any]:
    kill_while_saving(models)
    return launch("one_rank", 1, models)


@pytest.fixture(scope="session")
def two_ranks(models: Path) -> dict[str, Any]:
    return launch("two_ranks", 2, models)


@pytest.fixture(scope="session")
def four_ranks(models: Path) -> dict[str, Any]:
    return launch("four_ranks", 4, models)


def launch(case_set: str, num_ranks: int, models: Path) -> dict[str, Any]:
    logs = models / f"logs_{case_set}"
    logs.mkdir()
    results = models / f"{case_set}.json"
    processes = start("tests.actor.rank_main", num_ranks, case_set, str(models), str(results), log_dir=logs)
    wait(processes, LAUNCH_TIMEOUT_S, logs)
    return json.loads(results.read_text())


def kill_while_saving(models: Path) -> None:
    """SIGKILL a process that saves checkpoint after checkpoint while it writes one later than the second."""
    logs = models / "logs_killed"
    logs.mkdir()
    (process,) = start("tests.actor.rank_main", 1, "save_forever", str(models), "unused", log_dir=logs)
    checkpoints = models / "checkpoints_killed"
    deadline = time.monotonic() + LAUNCH_TIMEOUT_S
    try:
        while not ((checkpoints / "step_2").exists() and any(checkpoints.glob("step_*.tmp/megatron/*.distcp"))):
            assert process.poll() is None, (logs / "rank_0.log").read_text()[-3000:]
            assert time.monotonic() < deadline, "nothing was saved"
            time.sleep(0.002)
    finally:
        writers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for writer in writers:  # they may wait for it for ever
            with contextlib.suppress(psutil.NoSuchProcess):
                writer.kill()
