"""Runs of the trainer on servers: started, watched, disturbed, and compared."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from megatron_opid.metrics import read_metrics
from rollout.record import read_trajectories
from rollout.trajectory import Trajectory

FEW = {"run__num_steps": 2, "run__validate_every": 2, "run__save_every": 2}
SERVED = FEW | {"engine__name": "vllm", "engine__cpu_servers": "true", "engine__verify_every": 1}


def played(run_dir: Path) -> list[Trajectory]:
    paths = sorted((run_dir / "trajectories").glob("step_*[0-9].jsonl"))
    assert len(paths) == 2
    return [trajectory for path in paths for trajectory in read_trajectories(path)]


def assert_equal_runs(one_dir: Path, other_dir: Path) -> None:
    """The same episodes, and the same bits learned from them."""
    ours, theirs = played(one_dir), played(other_dir)
    assert [t.uid for t in ours] == [t.uid for t in theirs] and len(ours) == 16
    for one, other in zip(ours, theirs, strict=True):
        assert [(s.prompt_ids, s.response_ids, s.action, s.weight_version) for s in one.steps] == [
            (s.prompt_ids, s.response_ids, s.action, s.weight_version) for s in other.steps
        ]
        for step, other_step in zip(one.steps, other.steps, strict=True):
            assert step.response_logprobs == pytest.approx(other_step.response_logprobs, abs=1e-5)
    weights = [(path / "hf" / "model.safetensors").read_bytes() for path in (one_dir, other_dir)]
    assert weights[0] == weights[1]


@dataclass
class TroubledRun:
    """A run in progress, its processes, and the reports of its rank 0's watchdog on what froze."""

    directory: Path
    process: subprocess.Popen
    server_url: str = ""
    frozen_server: str = ""
    frozen_rank: str = ""

    def server(self) -> psutil.Process:
        (server,) = self._children("rollout.engines.server")
        return server

    def rank(self, number: int) -> psutil.Process:
        return next(c for c in self._children("megatron_opid.train") if c.environ().get("RANK") == str(number))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 180
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline_s, self.log()
            time.sleep(0.01)

    def is_in(self, phase: str, num_steps_done: int) -> bool:
        """Whether all ranks are."""
        statuses, metrics = sorted((self.directory / "watch").glob("rank_?.json")), self.directory / "metrics.jsonl"
        phases = [json.loads(status.read_text())["phase"] for status in statuses]
        if phases != [phase, phase]:
            return False
        return num_steps_done == sum(line["step"] >= 0 for line in read_metrics(metrics)) if metrics.exists() else False

    def report_of(self, process: psutil.Process) -> str:
        """Freeze a process until rank 0's watchdog has said so."""
        log = self.directory / "watch" / "rank_0.txt"
        before = len(log.read_text())
        process.suspend()
        try:
            self.wait_for(lambda: "in train\n" in log.read_text()[before:])  # the main thread's stack
        finally:
            process.resume()
        time.sleep(0.2)  # until all of it is written
        return log.read_text()[before:]

    def log(self) -> str:
        return (self.directory.parent / "log.txt").read_text()[-3000:]

    def _children(self, module: str) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if child.cmdline()[1:3] == ["-m", module]]


def url_of(server: psutil.Process) -> str:
    words = server.cmdline()
    return f"http://{words[words.index('--host') + 1]}:{words[words.index('--port') + 1]}"


def trouble(overrides: list[str], root: Path) -> TroubledRun:
    """A run in `root`/run whose server freezes in the first rollout, a rank in the first update, and whose
    server is killed in the second rollout.

    Returns when it has ended well.
    """
    with (root / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "megatron_opid.train", *overrides], stdout=log, stderr=subprocess.STDOUT
        )
        run = TroubledRun(root / "run", process)
        try:
            run.wait_for(lambda: run.is_in("rollout", 0))
            run.server_url = url_of(run.server())
            run.frozen_server = run.report_of(run.server())
            run.wait_for(lambda: run.is_in("update", 0))
            run.frozen_rank = run.report_of(run.rank(1))
            run.wait_for(lambda: run.is_in("rollout", 1))
            run.server().kill()
            assert process.wait(180) == 0, run.log()
        finally:
            process.kill()
            process.wait()
    return run
