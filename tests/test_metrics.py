"""metrics.jsonl, the progress line, the phase timer and W&B, all through real files and processes."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import termios
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from megatron_opid.config import Config, EnvConfig
from megatron_opid.metrics import BEFORE_TRAINING, MetricsLogger, Timer, flatten, read_metrics, save_config

REPOSITORY = Path(__file__).parent.parent
CONFIGS = ("config_until_step_6.yaml", "config.yaml")


def _logger(run_dir: Path, **options) -> MetricsLogger:
    return MetricsLogger(run_dir, **({"config": {}, "num_steps": 10, "stream": io.StringIO()} | options))


def _steps(run_dir: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")]


def test_flatten_names_and_types():
    nested = {
        "time": {"score_s": 1.5},
        "a": {"b": {"c": np.float32(0.5)}},
        "n": torch.tensor(3),
        "won": True,
        "x": None,
    }
    flat = flatten(nested)
    assert flat == {"time/score_s": 1.5, "a/b/c": 0.5, "n": 3, "won": 1, "x": None}
    assert [type(flat[name]) for name in ("a/b/c", "n", "won")] == [float, int, int]


@pytest.mark.parametrize("value", ["0.5", [1.0], np.zeros(2)])
def test_flatten_refuses_what_is_no_number(value):
    with pytest.raises(TypeError, match="rollout/bad"):
        flatten({"rollout": {"bad": value}})


def test_each_line_is_flushed_at_once(tmp_path):
    logger = _logger(tmp_path)
    logger.log(0, {"actor": {"loss": 0.25}})
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (line["step"], line["actor/loss"], line["num_nonfinite"]) == (0, 0.25, 0)
    assert line["time/step_s"] >= 0
    logger.close()


def test_nonfinite_values_become_null_and_are_counted(tmp_path):
    with _logger(tmp_path) as logger:
        logger.log(0, {"a": float("nan"), "b": {"c": np.float32("inf"), "d": -float("inf")}, "e": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda token: pytest.fail(f"{token} is not JSON"))
    assert (line["a"], line["b/c"], line["b/d"], line["e"], line["num_nonfinite"]) == (None, None, None, 1.0, 3)


def test_resume_drops_what_the_killed_run_wrote_after_the_checkpoint(tmp_path):
    with _logger(tmp_path) as logger:
        logger.log(BEFORE_TRAINING, {"validation": {"success_rate": 0.1}})
        for step in range(5):
            logger.log(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # the kill came in the middle of a line
    with _logger(tmp_path, start_step=3) as logger:
        assert _steps(tmp_path) == [-1, 0, 1, 2]
        logger.log(3, {"loss": 30.0})
    assert _steps(tmp_path) == [-1, 0, 1, 2, 3]
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["loss"] == 30.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_start_from_scratch_starts_the_file_anew(tmp_path):
    for _ in range(2):
        with _logger(tmp_path) as logger:
            logger.log(BEFORE_TRAINING, {"validation": {"success_rate": 0.1}})
            logger.log(0, {})
    assert _steps(tmp_path) == [-1, 0]


def test_damage_before_the_last_line_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
    with pytest.raises(ValueError, match="metrics.jsonl:2 is not JSON"):
        _logger(tmp_path, start_step=2)


def test_a_killed_process_loses_no_finished_line(tmp_path):
    program = f"""
