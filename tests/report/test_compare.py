"""Several arms over several seeds, through the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_opid.metrics import MetricsLogger
from megatron_opid.report.compare import mean_curve, parse_arm, summary_table


def _run(run_dir: Path, before: float, after: float) -> Path:
    with MetricsLogger(run_dir, config={}, num_steps=4, stream=sys.stderr) as logger:
        logger.log(-1, {"validation": {"success_rate": before}})
        for step in range(4):
            logger.log(step, {"rollout": {"success_rate": before + (after - before) * step / 3}})
        logger.log(4, {"validation": {"success_rate": after}})
    return run_dir


def _arm(directory: Path, name: str, *rates: tuple[float, float]) -> str:
    runs = [_run(directory / f"{name}{seed}", *pair) for seed, pair in enumerate(rates)]
    return f"{name}={','.join(map(str, runs))}"


def _command(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "megatron_opid.report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_mean_curve_bands_and_shared_steps():
    curve = mean_curve("opid", [([0, 1, 2], [0.0, 0.2, 0.9]), ([0, 1], [0.2, 0.4])], color=1)
    assert (curve.name, curve.x) == ("opid (2 seeds)", [0, 1])
    assert curve.y == pytest.approx([0.1, 0.3])
    assert curve.lower == pytest.approx([0.0, 0.3 - 0.02**0.5], abs=1e-12)
    assert curve.upper == pytest.approx([0.1 + 0.02**0.5, 0.3 + 0.02**0.5])


def test_table_of_gains(tmp_path):
    arms = [parse_arm(_arm(tmp_path, "opid", (0.2, 0.6), (0.3, 0.6))), parse_arm(_arm(tmp_path, "grpo", (0.2, 0.5)))]
    assert summary_table(arms)[1:] == [
        ["opid", "2", "25.0 ± 7.1 %", "60.0 ± 0.0 %", "+35.0 ± 7.1"],
        ["grpo", "1", "20.0 ± 0.0 %", "50.0 ± 0.0 %", "+30.0 ± 0.0"],
    ]


@pytest.mark.parametrize(("ending", "magic"), [("html", b"<!DOCTYPE html>"), ("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_command_writes_pages_and_pictures(tmp_path, ending, magic):
    arms = [_arm(tmp_path, "opid", (0.2, 0.6), (0.3, 0.6)), _arm(tmp_path, "grpo", (0.2, 0.5), (0.3, 0.4))]
    out = tmp_path / f"compare.{ending}"
    result = _command("--compare", *arms, "--out", out)
    assert result.returncode == 0, result.stderr
    assert out.read_bytes().startswith(magic)
    if ending == "svg":
        assert out.read_text().count("<!-- training steps -->") == 2


def test_command_writes_one_report_per_run(tmp_path):
    runs = [_run(tmp_path / name, 0.2, 0.6) for name in ("a", "b")]
    assert _command(*runs).returncode == 0
    assert all((run / "report.html").stat().st_size > 1_000_000 for run in runs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "opid"], "write NAME=RUN_DIR"),
        (["--compare", "opid=nowhere"], "'nowhere' has no metrics.jsonl"),
        (["nowhere"], "nowhere is not a run directory"),
    ],
)
def test_command_refuses_bad_input_with_one_line(arguments, message):
    result = _command(*arguments)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_command_refuses_an_unknown_picture_format(tmp_path):
    result = _command("--compare", _arm(tmp_path, "opid", (0.1, 0.2)), "--out", tmp_path / "compare.gif")
    assert result.returncode == 2
    assert "end it in .html, .svg or .png" in result.stderr
