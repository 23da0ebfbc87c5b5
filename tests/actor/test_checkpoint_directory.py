"""Publishing a checkpoint: killed between any two steps, the newest complete one is found."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from megatron_opid.actor import checkpoint_directory
from megatron_opid.actor.checkpoint_directory import (
    CheckpointError,
    checkpoint_faults,
    identity,
    latest_checkpoint,
    publish,
    read_description,
)
from megatron_opid.config import ActorConfig
from megatron_opid.weights.hf_config import parse_hf_config
from tests.weights.test_hf_config import QWEN3, QWEN3_MOE


def write_temporary(directory: Path, step: int, content: str) -> tuple[Path, Path]:
    temporary = directory / f"step_{step}.tmp"
    temporary.mkdir(parents=True)
    shape = parse_hf_config(QWEN3)
    description = {"content": content, "identity": identity(shape, ActorConfig())}
    (temporary / "checkpoint.json").write_text(json.dumps(description))
    return temporary, directory / f"step_{step}"


def content(directory: Path) -> str:
    return read_description(latest_checkpoint(directory))["content"]


def test_nothing_is_there(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    assert checkpoint_faults(tmp_path, ActorConfig(), QWEN3) == []


def test_the_last_written_are_kept_whatever_their_number(tmp_path: Path) -> None:
    for step in (30, 31, 4, 5):
        publish(*write_temporary(tmp_path, step, str(step)), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_4", "step_5"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step_5"


@pytest.mark.parametrize("survived", range(8))
def test_killed_at_every_file_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int) -> None:
    """The same step is saved again, the worst case; the process dies after `survived` operations."""
    publish(*write_temporary(tmp_path, 1, "old"), keep=2)
    paths = write_temporary(tmp_path, 1, "new")
    operations = 0

    def die_in_time(original):
        def operation(*args, **kwargs):
            nonlocal operations
            if operations == survived:
                raise KeyboardInterrupt
            operations += 1
            return original(*args, **kwargs)

        return operation

    for name in ("rename", "replace", "write_text"):
        monkeypatch.setattr(Path, name, die_in_time(getattr(Path, name)))
    monkeypatch.setattr(checkpoint_directory.shutil, "rmtree", die_in_time(checkpoint_directory.shutil.rmtree))
    try:
        publish(*paths, keep=2)
    except KeyboardInterrupt:
        assert survived < 6
    monkeypatch.undo()
    assert content(tmp_path) == ("old" if survived < 3 else "new")
    publish(*write_temporary(tmp_path, 2, "next"), keep=2)
    assert content(tmp_path) == "next"
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".tmp", ".old")]


def test_another_model_names_every_difference(tmp_path: Path) -> None:
    publish(*write_temporary(tmp_path, 1, "qwen3"), keep=2)
    assert checkpoint_faults(tmp_path, ActorConfig(), QWEN3) == []
    (fault,) = checkpoint_faults(tmp_path, ActorConfig(precision="fp32"), QWEN3 | {"num_hidden_layers": 36})
    assert "num_layers is 28 there, 36 here" in fault
    assert "precision is 'bf16' there, 'fp32' here" in fault


def test_torn_description(tmp_path: Path) -> None:
    publish(*write_temporary(tmp_path, 1, "x"), keep=2)
    path = tmp_path / "step_1" / "checkpoint.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(CheckpointError, match="is torn"):
        read_description(tmp_path / "step_1")
    path.unlink()
    assert "checkpoint.json is missing" in checkpoint_faults(tmp_path, ActorConfig(), QWEN3)[0]


def test_identity_covers_the_whole_shape() -> None:
    shape = parse_hf_config(QWEN3)
    assert identity(shape, ActorConfig()).items() >= asdict(shape).items()


def test_experts_are_part_of_the_identity(tmp_path: Path) -> None:
    temporary, final = write_temporary(tmp_path, 1, "x")
    shape = parse_hf_config(QWEN3_MOE)
    description = {"content": "x", "identity": identity(shape, ActorConfig(expert_parallel=2))}
    (temporary / "checkpoint.json").write_text(json.dumps(description))
    publish(temporary, final, keep=2)
    assert checkpoint_faults(tmp_path, ActorConfig(expert_parallel=4), QWEN3_MOE) == []
    (fault,) = checkpoint_faults(tmp_path, ActorConfig(), QWEN3_MOE | {"mlp_only_layers": [0]})
    assert "expert_optimizer is True there, False here" in fault
    assert "'layers': [1, 2, 3" in fault
