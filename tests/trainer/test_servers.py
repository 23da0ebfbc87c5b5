"""Training on servers: the very client, disk sync and launcher of vLLM, against our CPU server.

In the one run that the tests share, the server freezes in the first rollout, a rank freezes in the first update, and
the server is killed in the second rollout. It learns bit for bit what a run on the local engine learns; and so does a
run on two machines, with servers of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from megatron_opid.metrics import read_metrics
from rollout.engines.commands import ServerSettings
from rollout.engines.http import API_KEY
from rollout.engines.launch import Launcher
from rollout.record import read_trajectories
from rollout.trajectory import Trajectory
from tests.skills.endpoint_server import Answer, serve
from tests.trainer.conftest import SmallRun, run_module

FEW = {"run__num_steps": 2, "run__validate_every": 2, "run__save_every": 2}
SERVED = FEW | {"engine__name": "vllm", "engine__cpu_servers": "true", "engine__verify_every": 1}


def train(small_run: SmallRun, run_dir: Path, **extra: object) -> Path:
    finished = run_module("megatron_opid.train", small_run.overrides(run_dir, **extra))
    assert finished.returncode == 0, finished.stderr[-3000:]
    return run_dir


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
        status, metrics = self.directory / "watch" / "rank_0.json", self.directory / "metrics.jsonl"
        if not status.exists() or json.loads(status.read_text())["phase"] != phase:
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


@pytest.fixture(scope="module")
def troubled(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> TroubledRun:
    root = tmp_path_factory.mktemp("served")
    overrides = small_run.overrides(root / "run", **SERVED, run__hang_report_s=2)
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


@pytest.fixture(scope="module")
def on_server(troubled: TroubledRun) -> Path:
    return troubled.directory


def test_a_frozen_server_and_a_frozen_rank_are_named_with_stacks(troubled: TroubledRun):
    report = troubled.frozen_server
    assert "rank 0 has been in phase 'rollout' for" in report and f"waits for: engine {troubled.server_url}:" in report
    assert "requests, the oldest for" in report and "rollouts.py" in report and "in collect" in report
    report = troubled.frozen_rank
    assert "rank 0 has been in phase 'update' for" in report and "in learn" in report
    assert re.search(r"rank 1: in 'update' since [\d:]+, silent for \d+ s: stopped or dead", report)


def test_two_ranks_on_a_server_train_as_on_the_local_engine(small_run: SmallRun, on_server: Path, tmp_path: Path):
    assert_equal_runs(train(small_run, tmp_path, **FEW), on_server)


def test_the_metrics_say_what_the_engines_did(on_server: Path):
    steps = [line for line in read_metrics(on_server / "metrics.jsonl") if line["step"] >= 0]
    for line in steps:
        assert line["mismatch/logprob_abs_max"] < 1e-4
        assert 0 < line["rollout/engine/prefix_cache_hit_rate"] <= 1
        assert line["rollout/num_episodes"] == 8 and line["rollout/num_failed_episodes"] == 0
    kinds = ("dead", "hanging", "slow", "garbage", "refused", "stale", "aborted")
    faults = {kind: sum(line[f"rollout/engine/num_faults/{kind}"] for line in steps) for kind in kinds}
    assert faults == dict.fromkeys(kinds, 0) | {"dead": 1}
    assert sum(line["rollout/engine/num_restarts"] for line in steps) == 1


def test_a_run_leaves_no_server_and_one_version_of_the_weights(small_run: SmallRun, on_server: Path):
    assert [path.name for path in (on_server / "weights").iterdir()] == ["version_2"]
    assert (on_server / "engines" / "engine_0.log").is_file()
    ours = [p for p in psutil.process_iter(["cmdline"]) if "rollout.engines.server" in (p.info["cmdline"] or ())]
    assert not [p for p in ours if str(small_run.model) in p.info["cmdline"]]
    assert json.loads((on_server / "watch" / "rank_0.json").read_text())["phase"].startswith("after")


def test_two_machines_start_guard_and_mend_their_own_servers(
    small_run: SmallRun, on_server: Path, tmp_path: Path, monkeypatch
):
    """A rank on each, and nothing in common but the address of the first; the second one's server is killed."""
    monkeypatch.delenv(API_KEY, raising=False)
    overrides = small_run.overrides(tmp_path / "run", **SERVED, engine__placement="colocated")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = str(holder.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    with (tmp_path / "log.txt").open("w") as log:
        machines = [
            TroubledRun(
                tmp_path / "run",
                subprocess.Popen(
                    [sys.executable, "-m", "megatron_opid.train", *overrides],
                    env=os.environ | shared | {"RANK": str(rank)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                ),
            )
            for rank in range(2)
        ]
        try:
            machines[0].wait_for(lambda: machines[0].is_in("rollout", 1))
            servers = [machine.server() for machine in machines]
            urls = [url_of(server) for server in servers]
            key = servers[1].environ()[API_KEY]
            assert httpx.get(f"{urls[0]}/v1/models").status_code == 401
            assert all(key not in word for process in servers for word in process.cmdline())
            servers[0].suspend()  # so that the rollout cannot end without the second one
            servers[1].kill()
            back = f"engine {urls[1]} serves again"
            machines[0].wait_for(lambda: back in (tmp_path / "log.txt").read_text())
            servers[0].resume()
            codes = [machine.process.wait(180) for machine in machines]
        finally:
            for machine in machines:
                machine.process.kill()
                machine.process.wait()
    assert codes == [0, 0], machines[0].log()
    assert_equal_runs(on_server, tmp_path / "run")
    steps = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["step"] >= 0]
    assert sum(line["rollout/engine/num_faults/dead"] for line in steps) == 1
    assert sum(line["rollout/engine/num_restarts"] for line in steps) == 1
    assert sorted(path.name for path in (tmp_path / "run" / "engines").iterdir()) == ["engine_0.log", "engine_1.log"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if key.encode() in path.read_bytes()]


@pytest.mark.slow
def test_sglang_colocated_with_an_endpoint_for_the_skills_trains_as_the_local_engine(
    small_run: SmallRun, tmp_path: Path, monkeypatch
):
    """The endpoint serves the policy itself: its answers are no skills, so nothing but the counters may tell."""
    settings = ServerSettings("vllm", small_run.model, "float32", on_cpu=True)
    launcher = Launcher(settings, num_servers=1, gpus=(), directory=tmp_path / "endpoint", startup_timeout_s=120)
    with launcher:
        asyncio.run(launcher.start())
        monkeypatch.setenv("OPENAI_BASE_URL", f"{launcher.urls[0]}/v1")
        monkeypatch.setenv("OPENAI_MODEL", str(small_run.model))
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        skills = {"skills__analyzer": "openai", "skills__max_failed_share": 1, "skills__max_completion_tokens": 16}
        served = {"engine__name": "sglang", "engine__cpu_servers": "true", "engine__placement": "colocated"}
        colocated = train(small_run, tmp_path / "colocated", **FEW, **skills, **served)
    local = train(small_run, tmp_path / "local", **FEW, algorithm__name="grpo")  # no analysis is OPID without skills
    assert_equal_runs(local, colocated)
    for line in read_metrics(colocated / "metrics.jsonl")[1:]:
        assert line["analyzer/analyses"] == line["analyzer/failures"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_weights_by_broadcast_train_as_the_local_engine(small_run: SmallRun, tmp_path: Path, name: str):
    """Gathering and sending overlap in small buckets, over gloo where a GPU has NCCL."""
    served = {"engine__name": name, "engine__cpu_servers": "true", "engine__sync": "nccl", "engine__bucket_mib": 1}
    broadcast = train(small_run, tmp_path / name, **FEW, **served, engine__num_servers=2)
    assert_equal_runs(train(small_run, tmp_path / "local", **FEW), broadcast)
    assert not (broadcast / "weights").exists()


@pytest.mark.slow
def test_an_analyzer_that_is_down_for_a_step_stops_the_run_which_goes_on_when_it_is_back(
    small_run: SmallRun, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("OPENAI_MODEL", "m")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-1234")
    monkeypatch.setenv("OPENAI_API_RETRIES", "0")
    is_down = [True]

    def script(number: int, request: dict) -> Answer:
        return Answer(status=503, body=b"{}") if number >= 8 and is_down[0] else Answer()

    settings = FEW | {"run__save_every": 1, "skills__analyzer": "openai", "run__validate_every": 5}
    with serve(script, ["m"]) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        overrides = small_run.overrides(tmp_path / "run", **settings)
        stopped = run_module("megatron_opid.train", overrides)
        assert stopped.returncode not in (0, 2)
        assert "8 of 8 skill analyses of this step failed ({'failures_server': 8.0})" in stopped.stderr
        assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")][-1] == 0
        tolerant = train(small_run, tmp_path / "tolerant", **settings, skills__max_failed_share=1)
        is_down[0] = False
        train(small_run, tmp_path / "run", **settings)
        undisturbed = train(small_run, tmp_path / "undisturbed", **settings)
    assert_equal_runs(undisturbed, tmp_path / "run")
    last = read_metrics(tolerant / "metrics.jsonl")[-1]
    assert last["analyzer/failures_server"] == last["analyzer/analyses"] == 8
    assert all(trajectory.skills is None for trajectory in played(tolerant)[8:])
