"""The summary of a job's errors names the first cause, whatever was written last."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_opid.ranks import error_file, write_error
from slurm import errors

CAUSE = "Traceback (most recent call last):\nValueError: the cause\n"
PEER = "Traceback (most recent call last):\nRuntimeError: [gloo] Connection closed by peer [127.0.1.2]:33\n"


def write(logs: Path, rank: int, text: str, second: int) -> None:
    error_file(logs, rank).write_text(f"2026-01-01T00:00:{second:02d}.5+00:00 on n{rank}\n{text}")


def test_the_first_failure_is_shown_and_not_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path, 0, CAUSE.replace("cause", "aftermath"), second=9)
    write(tmp_path, 11, CAUSE, second=7)
    write(tmp_path, 2, PEER, second=5)  # noticed the failure before the failing rank had written it down
    assert errors.main([str(tmp_path)]) == errors.EXIT_FAILED
    shown = capsys.readouterr().out
    assert shown.startswith("rank 11 on n11 failed first, 2026-01-01T00:00:07.500000+00:00:\nTraceback")
    assert shown.index("ValueError: the cause") < shown.index("+2.0 s: rank 0 on n0: ValueError: the aftermath")
    assert "-2.0 s: rank 2 on n2" in shown


def test_ranks_that_only_lost_a_peer_point_to_a_lost_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path, 0, PEER, second=1)
    assert errors.main([str(tmp_path)]) == errors.EXIT_LOST_A_NODE
    assert "a machine or its network is gone" in capsys.readouterr().out


def test_no_error_is_no_failure(tmp_path: Path):
    assert errors.main([str(tmp_path)]) == 0
    assert errors.main([str(tmp_path / "nowhere")]) == 2


def test_the_first_reason_of_a_rank_stays(tmp_path: Path):
    path = error_file(tmp_path, 3)
    write_error(path, "first\n")
    write_error(path, "second\n")
    assert [error.text for error in errors.read_errors(tmp_path)] == ["first\n"]
