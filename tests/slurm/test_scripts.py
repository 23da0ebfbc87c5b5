"""Every batch script does its work on a real Slurm, with real training on two nodes of one rank each.

One chain is the uninterrupted run; another run of the same training is preempted, then loses a node, and equals it.
Times are for a machine that does something else as well: idle cores need a third of them.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from megatron_opid.metrics import read_metrics
from slurm import chain
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Jobs
from tests.trainer.conftest import SmallRun, small_run  # noqa: F401  (a fixture)
from tests.trainer.test_resume import is_wall_clock
from tools.prepare_search_qa import write_generated

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900), pytest.mark.usefixtures("tidy_cluster")]
NUM_STEPS = 6
SOON_S = 300


def training(small: SmallRun, run_dir: Path, **extra: object) -> list[str]:
    settings = {"run__num_processes": 1, "run__num_steps": NUM_STEPS, "env__max_steps": 2} | extra
    return small.overrides(run_dir, **settings)


def wait_for_step(jobs: Jobs, run_dir: Path, step: int) -> None:
    def is_logged() -> bool:
        return any(line["step"] >= step for line in read_metrics(run_dir / "metrics.jsonl"))

    jobs.cluster.wait_until(is_logged, timeout_s=SOON_S, what=f"step {step}")


def timeless(run_dir: Path) -> list[dict]:
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not is_wall_clock(name)} for line in lines]


@pytest.fixture(scope="module")
def finished_chain(
    cluster: Cluster,
    small_run: SmallRun,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Jobs]:
    """Cold start, training, conversion and evaluation by one command; the directory of all of it."""
    root = tmp_path_factory.mktemp("chain")
    jobs = Jobs.of_real_training(cluster, root)
    words = training(small_run, root / "run", sft__samples_per_step=8)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in jobs.all_variables.items():
            patch.setenv(name, value)
        assert chain.main([*words, "nodes=2", "time=30"]) == 0
    cluster.wait_until(lambda: cluster.run("squeue", "-h", "-p", "main") == "", timeout_s=800, what="the chain to end")
    return root / "run", jobs


def test_a_chain_trains_converts_and_evaluates(finished_chain: tuple[Path, Jobs]):
    run, jobs = finished_chain
    printed = "\n".join(path.read_text() for path in sorted((jobs.directory / "logs").glob("*.out")))
    assert [line["step"] for line in read_metrics(run / "train" / "metrics.jsonl")] == list(range(-1, NUM_STEPS)), (
        printed
    )
    assert len(read_metrics(run / "sft" / "metrics.jsonl")) == NUM_STEPS
    converted, exported = (path / "model.safetensors" for path in (run / "hf", run / "train" / "hf"))
    assert converted.read_bytes() == exported.read_bytes()
    assert json.loads((run / "evaluation.json").read_text())["rates"]["all"]["num_episodes"] == 6
    logs = sorted(path.name for path in (jobs.directory / "logs").glob("run-train-*/attempt_0/rank_*.log"))
    assert logs == ["rank_0.log", "rank_1.log"]


def test_a_run_that_is_preempted_and_loses_a_node_equals_the_uninterrupted_one(
    finished_chain: tuple[Path, Jobs],
    small_run: SmallRun,  # noqa: F811
    tmp_path: Path,
):
    reference, jobs = finished_chain
    (tmp_path / "scratch").mkdir()
    staging = {"STAGE_MODELS": "1", "LOCAL_SCRATCH": str(tmp_path / "scratch")}
    jobs = replace(jobs, environment={**jobs.environment, **staging})
    cluster, run_dir = jobs.cluster, tmp_path / "run"
    words = training(small_run, run_dir, actor__model=reference / "sft" / "hf", sft__samples_per_step=8)
    job_id = jobs.submit("--nodes=2", "--partition=low", "slurm/train.sbatch", *words)
    wait_for_step(jobs, run_dir, 0)
    winner = jobs.submit("--nodes=3", "--exclusive", "--partition=high", "--wrap=sleep 1", "--job-name=winner")
    cluster.wait_for_state(winner, "COMPLETED", timeout_s=SOON_S)
    saved = int((run_dir / "checkpoints" / "latest").read_text().strip().removeprefix("step_"))
    wait_for_step(jobs, run_dir, min(saved + 1, NUM_STEPS - 2))
    nodes = cluster.run("scontrol", "show", "hostnames", cluster.job(job_id)["NodeList"]).split()
    cluster.crash_node(nodes[1])
    cluster.wait_for_state(job_id, "PENDING", "FAILED", timeout_s=SOON_S)
    cluster.start_node(nodes[1])
    job = cluster.wait_for_state(job_id, "COMPLETED", "FAILED", timeout_s=SOON_S)
    assert job["JobState"] == "COMPLETED", jobs.output("train", job_id)
    assert timeless(run_dir) == timeless(reference / "train")
    weights = [path / "hf" / "model.safetensors" for path in (run_dir, reference / "train")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert list((tmp_path / "scratch").glob("megatron_opid_*/models/hf-*/model.safetensors"))


def test_engines_on_nodes_of_their_own_and_on_the_trainers_nodes_train_the_same(
    finished_chain: tuple[Path, Jobs],
    small_run: SmallRun,  # noqa: F811
    tmp_path: Path,
):
    reference, jobs = finished_chain
    served = {
        "actor__model": reference / "sft" / "hf",
        "run__num_steps": 2,
        "engine__name": "sglang",
        "engine__cpu_servers": "true",
    }
    apart, beside = tmp_path / "apart", tmp_path / "beside"
    engine_nodes = ["--nodes=1", "--ntasks-per-node=1", "--exclusive"]
    words = training(small_run, apart, **served)
    ids = {"disaggregated": jobs.submit("--nodes=2", ":", *engine_nodes, "slurm/disaggregated.sbatch", *words)}
    words = training(small_run, beside, **served, engine__placement="colocated")
    ids["train"] = jobs.submit("--nodes=2", "--partition=aside", "slurm/train.sbatch", *words)
    for name, job_id in ids.items():
        job = jobs.cluster.wait_for_state(job_id, "COMPLETED", "FAILED", timeout_s=SOON_S)
        assert job["JobState"] == "COMPLETED", jobs.output(name, job_id)
    assert list((jobs.directory / "logs").glob(f"disaggregated-{ids['disaggregated']}/attempt_0/engines/engine_0.log"))
    assert sorted(path.name for path in (beside / "engines").glob("*.log")) == ["engine_0.log", "engine_1.log"]
    assert [line["step"] for line in read_metrics(beside / "metrics.jsonl")] == [-1, 0, 1]
    weights = [(run / "hf" / "model.safetensors").read_bytes() for run in (apart, beside)]
    assert weights[0] == weights[1]


def test_the_retrieval_server_serves_until_it_is_cancelled(cluster: Cluster, tmp_path: Path):
    write_generated(tmp_path / "data", seed=0, validation_share=0.2)
    jobs = Jobs.of_real_training(cluster, tmp_path)
    job_id = jobs.submit("slurm/retrieval.sbatch", "--index", tmp_path / "data" / "index")
    job = cluster.wait_for_state(job_id, "RUNNING", timeout_s=SOON_S)
    node = cluster.run("scontrol", "show", "node", job["NodeList"])
    address = re.search(r"NodeAddr=(\S+)", node).group(1)
    said = cluster.wait_until(
        lambda: re.search(r"retrieval server: http://(\S+):(\d+)", jobs.output("retrieval", job_id)),
        timeout_s=SOON_S,
        what="the server's address",
    )
    assert said.group(1) == job["NodeList"]
    url = f"http://{address}:{said.group(2)}"
    cluster.wait_until(lambda: answers(url), timeout_s=SOON_S, what="the server to answer")
    found = httpx.post(f"{url}/retrieve", json={"queries": ["who"], "topk": 2}, timeout=60).json()["result"]
    assert len(found) == 1
    cluster.run("scancel", job_id)
    cluster.wait_for_state(job_id, "CANCELLED", timeout_s=SOON_S)
    cluster.wait_until(lambda: not answers(url), timeout_s=SOON_S, what="the server to end")


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
