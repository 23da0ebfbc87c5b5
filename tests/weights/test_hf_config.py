"""What config.json may say."""

from __future__ import annotations

import math
from typing import Any

import pytest
from transformers import Qwen2Config, Qwen3Config

from megatron_opid.weights.families import parameters
from megatron_opid.weights.hf_config import HfConfigError, hf_config_faults, parse_hf_config

QWEN3 = {
    "model_type": "qwen3",
    "num_hidden_layers": 28,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "rope_scaling": None,
}


# Qwen3-30B-A3B and Qwen3-235B-A22B as published
QWEN3_MOE = QWEN3 | {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
QWEN3_235B = QWEN3_MOE | {
    "num_hidden_layers": 94,
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
}


@pytest.mark.parametrize(
    ("config", "num_parameters", "num_tensors"),
    [(QWEN3_MOE, 30_532_122_624, 18_867), (QWEN3_235B, 235_093_634_560, 36_945)],
)
def test_published_mixtures_have_their_sizes(config: dict[str, Any], num_parameters: int, num_tensors: int) -> None:
    sizes = [size for parameter in parameters(parse_hf_config(config)) for size in parameter.hf_shapes]
    assert sum(map(math.prod, sizes)) == num_parameters
    assert len(sizes) == num_tensors


def test_which_layers_have_experts() -> None:
    config = QWEN3_MOE | {"num_hidden_layers": 8, "decoder_sparse_step": 2, "mlp_only_layers": [5]}
    shape = parse_hf_config(config)
    assert shape.experts.layers == (1, 3, 7)
    assert [shape.has_experts(layer) for layer in (0, 1, 5)] == [False, True, False]
    renamed = {key: value for key, value in config.items() if key != "num_experts"} | {"num_local_experts": 128}
    assert parse_hf_config(renamed) == shape
    assert parse_hf_config(QWEN3).experts is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": None}, r"num_experts or num_local_experts is \[\]"),
        ({"num_local_experts": 64}, r"num_local_experts is \[128, 64\]"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok=129 is above num_experts=128"),
        ({"num_experts_per_tok": 1}, "norm_topk_prob=true with num_experts_per_tok=1"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step=0"),
        ({"mlp_only_layers": list(range(48))}, "leave no layer with experts"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size=None is not a positive"),
        ({"attention_bias": True}, "attention_bias=true is not built for qwen3_moe"),
    ],
)
def test_refusals_of_mixtures(change: dict[str, Any], message: str) -> None:
    with pytest.raises(HfConfigError, match=message):
        parse_hf_config(QWEN3_MOE | change)


def test_both_forms_of_rope() -> None:
    newer = {key: value for key, value in QWEN3.items() if not key.startswith("rope")}
    newer["rope_parameters"] = {"rope_theta": 1000000, "rope_type": "default"}
    assert parse_hf_config(newer) == parse_hf_config(QWEN3)
    assert parse_hf_config(QWEN3).rope_theta == 1000000


@pytest.mark.parametrize("config", [Qwen2Config(rope_theta=1e4), Qwen3Config(rope_theta=1e4)])
def test_what_transformers_writes(config: Qwen2Config | Qwen3Config) -> None:
    shape = parse_hf_config(config.to_dict())
    assert shape.head_dim == getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert shape.rope_theta == 1e4
    assert shape.qkv_bias == (config.model_type == "qwen2")
    assert shape.qk_norm == (config.model_type == "qwen3")


def test_published_vocabularies_are_not_padded() -> None:
    assert parse_hf_config(QWEN3).padded_vocab_size == 151936
    assert parse_hf_config(QWEN3 | {"vocab_size": 152064}).padded_vocab_size == 152064
    assert parse_hf_config(QWEN3 | {"vocab_size": 250}).padded_vocab_size == 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type='llama' is not built"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling of type 'yarn' .scaled rope."),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6}}, "rope_parameters of type 'linear'"),
        ({"rope_theta": None}, "neither rope_theta nor"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "contradict"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"num_key_value_heads": 7}, "not a multiple of num_key_value_heads=7"),
        ({"hidden_size": 0}, "hidden_size=0 is not a positive"),
        ({"vocab_size": "many"}, "vocab_size='many'"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(HfConfigError, match=message):
        parse_hf_config(QWEN3 | change)


def test_missing_fields_are_all_named() -> None:
    config = {key: value for key, value in QWEN3.items() if key not in ("hidden_size", "rms_norm_eps")}
    assert hf_config_faults(config) == ["config.json: hidden_size, rms_norm_eps missing; restore the file"]
