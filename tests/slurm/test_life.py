"""What happens to jobs: the batch scripts on a real Slurm, with a stand-in for the trainer that starts at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm import chain, launch
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Jobs, make_light_jobs
from tests.trainer.conftest import SmallRun, small_run  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(500), pytest.mark.usefixtures("tidy_cluster", "jobs_on_the_clock")]
# What waits for a start, a step or an end: some seconds, more on a machine that does something else.
SOON_S = 180
ON_ONE_NODE = ["--nodes=1", "--gpus-per-node=0", "slurm/train.sbatch"]


def overrides(run_dir: Path, *, num_processes: int = 1) -> list[str]:
    """Of a run that goes on until `finish_soon`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    return ["experiment=demo", f"run.dir={run_dir}", f"run.num_processes={num_processes}"]


def finish_soon(run_dir: Path) -> int:
    """Let a run that goes on end, a few steps later; the number of all its steps."""
    num_steps = 10 + max(step for step, _ in steps(run_dir, 0)[-1:])
    (run_dir / "finish.partial").write_text(str(num_steps))
    (run_dir / "finish.partial").rename(run_dir / "finish")
    return num_steps


def steps(run_dir: Path, rank: int) -> list[tuple[int, int]]:
    """(step, attempt) of everything that a rank has done."""
    path = run_dir / f"steps_{rank}"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def wait_for_step(jobs: Jobs, run_dir: Path, step: int, *, attempt: int = 0) -> None:
    """Return when both ranks have done `step` or a later one in `attempt` or a later one."""

    def is_done(rank: int) -> bool:
        return any(done[0] >= step and done[1] >= attempt for done in steps(run_dir, rank)[-1:])

    jobs.cluster.wait_until(
        lambda: is_done(0) and is_done(1), timeout_s=SOON_S, what=f"step {step} in attempt {attempt}"
    )


def wait_for_free_nodes(jobs: Jobs, *, timeout_s: float = SOON_S) -> None:
    def are_free() -> bool:
        return jobs.cluster.run("squeue", "-h", "-p", "main,low,high") == ""

    jobs.cluster.wait_until(are_free, timeout_s=timeout_s, what="the nodes to be free")


