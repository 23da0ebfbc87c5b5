"""The chain's jobs as --print shows them: each waits for the one before, and no override is given twice."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import pytest

from slurm.chain import main
from tests.trainer.conftest import SmallRun, small_run  # noqa: F401  (a fixture)


@pytest.fixture
def printed(
    small_run: SmallRun,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> list[list[str]]:
    """The words of the four commands."""
    words = [*small_run.overrides(tmp_path / "run"), "nodes=2", "after=7", "sft_experiment=demo_sft", "--print"]
    assert main(words) == 0, capsys.readouterr().err
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def test_every_job_waits_for_the_one_before(printed: list[list[str]]):
    waits = [word for words in printed for word in words if word.startswith("--dependency")]
    names = ["run-sft", "run-train", "run-convert"]
    assert waits == ["--dependency=afterok:7", *(f"--dependency=afterok:JOBID_OF_{name}" for name in names)]


def test_overrides_are_given_once(printed: list[list[str]], tmp_path: Path):
    sft, train, _, evaluate = printed
    for words in printed:
        assert not [word for word, count in Counter(word.partition("=")[0] for word in words).items() if count > 1]
    assert {"experiment=demo_sft", f"run.dir={tmp_path}/run/sft"} < set(sft)
    assert {"experiment=demo", f"run.dir={tmp_path}/run/train", f"actor.model={tmp_path}/run/sft/hf"} < set(train)
    assert f"actor.model={tmp_path}/run/hf" in evaluate


def test_what_training_would_refuse_is_refused_before_its_cold_start(
    small_run: SmallRun,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    words = [*small_run.overrides(tmp_path / "run"), "nodes=2", "sft_experiment=demo_sft", "--print"]
    assert main([*words, "engine.name=vllm", "engine.sync=in_process"]) == 2
    assert "engine.sync=in_process cannot reach engine.name=vllm" in capsys.readouterr().err


def test_misspelt_flags_and_words_are_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["experiment=demo", "run.dir=runs/a", "--pritn"]) == 2
    assert "slurm.chain: the configuration cannot run:\n  - --pritn is unknown; did you mean --print?" in (
        capsys.readouterr().err
    )
    assert main(["experiment=demo", "run.dir=runs/a", "sft_experimnt=demo_sft", "--print"]) == 2
    assert "sft_experimnt is unknown; did you mean sft_experiment" in capsys.readouterr().err
