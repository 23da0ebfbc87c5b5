"""What config.json may say."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Qwen2Config, Qwen3Config

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
