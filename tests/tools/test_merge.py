"""tools.merge against checkpoints of real FSDP, written by two ranks: the merged model is the model, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_opid.weights.dcp import DcpReader
from tests.actor.launch import start, wait
from tests.actor.tiny_models import MODELS
from tools.merge import main
from tools.rank_files import RankFiles

VOCAB_SIZE = 251  # rows that two ranks do not share evenly
RANK_0, RANK_1 = (f"model_world_size_2_rank_{rank}.pt" for rank in range(2))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("merge_models")
    for name, dtype in (("qwen2_tied", "float32"), ("qwen3_untied", "bfloat16"), ("qwen3_moe", "float32")):
        config = type(MODELS[name])(**MODELS[name].to_dict() | {"vocab_size": VOCAB_SIZE})
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        model.save_pretrained(directory / name)
        (directory / name / "tokenizer.json").write_text("{}")
    return directory


@pytest.fixture(scope="session")
def checkpoints(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, logs = tmp_path_factory.mktemp("fsdp"), tmp_path_factory.mktemp("fsdp_logs")
    wait(start("tests.tools.fsdp_rank", 2, str(models), str(directory), log_dir=logs), 240, logs)
    return directory


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def same_tensors(first: Path, second: Path) -> bool:
    a, b = (load_file(path / "model.safetensors") for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.parametrize("kind", ["files", "dcp"])
@pytest.mark.parametrize("model", ["qwen2_tied", "qwen3_untied", "qwen3_moe"])
def test_merged_is_the_model(model: str, kind: str, models: Path, checkpoints: Path, tmp_path: Path) -> None:
    assert run(checkpoints / model / kind, tmp_path / "hf", "--model", models / model) == 0
    assert same_tensors(tmp_path / "hf", models / model)
    assert (tmp_path / "hf" / "tokenizer.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("kind", ["replicated", "sharded_tensor", "older_torch"])
def test_other_kinds_of_rank_files(kind: str, models: Path, checkpoints: Path, tmp_path: Path) -> None:
    assert run(checkpoints / kind, tmp_path / "hf", "--model", models / "qwen3_untied") == 0
    assert same_tensors(tmp_path / "hf", models / "qwen3_untied")


def test_config_beside_the_checkpoint_and_dtype(models: Path, checkpoints: Path, tmp_path: Path) -> None:
    source = copied(checkpoints / "qwen2_tied" / "files", tmp_path)
    shutil.copytree(models / "qwen2_tied", source / "huggingface")
    assert run(source, tmp_path / "hf", "--dtype", "bfloat16") == 0
    merged, original = (load_file(path / "model.safetensors") for path in (tmp_path / "hf", models / "qwen2_tied"))
    assert all(torch.equal(merged[name], tensor.bfloat16()) for name, tensor in original.items())
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"


def test_every_split_of_a_tensor(checkpoints: Path) -> None:
    files, tensor = RankFiles(checkpoints / "tensors"), torch.arange(15.0).view(5, 3)
    expected = dict.fromkeys(("uneven rows", "uneven columns", "replicated", "two dimensions", "plain"), tensor)
    expected["one row"] = tensor[:1]
    assert files.tensors.keys() == expected.keys()
    assert all(torch.equal(files.read(name), values) for name, values in expected.items())


def copied(directory: Path, parent: Path) -> Path:
    return Path(shutil.copytree(directory, parent / "source"))


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def rename_to_world_of_one(source: Path) -> None:
    (source / RANK_1).unlink()
    (source / RANK_0).rename(source / "model_world_size_1_rank_0.pt")


class Hostile:
    """Unpickled without restriction, it would write a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch /tmp/megatron_opid_hostile_pickle",)


NORM = "model.layers.1.input_layernorm.weight"
RANK_FILE_DAMAGE = {
    "missing rank": (lambda source: (source / RANK_1).unlink(), f"{RANK_1} missing, of 2 ranks' files"),
    "two world sizes": (
        lambda source: shutil.copy(source / RANK_0, source / "model_world_size_4_rank_0.pt"),
        "files of world sizes [2, 4]",
    ),
    "renamed": (rename_to_world_of_one, "hold 8064 of 16064 elements"),
    "torn": (lambda source: truncate(source / RANK_1), f"{RANK_1} cannot be read"),
    "hostile": (lambda source: torch.save({"a": Hostile()}, source / RANK_1), "is not unpickled"),
    "missing tensor": (lambda source: edit(source / RANK_0, lambda state: state.pop(NORM)), f"{NORM}: not in {RANK_0}"),
    "missing everywhere": (
        lambda source: [edit(source / name, lambda state: state.pop(NORM)) for name in (RANK_0, RANK_1)],
        f"tensor {NORM} is missing",
    ),
    "foreign tensor": (
        lambda source: [
            edit(source / name, lambda state: state.update({"model.lora": torch.ones(2)})) for name in (RANK_0, RANK_1)
        ],
        "tensor model.lora does not belong to a qwen2",
    ),
    "contradiction": (
        lambda source: edit(source / RANK_0, lambda state: state.update({NORM: torch.ones(64)})),
        f"{NORM}: the ranks' files contradict",
    ),
    "copies differ": (
        lambda source: [
            edit(source / name, lambda state, value=value: state.update({NORM: torch.full((64,), value)}))
            for name, value in ((RANK_0, 1.0), (RANK_1, 2.0))
        ],
        f"{NORM} is replicated, but its copies",
    ),
    "untied head": (
        lambda source: [
            edit(source / name, lambda state: state.update({"lm_head.weight": torch.zeros(251, 64)}))
            for name in (RANK_0, RANK_1)
        ],
        "lm_head.weight differs from model.embed_tokens.weight",
    ),
}


@pytest.mark.parametrize("damage", RANK_FILE_DAMAGE)
def test_rank_file_refusals(
    damage: str, models: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = RANK_FILE_DAMAGE[damage]
    change(copied(checkpoints / "qwen2_tied" / "files", tmp_path))
    assert run(tmp_path / "source", tmp_path / "hf", "--model", models / "qwen2_tied") == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert not Path("/tmp/megatron_opid_hostile_pickle").exists()


DCP_DAMAGE = {
    "missing file": (lambda source: (source / "__1_0.distcp").unlink(), "__1_0.distcp is missing"),
    "torn": (lambda source: truncate(source / "__0_0.distcp"), "__0_0.distcp is truncated"),
    "no metadata": (lambda source: (source / ".metadata").unlink(), "holds neither .metadata"),
}


@pytest.mark.parametrize("damage", DCP_DAMAGE)
def test_dcp_refusals(
    damage: str, models: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = DCP_DAMAGE[damage]
    change(copied(checkpoints / "qwen2_tied" / "dcp", tmp_path))
    assert run(tmp_path / "source", tmp_path / "hf", "--model", models / "qwen2_tied") == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_other_model_place_or_prefix(
    models: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = checkpoints / "qwen3_untied" / "dcp"
    assert "optimizer.momentum" in DcpReader(source).tensors
    for arguments, message in (
        (("--model", models / "qwen2_tied"), "q_proj.bias is missing"),
        (("--model", models / "qwen3_untied", "--prefix", "ema."), "tensor model.embed_tokens.weight is missing"),
        ((), "has a config.json; give the Hugging Face directory"),
    ):
        assert run(source, tmp_path / "hf", *arguments) == 2
        assert message in capsys.readouterr().err
    assert run(source, tmp_path, "--model", models / "qwen3_untied") == 2
    assert f"{tmp_path} exists" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
