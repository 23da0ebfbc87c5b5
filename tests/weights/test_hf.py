"""Reading and writing Hugging Face directories; every kind of damage is refused by the tensor's or file's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3Config

from megatron_opid.weights.families import parameters
from megatron_opid.weights.hf import HfWeights, WeightsError, write_hf
from megatron_opid.weights.hf_config import ModelShape, parse_hf_config, read_hf_config

CONFIG = Qwen3Config(
    vocab_size=100,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=False,
)
GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16).save_pretrained(path)
    (path / "tokenizer.json").write_text('{"a": 1}')
    (path / "chat_template.jinja").write_text("{{ messages }}")
    return path


def shape_of(directory: Path) -> ModelShape:
    return parse_hf_config(read_hf_config(directory))


def edit_tensors(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def stream(directory: Path) -> list[tuple[str, torch.Tensor]]:
    weights = HfWeights(directory, shape_of(directory))
    return [(name, weights.get(name)) for parameter in parameters(shape_of(directory)) for name in parameter.hf_names]


@pytest.mark.parametrize("max_shard_bytes", [10**9, 4000])
def test_written_directory_is_what_was_read(directory: Path, tmp_path: Path, max_shard_bytes: int) -> None:
    copy = tmp_path / "out" / "copy"
    write_hf(copy, stream(directory), source=directory, max_shard_bytes=max_shard_bytes)
    num_files = len(list(copy.glob("*.safetensors")))
    assert num_files == 1 if max_shard_bytes == 10**9 else num_files > 3
    assert all(path.stat().st_size < 12000 for path in copy.glob("model-*.safetensors"))
    original = dict(stream(directory))
    assert all(torch.equal(tensor, original[name]) for name, tensor in stream(copy))
    assert (copy / "tokenizer.json").read_text() == '{"a": 1}'
    assert (copy / "chat_template.jinja").exists()
    assert read_hf_config(copy)["dtype"] == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(copy)
    assert torch.equal(loaded.lm_head.weight, original["lm_head.weight"])


def test_an_older_directory_is_replaced(directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "stale").write_text("")
    write_hf(copy, stream(directory), source=directory)
    assert not (copy / "stale").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "model"]


def test_a_failing_stream_leaves_the_older_directory(directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    write_hf(copy, stream(directory), source=directory)

    def broken():
        yield from stream(directory)[:3]
        raise RuntimeError("a rank died")

    with pytest.raises(RuntimeError, match="a rank died"):
        write_hf(copy, broken(), source=directory)
    assert len(stream(copy)) == len(stream(directory))


def test_missing_tensor(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: tensors.pop(GATE))
    with pytest.raises(WeightsError, match=f"tensor {GATE} is missing"):
        HfWeights(directory, shape_of(directory))


def test_misshaped_tensor(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: tensors.update({GATE: tensors[GATE][:20].contiguous()}))
    with pytest.raises(WeightsError, match=rf"{GATE} has shape \(20, 16\), config.json asks for \(24, 16\)"):
        HfWeights(directory, shape_of(directory))


def test_foreign_tensor(directory: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_tensors(directory, lambda tensors: tensors.update({name: torch.zeros(32)}))
    with pytest.raises(WeightsError, match=f"tensor {name} does not belong"):
        HfWeights(directory, shape_of(directory))


@pytest.mark.parametrize("keep_fraction", [0.5, 0.0])
def test_truncated_file(directory: Path, keep_fraction: float) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep_fraction)])
    with pytest.raises(WeightsError, match="model.safetensors cannot be read"):
        HfWeights(directory, shape_of(directory))


def test_truncated_and_missing_shards(directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    write_hf(copy, stream(directory), source=directory, max_shard_bytes=4000)
    second = sorted(copy.glob("model-*.safetensors"))[1]
    first_tensor = next(iter(load_file(second)))
    second.write_bytes(second.read_bytes()[:-10])
    with pytest.raises(WeightsError, match=rf"{second.name} \(it should hold {first_tensor}.*cannot be read"):
        HfWeights(copy, shape_of(copy))
    second.unlink()
    with pytest.raises(WeightsError, match=f"{second.name}.*cannot be read"):
        HfWeights(copy, shape_of(copy))


def test_torn_index_and_no_weights(directory: Path) -> None:
    index = directory / "model.safetensors.index.json"
    index.write_text('{"weight_map": ')
    with pytest.raises(WeightsError, match="index.json is torn"):
        HfWeights(directory, shape_of(directory))
    index.unlink()
    (directory / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="only safetensors are read"):
        HfWeights(directory, shape_of(directory))


def test_head_that_config_ties_is_ignored(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert HfWeights(directory, shape_of(directory)).get("model.norm.weight").shape == (16,)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config.json does not exist; set actor.model"):
        read_hf_config(tmp_path / "none")
