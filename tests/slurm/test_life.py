"""What happens to jobs: the batch scripts on a real Slurm, with a stand-in for the trainer that starts at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.slurm.conftest import Jobs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]


def overrides(run_dir: Path, num_steps: int) -> list[str]:
    run_dir.mkdir(parents=True, exist_ok=True)
    return ["experiment=demo", f"run.dir={run_dir}", f"run.num_steps={num_steps}", "run.num_processes=1"]


def steps(run_dir: Path, rank: int) -> list[tuple[int, int]]:
    """(step, attempt) of everything that a rank has done."""
    path = run_dir / f"steps_{rank}"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def wait_for_step(jobs: Jobs, run_dir: Path, step: int, *, timeout_s: float = 60) -> None:
    jobs.cluster.wait_until(
        lambda: all(len(steps(run_dir, rank)) > step for rank in (0, 1)), timeout_s=timeout_s, what=f"step {step}"
    )


def wait_for_free_nodes(jobs: Jobs, *, timeout_s: float) -> None:
    jobs.cluster.wait_until(
        lambda: jobs.cluster.run("squeue", "-h") == "", timeout_s=timeout_s, what="the nodes to be free"
    )


def test_a_job_whose_time_is_up_requeues_itself_until_it_is_done(light_jobs: Jobs, tmp_path: Path):
    """Slurm looks for signals that are due every half minute: this one comes 10 to 40 s after the start."""
    run_dir = tmp_path / "run"
    words = ["--nodes=2", "--time=2", "--signal=B:USR1@80", "slurm/train.sbatch", *overrides(run_dir, 150)]
    job_id = light_jobs.submit(*words)
    light_jobs.cluster.wait_for_state(job_id, "COMPLETED", timeout_s=200)
    for rank in (0, 1):
        assert [step for step, _ in steps(run_dir, rank)] == list(range(150))
        assert {attempt for _, attempt in steps(run_dir, rank)} >= {0, 1}
    assert "is requeued and goes on from its last checkpoint" in light_jobs.output("train", job_id)


def test_scancel_saves_and_does_not_requeue(light_jobs: Jobs, tmp_path: Path):
    run_dir = tmp_path / "run"
    job_id = light_jobs.submit("--nodes=2", "slurm/train.sbatch", *overrides(run_dir, 1000))
    wait_for_step(light_jobs, run_dir, 2)
    light_jobs.cluster.run("scancel", job_id)
    light_jobs.cluster.wait_for_state(job_id, "CANCELLED", timeout_s=30)
    wait_for_free_nodes(light_jobs, timeout_s=30)
    assert light_jobs.cluster.job(job_id)["Restarts"] == "0"
    for rank in (0, 1):
        assert int((run_dir / f"checkpoint_{rank}").read_text()) == len(steps(run_dir, rank))


def test_a_preempted_job_goes_on_where_it_stopped(light_jobs: Jobs, tmp_path: Path):
    run_dir = tmp_path / "run"
    job_id = light_jobs.submit("--nodes=2", "--partition=low", "slurm/train.sbatch", *overrides(run_dir, 20))
    wait_for_step(light_jobs, run_dir, 2)
    winner = light_jobs.submit("--nodes=3", "--exclusive", "--partition=high", "--wrap=sleep 1", "--job-name=winner")
    light_jobs.cluster.wait_for_state(winner, "COMPLETED", timeout_s=60)
    light_jobs.cluster.wait_for_state(job_id, "COMPLETED", timeout_s=60)
    for rank in (0, 1):
        assert [step for step, _ in steps(run_dir, rank)] == list(range(20))
        assert {attempt for _, attempt in steps(run_dir, rank)} == {0, 1}


def test_a_rank_that_crashes_frees_all_nodes_within_a_minute(light_jobs: Jobs, tmp_path: Path):
    run_dir = tmp_path / "run"
    words = overrides(run_dir, 1000)
    (run_dir / "crash").touch()
    job_id = light_jobs.submit("--nodes=2", "slurm/train.sbatch", *words)
    wait_for_step(light_jobs, run_dir, 1)
    crashed_s = time.monotonic()
    light_jobs.cluster.wait_for_state(job_id, "FAILED", timeout_s=60)
    wait_for_free_nodes(light_jobs, timeout_s=60 - (time.monotonic() - crashed_s))
    assert light_jobs.cluster.job(job_id)["Restarts"] == "0"
    report = light_jobs.output("train", job_id).rpartition("failed first")[2]
    assert "RuntimeError: the reason of it all" in report
    assert "rank 1 on n2" in light_jobs.output("train", job_id)


@pytest.mark.parametrize("peers_notice", [True, False], ids=["peers_notice", "only_slurm_notices"])
def test_a_job_that_loses_a_node_is_requeued(light_jobs: Jobs, tmp_path: Path, peers_notice: bool):
    """Where the ranks on other nodes fail first, the script tells this failure from one of their own."""
    run_dir, cluster = tmp_path / "run", light_jobs.cluster
    job_id = light_jobs.submit("--nodes=2", "slurm/train.sbatch", *overrides(run_dir, 40))
    wait_for_step(light_jobs, run_dir, 2)
    node = cluster.run("scontrol", "show", "hostnames", cluster.job(job_id)["NodeList"]).split()[1]
    cluster.crash_node(node)
    if peers_notice:
        (run_dir / "peer_is_gone").touch()
    cluster.wait_for_state(job_id, "PENDING", "FAILED", timeout_s=90)
    (run_dir / "peer_is_gone").unlink(missing_ok=True)
    cluster.start_node(node)
    cluster.wait_for_state(job_id, "COMPLETED", "FAILED", timeout_s=90)
    assert cluster.job(job_id)["JobState"] == "COMPLETED", light_jobs.output("train", job_id)
    assert ("a node was lost" in light_jobs.output("train", job_id)) == peers_notice
    assert {steps(run_dir, rank)[-1] for rank in (0, 1)} == {(39, 1)}
    cluster.wait_for_nodes()


def test_an_array_trains_every_seed(light_jobs: Jobs, tmp_path: Path):
    words = [
        "--nodes=1",
        "--gpus-per-node=0",
        "--array=3,5",
        "slurm/train.sbatch",
        "experiment=demo",
        f"run.dir={tmp_path}/run_%a",
    ]
    job_id = light_jobs.submit(*words, "run.seed=%a", "run.num_steps=3", "run.num_processes=2")
    wait_for_free_nodes(light_jobs, timeout_s=60)
    assert light_jobs.cluster.job(f"{job_id}_3")["JobState"] == "COMPLETED"
    for seed in (3, 5):
        assert [step for step, _ in steps(tmp_path / f"run_{seed}", 1)] == [0, 1, 2]


HETEROGENEOUS = ["--nodes=2", ":", "--nodes=1", "--ntasks-per-node=1", "--exclusive", "slurm/disaggregated.sbatch"]


def test_engines_end_with_the_trainer_and_a_stop_requeues_both(light_jobs: Jobs, tmp_path: Path):
    run_dir = tmp_path / "run"
    job_id = light_jobs.submit(*HETEROGENEOUS, *overrides(run_dir, 30))
    wait_for_step(light_jobs, run_dir, 2)
    light_jobs.cluster.run("scancel", "--batch", "--signal=USR1", job_id)
    light_jobs.cluster.wait_until(
        lambda: steps(run_dir, 1)[-1] == (29, 1), timeout_s=90, what="the second attempt to finish"
    )
    wait_for_free_nodes(light_jobs, timeout_s=30)
    assert light_jobs.cluster.job(job_id)["JobState"] == "COMPLETED"
    for rank in (0, 1):
        assert [step for step, _ in steps(run_dir, rank)] == list(range(30))


def test_the_trainer_ends_with_the_engines(light_jobs: Jobs, tmp_path: Path):
    run_dir = tmp_path / "run"
    job_id = light_jobs.submit(*HETEROGENEOUS, *overrides(run_dir, 1000))
    wait_for_step(light_jobs, run_dir, 2)
    (run_dir / "engine_crash").touch()
    light_jobs.cluster.wait_for_state(job_id, "FAILED", timeout_s=60)
    wait_for_free_nodes(light_jobs, timeout_s=30)
    assert "the engines ended before the trainer" in light_jobs.output("disaggregated", job_id)
