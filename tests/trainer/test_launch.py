"""Ranks of one machine: the first failure ends all of them, soon, and stands last on the screen."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_opid.launch import start_ranks
from tests.trainer.conftest import SmallRun, run_module


@pytest.mark.parametrize(
    "how, exit_code, last_words",
    [("raise", 1, "RuntimeError: the reason of it all"), ("exit", 7, "rank 1"), ("kill", 137, "rank 1")],
)
def test_one_ranks_failure_ends_all(capfd: pytest.CaptureFixture[str], how: str, exit_code: int, last_words: str):
    started_s = time.monotonic()
    code = start_ranks("tests.trainer.crashing_rank", [how], 2, shutdown_grace_s=20, signal_grace_s=20)
    assert time.monotonic() - started_s < 60
    assert code == exit_code
    screen = capfd.readouterr().err
    assert last_words in screen[screen.rindex("rank 1 ended first") :]
    workers = [int(pid) for pid in re.findall(r"worker (\d+)", screen)]
    assert len(workers) == (how == "kill")
    wait_until(lambda: all(map(has_ended, workers)), timeout_s=10)


LAUNCH = """
import sys
from megatron_opid.launch import start_ranks
sys.exit(start_ranks("tests.trainer.stopping_rank", sys.argv[1:], 2, shutdown_grace_s=1, signal_grace_s=30))
"""


@contextmanager
def two_running_ranks(directory: Path, *, seconds_to_stop: int) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """The launcher and its ranks' process ids."""
    command = [sys.executable, "-c", LAUNCH, str(directory), str(seconds_to_stop)]
    environment = os.environ | {"TMPDIR": str(directory)}  # a killed launcher cannot remove its temporary directory
    launcher = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=_heed_interrupts
    )
    marks = [directory / f"running_{rank}" for rank in range(2)]
    try:
        wait_until(lambda: all(mark.exists() and mark.read_text() for mark in marks), timeout_s=90)
        yield launcher, [int(mark.read_text()) for mark in marks]
    finally:
        launcher.kill()
        launcher.communicate()


def _heed_interrupts() -> None:
    """A shell has what it runs in the background ignore SIGINT, these tests perhaps among it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until(condition: Callable[[], bool], *, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


def listening_addresses(pid: int) -> set[str]:
    """The local addresses of a process's listening TCP sockets, as the hexadecimal words of proc_net_tcp(5)."""
    links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path("/proc/net", table).read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_ranks_time_for_their_step(tmp_path: Path, number: signal.Signals):
    with two_running_ranks(tmp_path, seconds_to_stop=4) as (launcher, _):
        launcher.send_signal(number)
        _, screen = launcher.communicate(timeout=30)
    assert launcher.returncode == 128 + number
    assert (tmp_path / "done_0").exists() and (tmp_path / "done_1").exists()
    assert screen.endswith(f"stopped by {number.name}; the same command resumes from the last checkpoint\n")


def test_ctrl_c_twice_does_not_wait(tmp_path: Path):
    with two_running_ranks(tmp_path, seconds_to_stop=60) as (launcher, _):
        launcher.send_signal(signal.SIGINT)
        time.sleep(1)
        launcher.send_signal(signal.SIGINT)
        _, screen = launcher.communicate(timeout=30)
    assert launcher.returncode == 128 + signal.SIGINT
    assert "Ctrl-C again stops at once" in screen and not (tmp_path / "done_0").exists()


def test_a_signal_may_reach_the_ranks_before_their_launcher(tmp_path: Path):
    """Slurm signals every process of a step: a rank that obeys at once has not failed."""
    with two_running_ranks(tmp_path, seconds_to_stop=0) as (launcher, pids):
        for pid in (*pids, launcher.pid):
            os.kill(pid, signal.SIGTERM)
        _, screen = launcher.communicate(timeout=30)
    assert launcher.returncode == 128 + signal.SIGTERM
    assert screen.endswith("stopped by SIGTERM; the same command resumes from the last checkpoint\n")


def test_only_this_machine_can_reach_the_ranks(tmp_path: Path):
    with two_running_ranks(tmp_path, seconds_to_stop=0) as (launcher, pids):
        assert listening_addresses(launcher.pid) == set()
        for pid in pids:
            assert listening_addresses(pid) == {"0100007F"}  # 127.0.0.1


def test_ranks_do_not_outlive_their_launcher(tmp_path: Path):
    with two_running_ranks(tmp_path, seconds_to_stop=0) as (launcher, pids):
        launcher.kill()
        wait_until(lambda: all(has_ended(pid) for pid in pids), timeout_s=10)


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # nobody may be there to reap an orphan


def test_every_rank_refuses_bad_input_and_one_says_why(small_run: SmallRun, tmp_path: Path):
    overrides = [*small_run.overrides(tmp_path / "run"), "actor.tensor_parallel=3"]
    command = [sys.executable, "-m", "megatron_opid.train", *overrides]
    world = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=world | {"RANK": str(rank)})
        for rank in range(2)
    ]
    screens = [rank.communicate(timeout=90)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert ["tensor_parallel=3" in screen for screen in screens] == [True, False]


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
