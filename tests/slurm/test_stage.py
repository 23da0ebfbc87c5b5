"""Staging copies a model once, whole, and refuses what does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from slurm import stage as staging
from slurm.stage import StageError, stage


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    return directory


def test_a_model_is_copied_once_and_again_when_it_changes(model: Path, tmp_path: Path, capsys):
    first = stage(model, tmp_path / "disk")
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {
        path.name: path.read_bytes() for path in model.iterdir()
    }
    assert "staged" in capsys.readouterr().err
    assert stage(model, tmp_path / "disk") == first
    assert capsys.readouterr().err == ""
    (model / "config.json").write_text('{"changed": 1}')
    assert stage(model, tmp_path / "disk") != first


def test_a_killed_copy_is_made_anew(model: Path, tmp_path: Path):
    target = stage(model, tmp_path / "disk")
    target.rename(target.with_suffix(".partial"))
    (target.with_suffix(".partial") / "model.safetensors").write_bytes(b"half")
    assert (stage(model, tmp_path / "disk") / "model.safetensors").stat().st_size == 25600


def test_what_does_not_fit_is_refused(model: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(StageError, match="LOCAL_SCRATCH"):
        stage(model, tmp_path / "disk")
    assert staging.main([str(tmp_path / "nowhere"), str(tmp_path)]) == 2
    assert "actor.model" in capsys.readouterr().err