import os, signal
from megatron_opid.metrics import MetricsLogger
logger = MetricsLogger({str(tmp_path)!r}, config={{}}, num_steps=3)
logger.log(0, {{"loss": 1.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=False, capture_output=True)
    assert _steps(tmp_path) == [0]


def test_other_ranks_write_nothing(tmp_path):
    with _logger(tmp_path / "run", rank=1) as logger:
        logger.log(0, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_plain_progress_lines_continue_the_running_mean_after_a_resume(tmp_path):
    first, second = io.StringIO(), io.StringIO()
    with _logger(tmp_path, stream=first) as logger:
        logger.log(0, {"rollout": {"success_rate": 0.2}, "actor": {"loss": 0.5, "reference_kl": 0.01, "entropy": 1.25}})
        logger.log(1, {"rollout": {"success_rate": 0.9}})
    with _logger(tmp_path, stream=second, start_step=1) as logger:
        logger.log(1, {"rollout": {"success_rate": 0.4}, "validation": {"success_rate": 0.5}})
    line = first.getvalue().splitlines()[0]
    assert line.startswith("step 1/10  success 20.0% (mean of 1)  loss 0.5  kl 0.01  entropy 1.25")
    assert "s/step  ETA " in line
    assert second.getvalue().startswith("step 2/10  success 30.0% (mean of 2)  validation 50.0%")


def test_a_validation_before_the_first_step_tells_no_pace(tmp_path):
    stream = io.StringIO()
    with _logger(tmp_path, stream=stream) as logger:
        logger.log(BEFORE_TRAINING, {"validation": {"success_rate": 0.25}})
    assert stream.getvalue() == "step 0/10  validation 25.0%\n"


def test_a_terminal_gets_a_live_bar(tmp_path):
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    with os.fdopen(terminal, "w") as stream, _logger(tmp_path, stream=stream, num_steps=4) as logger:
        logger.log(0, {"rollout": {"success_rate": 0.5}})
        logger.log(1, {"rollout": {"success_rate": 1.0}})
    shown = os.read(main, 65536).decode()
    os.close(main)
    assert "\r" in shown and "step 2/4" in shown and "ETA" in shown and "success 75.0%" in shown


def test_what_concludes_a_run_stands_on_a_line_of_its_own(tmp_path):
    main, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream, _logger(tmp_path, stream=stream, num_steps=1) as logger:
        logger.log(0, {"rollout": {"success_rate": 0.5}})
        logger.conclude("all is done")
    shown = os.read(main, 65536).decode()
    os.close(main)
    assert shown.splitlines()[-1] == "all is done"
    with _logger(tmp_path / "other", rank=1) as logger:
        logger.conclude("nothing")


def test_timer_sums_phases_and_starts_anew():
    timer = Timer()
    for _ in range(2):
        with timer("score"):
            time.sleep(0.02)
    with timer("update"):
        pass
    taken = timer.take()
    assert list(taken) == ["score_s", "update_s"]
    assert taken["score_s"] >= 0.04 > taken["update_s"]
    assert timer.take() == {}


def test_timer_counts_a_phase_that_raises_and_synchronizes_both_ends():
    calls = []
    timer = Timer(synchronize=lambda: calls.append("synchronize"))
    with pytest.raises(RuntimeError), timer("score"):
        raise RuntimeError
    assert list(timer.take()) == ["score_s"]
    assert len(calls) == 2


def test_saved_config_is_whole_and_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-value")
    config = replace(Config(), env=EnvConfig(data="http://host/?key=sk-very-secret-value"))
    save_config(tmp_path, config)
    text = (tmp_path / "config.yaml").read_text()
    assert "sk-very-secret" not in text
    expected = json.loads(json.dumps(asdict(config)))  # YAML has no tuples
    expected["env"]["data"] = "http://host/?key=$OPENAI_API_KEY"
    assert yaml.safe_load(text) == expected


def test_a_resumed_run_names_what_has_changed_and_keeps_what_was(tmp_path, capsys):
    first = Config()
    second = replace(first, optimizer=replace(first.optimizer, learning_rate=3e-6), env=EnvConfig(data="elsewhere"))
    save_config(tmp_path, first)
    save_config(tmp_path, replace(first, engine=replace(first.engine, urls=("http://another:1",))), start_step=4)
    assert not capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    save_config(tmp_path, second, start_step=6)
    old = first.optimizer.learning_rate
    told = f"other settings: env.data='elsewhere' (was ''), optimizer.learning_rate=3e-06 (was {old})"
    assert told in capsys.readouterr().err
    rates = [yaml.safe_load((tmp_path / name).read_text())["optimizer"]["learning_rate"] for name in CONFIGS]
    assert rates == [old, 3e-6]


def test_wandb_offline_needs_no_account_and_keeps_to_the_run_directory(tmp_path):
    program = """
from megatron_opid.config import Config
from megatron_opid.metrics import MetricsLogger, save_config
config = save_config("run", Config())
with MetricsLogger("run", config=config, num_steps=2, wandb_mode="offline") as logger:
    logger.log(-1, {"validation": {"success_rate": 0.2}})
    logger.log(0, {"actor": {"unmistakable_metric": 1.0, "broken": float("nan")}})
"""
    (tmp_path / "home").mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(tmp_path / "home"),
        "OPENAI_API_KEY": "sentinel-of-a-secret",
        "SLURM_JOB_NAME": "sentinel-of-slurm",
    }
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True)
    (record,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert b"actor/unmistakable_metric" in record.read_bytes()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.is_relative_to(tmp_path / "run") for path in files), files
    assert not [path for path in files if b"sentinel-of-" in path.read_bytes()]


def test_an_unknown_wandb_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run.wandb='on'"):
        _logger(tmp_path, wandb_mode="on")
