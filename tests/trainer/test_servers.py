"""Training on a server: the very client, disk sync and launcher of vLLM, against our CPU server.

In the one run that the tests share, the server freezes in the first rollout, a rank freezes in the first update, and
the server is killed in the second rollout. It learns bit for bit what a run on the local engine learns.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import psutil
import pytest

from megatron_opid.metrics import read_metrics
from rollout.engines.commands import ServerSettings
from rollout.engines.launch import Launcher
from tests.skills.endpoint_server import Answer, serve
from tests.trainer.conftest import SmallRun, run_module
from tests.trainer.served_run import FEW, TroubledRun, assert_equal_runs, played


def train(small_run: SmallRun, run_dir: Path, **extra: object) -> Path:
    finished = run_module("megatron_opid.train", small_run.overrides(run_dir, **extra))
    assert finished.returncode == 0, finished.stderr[-3000:]
    return run_dir


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


@pytest.mark.slow
def test_sglang_colocated_with_an_endpoint_for_the_skills_trains_as_the_local_engine(
    small_run: SmallRun, tmp_path: Path, monkeypatch
):
    """The endpoint serves the policy itself: its answers are no skills, so nothing but the counters may tell."""
    settings = ServerSettings("vllm", small_run.model, "float32", 512, on_cpu=True)
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
