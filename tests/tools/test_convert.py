"""Conversions are bitwise for every family and file layout; what does not fit is refused before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_opid.weights.hf import write_hf
from tests.actor.tiny_models import MODELS, write_models
from tools.convert import main
from tools.model_source import open_model

LAYOUTS = {
    "whole": [],
    "tp2_pp2": ["--tensor-parallel", "2", "--pipeline-parallel", "2"],
    "ep4_pp2": ["--expert-parallel", "4", "--pipeline-parallel", "2", "--tensor-parallel", "2"],
}
CASES = [(model, layout) for model in MODELS for layout in LAYOUTS if "moe" in model or "ep4" not in layout]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("convert_models")
    write_models(directory)
    for path in directory.iterdir():
        (path / "generation_config.json").write_text('{"top_k": 20}')
    return directory


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_sources_lie_below_models_root_as_for_a_run(models: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MODELS_ROOT", str(models))
    name = next(iter(MODELS))
    assert run("hf-to-megatron", name, tmp_path / "megatron") == 0
    assert run("megatron-to-hf", tmp_path / "megatron", tmp_path / "back", "--model", name) == 0
    assert run("verify", name, tmp_path / "back") == 0
    assert f"{tmp_path / 'back'} is complete" in capsys.readouterr().out


def same_tensors(first: Path, second: Path) -> bool:
    a, b = (load_file(path / "model.safetensors") for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_round_trip_is_bitwise(model: str, layout: str, models: Path, tmp_path: Path) -> None:
    source, megatron, back = models / model, tmp_path / "megatron", tmp_path / "back"
    assert run("hf-to-megatron", source, megatron, *LAYOUTS[layout]) == 0
    assert run("verify", source, megatron) == 0
    assert run("megatron-to-hf", megatron, back) == 0
    assert same_tensors(source, back)
    assert (back / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert (back / "generation_config.json").exists()
    assert not (back / "checkpoint.json").exists()
    num_files = len(list((megatron / "megatron").glob("*.distcp")))
    assert num_files == {"whole": 1, "tp2_pp2": 4, "ep4_pp2": 8}[layout] or model == "qwen3_moe_mixed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "megatron"]


def test_shards_of_bounded_size_and_bf16(models: Path, tmp_path: Path) -> None:
    source = tmp_path / "bf16"
    tensors = ((name, tensor.bfloat16()) for name, tensor in open_model(models / "qwen3_moe").tensors())
    write_hf(source, tensors, source=models / "qwen3_moe", max_shard_bytes=100_000)
    assert run("hf-to-megatron", source, tmp_path / "megatron", "--tensor-parallel", 2) == 0
    assert run("megatron-to-hf", tmp_path / "megatron", tmp_path / "back", "--max-shard-bytes", 60_000) == 0
    files = list((tmp_path / "back").glob("model-*.safetensors"))
    assert len(files) > 5
    assert max(path.stat().st_size for path in files) < 70_000
    assert run("verify", source, tmp_path / "back") == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "bfloat16"


def test_verify_names_what_differs(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = edited(models / "qwen3_tied", tmp_path, lambda tensors: tensors["model.norm.weight"][3].neg_())
    assert run("verify", models / "qwen3_tied", changed) == 1
    assert "model.norm.weight: 1 of 64 elements differ" in capsys.readouterr().out
    assert run("verify", models / "qwen3_tied", models / "qwen3_untied") == 1
    assert "tied_embeddings is True in A, False in B" in capsys.readouterr().out


def test_inspect(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("hf-to-megatron", models / "qwen3_moe", tmp_path / "megatron")
    capsys.readouterr()
    facts = []
    for path in (models / "qwen3_moe", tmp_path / "megatron"):
        assert run("inspect", path) == 0
        facts.append(json.loads(capsys.readouterr().out))
    assert facts[0]["family"] == facts[1]["family"] == "qwen3_moe"
    assert (
        facts[0]["parameters"]
        == facts[1]["parameters"]
        == sum(t.numel() for t in load_file(models / "qwen3_moe" / "model.safetensors").values())
    )
    assert facts[1]["weights_only"]


def edited(source: Path, directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    copy = directory / "edited"
    shutil.copytree(source, copy)
    tensors = load_file(copy / "model.safetensors")
    edit(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def change_config(copy: Path, **changes: object) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))


def truncate(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


EXPERT = "model.layers.2.mlp.experts.5.up_proj.weight"
HF_DAMAGE = {
    "missing tensor": (lambda copy: drop(copy, EXPERT), [], f"tensor {EXPERT} is missing"),
    "truncated": (lambda copy: truncate(copy / "model.safetensors", 10), [], "model.safetensors cannot be read"),
    "contradiction": (lambda copy: change_config(copy, hidden_size=32), [], "config.json asks for (250, 32)"),
    "too few layers": (lambda copy: change_config(copy, num_hidden_layers=3), [], "does not belong to a qwen3_moe"),
    "unknown family": (lambda copy: change_config(copy, model_type="mamba"), [], "model_type='mamba' is not built"),
    "mixed dtypes": (lambda copy: cast(copy, EXPERT), [], f"tensor {EXPERT} is BF16, the others F32"),
    "tensor": (lambda copy: None, ["--tensor-parallel", 3], "actor.tensor_parallel=3 does not divide"),
    "pipeline": (lambda copy: None, ["--pipeline-parallel", 3], "does not divide the model's num_hidden_layers=4"),
    "expert": (lambda copy: None, ["--expert-parallel", 3], "does not divide the model's num_experts=8"),
}


def cast(copy: Path, name: str) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors[name] = tensors[name].bfloat16()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})


def drop(copy: Path, name: str) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors[name]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("damage", HF_DAMAGE)
def test_hf_refusals(damage: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit, options, message = HF_DAMAGE[damage]
    copy = tmp_path / "copy"
    shutil.copytree(models / "qwen3_moe", copy)
    edit(copy)
    assert run("hf-to-megatron", copy, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


MEGATRON_DAMAGE = {
    "missing file": (lambda copy: (copy / "megatron" / "__1_0.distcp").unlink(), "__1_0.distcp is missing"),
    "truncated": (lambda copy: truncate(copy / "megatron" / "__0_1.distcp", 10), "__0_1.distcp is truncated"),
    "no metadata": (lambda copy: (copy / "megatron" / ".metadata").unlink(), "is no complete torch distributed"),
    "torn metadata": (lambda copy: truncate(copy / "megatron" / ".metadata", 99), ".metadata cannot be read"),
    "contradiction": (lambda copy: change_config(copy, vocab_size=300), "vocab_size is 250 there, 300 here"),
    "no description": (lambda copy: (copy / "checkpoint.json").unlink(), "checkpoint.json is missing"),
    "no config": (lambda copy: (copy / "config.json").unlink(), "give the Hugging Face directory as --model"),
}


@pytest.mark.parametrize("damage", MEGATRON_DAMAGE)
def test_megatron_refusals(damage: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit, message = MEGATRON_DAMAGE[damage]
    copy = tmp_path / "runs" / "a" / "checkpoint"
    run("hf-to-megatron", models / "qwen2_tied", copy, *LAYOUTS["tp2_pp2"])
    edit(copy)
    assert run("megatron-to-hf", copy, tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_wrong_kind_or_place(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("megatron-to-hf", models / "qwen2_tied", tmp_path / "out") == 2
    assert "is no Megatron checkpoint" in capsys.readouterr().err
    assert run("hf-to-megatron", models / "qwen2_tied", tmp_path) == 2
    assert f"{tmp_path} exists" in capsys.readouterr().err
    assert run("inspect", tmp_path / "nothing") == 2
    assert "is no directory" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_conversion_that_fails_leaves_nothing(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("tools.convert.copy_companions", broken)
    assert run("hf-to-megatron", models / "qwen2_tied", tmp_path / "out") == 2
    assert "failed: disk full" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
