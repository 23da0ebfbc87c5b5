"""Training on a server: the very client, disk sync and launcher of vLLM, against our CPU server."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from megatron_opid.metrics import read_metrics
from rollout.record import read_trajectories
from rollout.trajectory import Trajectory
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


@pytest.fixture(scope="module")
def on_server(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small_run, tmp_path_factory.mktemp("served"), **SERVED)


def test_two_ranks_on_a_server_train_as_on_the_local_engine(small_run: SmallRun, on_server: Path, tmp_path: Path):
    local = train(small_run, tmp_path, **FEW)
    ours, theirs = played(local), played(on_server)
    assert [t.uid for t in ours] == [t.uid for t in theirs] and len(ours) == 16
    for one, other in zip(ours, theirs, strict=True):
        assert [(s.prompt_ids, s.response_ids, s.action, s.weight_version) for s in one.steps] == [
            (s.prompt_ids, s.response_ids, s.action, s.weight_version) for s in other.steps
        ]
        for step, other_step in zip(one.steps, other.steps, strict=True):
            assert step.response_logprobs == pytest.approx(other_step.response_logprobs, abs=1e-5)
    weights = [(path / "hf" / "model.safetensors").read_bytes() for path in (local, on_server)]
    assert weights[0] == weights[1]


def test_the_metrics_say_what_the_engines_did(on_server: Path):
    last = read_metrics(on_server / "metrics.jsonl")[-1]
    assert last["mismatch/logprob_abs_max"] < 1e-4
    assert 0 < last["rollout/engine/prefix_cache_hit_rate"] < 1
    kinds = ("dead", "hanging", "slow", "garbage", "refused", "stale", "aborted")
    assert [last[f"rollout/engine/num_faults/{kind}"] for kind in kinds] == [0] * len(kinds)


def test_a_run_leaves_no_server_and_one_version_of_the_weights(small_run: SmallRun, on_server: Path):
    assert [path.name for path in (on_server / "weights").iterdir()] == ["version_2"]
    assert (on_server / "engines" / "engine_0.log").is_file()
    ours = [p for p in psutil.process_iter(["cmdline"]) if "rollout.engines.server" in (p.info["cmdline"] or ())]
    assert not [p for p in ours if str(small_run.model) in p.info["cmdline"]]
    assert json.loads((on_server / "watch" / "rank_0.json").read_text())["phase"].startswith("after")