def wait_for_end(jobs: Jobs, job_id: str, name: str = "train") -> None:
    """Wait until a job has completed; any other end is an error, shown with its output."""
    job = jobs.cluster.wait_for_state(job_id, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", timeout_s=SOON_S)
    assert job["JobState"] == "COMPLETED", jobs.output(name, job_id)


def assert_every_step_once(run_dir: Path, num_steps: int, *, attempts: set[int]) -> None:
    for rank in (0, 1):
        assert [step for step, _ in steps(run_dir, rank)] == list(range(num_steps))
        assert {attempt for _, attempt in steps(run_dir, rank)} == attempts


def preempt_everything(jobs: Jobs) -> None:
    """A job of more weight takes all nodes, and gives them back."""
    winner = jobs.submit("--nodes=3", "--exclusive", "--partition=high", "--wrap=sleep 1", "--job-name=winner")
    jobs.cluster.wait_for_state(winner, "COMPLETED", timeout_s=SOON_S)


@dataclass(frozen=True)
class JobsOnTheClock:
    """Two jobs that only time can stop; they run on nodes of their own beside all other tests of this module."""

    jobs: Jobs
    warned_id: str
    unwarned_id: str

    @property
    def warned(self) -> Path:
        return self.jobs.directory / "warned"

    @property
    def unwarned(self) -> Path:
        return self.jobs.directory / "unwarned"


@pytest.fixture(scope="module")
def jobs_on_the_clock(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> JobsOnTheClock:
    """Slurm looks for signals that are due every half minute: USR1 comes 10 to 40 s after the start.

    CONT asks for nothing: it takes the place of the script's own USR1, so that the time limit comes as a surprise.
    """
    jobs = make_light_jobs(cluster, tmp_path_factory.mktemp("clock"))
    clock = JobsOnTheClock(jobs, "", "")
    warned = ["--nodes=2", "--time=2", "--signal=B:USR1@80", "slurm/train.sbatch", *overrides(clock.warned)]
    unwarned = ["--time=1", "--signal=B:CONT@1", *ON_ONE_NODE, *overrides(clock.unwarned, num_processes=2)]
    ids = [jobs.submit("--partition=aside", *words) for words in (warned, unwarned)]
    return JobsOnTheClock(jobs, *ids)


def test_scancel_saves_and_does_not_requeue(light_jobs: Jobs, tmp_path: Path):
    run_dir = tmp_path / "run"
    job_id = light_jobs.submit("--nodes=2", "slurm/train.sbatch", *overrides(run_dir))
    wait_for_step(light_jobs, run_dir, 2)
    light_jobs.cluster.run("scancel", job_id)
    light_jobs.cluster.wait_for_state(job_id, "CANCELLED", timeout_s=SOON_S)
    wait_for_free_nodes(light_jobs)
    assert light_jobs.cluster.job(job_id)["Restarts"] == "0"
    for rank in (0, 1):
        assert int((run_dir / f"checkpoint_{rank}").read_text()) == len(steps(run_dir, rank))


def test_a_preempted_job_goes_on_where_it_stopped(light_jobs: Jobs, tmp_path: Path):
    run_dir = tmp_path / "run"
    job_id = light_jobs.submit("--nodes=2", "--partition=low", "slurm/train.sbatch", *overrides(run_dir))
    wait_for_step(light_jobs, run_dir, 2)
    preempt_everything(light_jobs)
    wait_for_step(light_jobs, run_dir, 3, attempt=1)
    num_steps = finish_soon(run_dir)
    wait_for_end(light_jobs, job_id)
    assert_every_step_once(run_dir, num_steps, attempts={0, 1})


def test_a_rank_that_crashes_frees_all_nodes_within_a_minute(light_jobs: Jobs, tmp_path: Path):
    run_dir = tmp_path / "run"
    words = overrides(run_dir)
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


def test_a_job_that_loses_a_node_is_requeued(light_jobs: Jobs, tmp_path: Path):
    run_dir, cluster = tmp_path / "run", light_jobs.cluster
    job_id = light_jobs.submit("--nodes=2", "slurm/train.sbatch", *overrides(run_dir))
    wait_for_step(light_jobs, run_dir, 2)
    node = cluster.run("scontrol", "show", "hostnames", cluster.job(job_id)["NodeList"]).split()[1]
    cluster.crash_node(node)
    cluster.wait_for_state(job_id, "PENDING", "FAILED", timeout_s=SOON_S)
    cluster.start_node(node)
    wait_for_step(light_jobs, run_dir, 2, attempt=1)
    num_steps = finish_soon(run_dir)
    wait_for_end(light_jobs, job_id)
    assert {steps(run_dir, rank)[-1] for rank in (0, 1)} == {(num_steps - 1, 1)}


def test_ranks_that_notice_first_requeue_their_job(light_jobs: Jobs, tmp_path: Path):
    """Slurm may take minutes to miss a node; the script tells a lost peer from a failure of the ranks' own."""
    run_dir, cluster = tmp_path / "run", light_jobs.cluster
    job_id = light_jobs.submit("--nodes=2", "slurm/train.sbatch", *overrides(run_dir))
    wait_for_step(light_jobs, run_dir, 2)
    (run_dir / "peer_is_gone").touch()
    cluster.wait_for_state(job_id, "PENDING", "FAILED", timeout_s=SOON_S)
    (run_dir / "peer_is_gone").unlink()
    wait_for_step(light_jobs, run_dir, 2, attempt=1)
    finish_soon(run_dir)
    wait_for_end(light_jobs, job_id)
    assert "a node was lost" in light_jobs.output("train", job_id)


def test_an_array_trains_every_seed(
    light_jobs: Jobs,
    small_run: SmallRun,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    for seed in (3, 5):
        (tmp_path / f"run_seed_{seed}").mkdir()
        (tmp_path / f"run_seed_{seed}" / "finish").write_text("3")
    words = [*small_run.overrides(tmp_path / "run"), "nodes=1", "seeds=3,5", "--submit"]
    job_id = main_prints(launch.main, words, light_jobs, monkeypatch, capsys)
    for seed in (3, 5):
        light_jobs.cluster.wait_for_state(f"{job_id}_{seed}", "COMPLETED", "FAILED", timeout_s=SOON_S)
        assert [step for step, _ in steps(tmp_path / f"run_seed_{seed}", 1)] == [0, 1, 2]


def test_a_failed_stage_cancels_the_rest_of_the_chain(
    light_jobs: Jobs,
    small_run: SmallRun,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "run" / "sft").mkdir(parents=True)
    (tmp_path / "run" / "sft" / "crash").touch()
    words = [*small_run.overrides(tmp_path / "run"), "run.num_processes=1", "nodes=2"]
    printed = main_prints(chain.main, words, light_jobs, monkeypatch, capsys)
    jobs = dict(reversed(line.split()) for line in printed.splitlines())
    assert list(jobs) == ["run-sft", "run-train", "run-convert", "run-evaluate"]
    light_jobs.cluster.wait_for_state(jobs["run-sft"], "FAILED", timeout_s=SOON_S)
    for name in ("run-train", "run-convert", "run-evaluate"):
        light_jobs.cluster.wait_for_state(jobs[name], "CANCELLED", timeout_s=SOON_S)


def main_prints(
    main: Callable[[list[str]], int],
    words: list[str],
    jobs: Jobs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """What an entry point prints that submits jobs as its own process would."""
    for name, value in jobs.all_variables.items():
        monkeypatch.setenv(name, value)
    assert main(words) == 0
    return capsys.readouterr().out.strip()


def submit_with_engines(jobs: Jobs, run_dir: Path, *options: str) -> str:
    """Two trainer nodes and one engine node."""
    engines = ["--nodes=1", "--ntasks-per-node=1", "--exclusive", *options]
    return jobs.submit("--nodes=2", *options, ":", *engines, "slurm/disaggregated.sbatch", *overrides(run_dir))


def test_engines_end_with_the_trainer_and_a_stop_requeues_both(light_jobs: Jobs, tmp_path: Path):
    run_dir = tmp_path / "run"
    job_id = submit_with_engines(light_jobs, run_dir)
    wait_for_step(light_jobs, run_dir, 2)
    light_jobs.cluster.run("scancel", "--batch", "--signal=USR1", job_id)
    wait_for_step(light_jobs, run_dir, 3, attempt=1)
    num_steps = finish_soon(run_dir)
    wait_for_end(light_jobs, job_id, "disaggregated")
    wait_for_free_nodes(light_jobs)
    assert_every_step_once(run_dir, num_steps, attempts={0, 1})
    assert (run_dir / "engines_ended").read_text().split() == ["0", "1"]


def test_preempted_engines_serve_until_the_trainer_has_saved(light_jobs: Jobs, tmp_path: Path):
    run_dir = tmp_path / "run"
    job_id = submit_with_engines(light_jobs, run_dir, "--partition=low")
    wait_for_step(light_jobs, run_dir, 2)
    preempt_everything(light_jobs)
    wait_for_step(light_jobs, run_dir, 3, attempt=1)
    num_steps = finish_soon(run_dir)
    wait_for_end(light_jobs, job_id, "disaggregated")
    assert_every_step_once(run_dir, num_steps, attempts={0, 1})


def test_the_trainer_ends_with_the_engines(light_jobs: Jobs, tmp_path: Path):
    run_dir = tmp_path / "run"
    job_id = submit_with_engines(light_jobs, run_dir)
    wait_for_step(light_jobs, run_dir, 2)
    (run_dir / "engine_crash").touch()
    light_jobs.cluster.wait_for_state(job_id, "FAILED", timeout_s=SOON_S)
    wait_for_free_nodes(light_jobs)
    assert "the engines ended before the trainer" in light_jobs.output("disaggregated", job_id)


def test_a_job_that_loses_an_engine_node_is_requeued(light_jobs: Jobs, tmp_path: Path):
    run_dir, cluster = tmp_path / "run", light_jobs.cluster
    job_id = submit_with_engines(light_jobs, run_dir)
    wait_for_step(light_jobs, run_dir, 2)
    node = cluster.run("squeue", "-h", "-j", job_id, "-o", "%N").split()[-1]  # of the second component
    cluster.crash_node(node)
    cluster.wait_for_state(job_id, "PENDING", "FAILED", "CANCELLED", timeout_s=SOON_S)
    cluster.start_node(node)
    wait_for_step(light_jobs, run_dir, 2, attempt=1)
    num_steps = finish_soon(run_dir)
    wait_for_end(light_jobs, job_id, "disaggregated")
    assert {steps(run_dir, rank)[-1] for rank in (0, 1)} == {(num_steps - 1, 1)}


def test_a_job_whose_time_is_up_requeues_itself_until_it_is_done(jobs_on_the_clock: JobsOnTheClock):
    jobs, job_id, run_dir = jobs_on_the_clock.jobs, jobs_on_the_clock.warned_id, jobs_on_the_clock.warned

    def attempts() -> set[int]:
        return {attempt for _, attempt in steps(run_dir, 0)}

    # An attempt that is stopped before its first step has none.
    jobs.cluster.wait_until(lambda: len(attempts()) > 1, timeout_s=2 * SOON_S, what="a step of a second attempt")
    num_steps = finish_soon(run_dir)
    wait_for_end(jobs, job_id)
    assert_every_step_once(run_dir, num_steps, attempts=attempts())
    assert "is requeued and goes on from its last checkpoint" in jobs.output("train", job_id)


def test_a_time_limit_without_warning_saves_and_the_same_command_goes_on(jobs_on_the_clock: JobsOnTheClock):
    jobs, run_dir = jobs_on_the_clock.jobs, jobs_on_the_clock.unwarned
    job = jobs.cluster.wait_for_state(jobs_on_the_clock.unwarned_id, "TIMEOUT", "FAILED", "COMPLETED", timeout_s=300)
    assert (job["JobState"], job["Restarts"]) == ("TIMEOUT", "0")
    jobs.cluster.wait_until((run_dir / "checkpoint_1").exists, timeout_s=SOON_S, what="the checkpoint")
    num_steps = finish_soon(run_dir)
    again = jobs.submit("--partition=aside", *ON_ONE_NODE, *overrides(run_dir, num_processes=2))
    wait_for_end(jobs, again)
    assert_every_step_once(run_dir, num_steps, attempts={0})
