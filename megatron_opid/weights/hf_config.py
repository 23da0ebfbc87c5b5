"""What a Hugging Face config.json says about the model, for the families that are built. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCAB_MULTIPLE = 128


@dataclass(frozen=True)
class Family:
    """What a `model_type` fixes that no other field of config.json says."""

    qkv_bias: bool
    qk_norm: bool
    has_experts: bool


FAMILIES = {
    "qwen2": Family(qkv_bias=True, qk_norm=False, has_experts=False),
    "qwen3": Family(qkv_bias=False, qk_norm=True, has_experts=False),
    "qwen3_moe": Family(qkv_bias=False, qk_norm=True, has_experts=True),
}

REQUIRED_FIELDS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "rms_norm_eps",
)
REQUIRED_EXPERT_FIELDS = ("num_experts_per_tok", "moe_intermediate_size")


class HfConfigError(ValueError):
    """The config.json is missing, torn, or describes a model that is not built; the message lists every fault."""


@dataclass(frozen=True)
class ExpertShape:
    """The mixture of experts in `layers` (from 0); the other layers are dense.

    normalize_weights: the weights of the chosen experts are divided by their sum.
    """

    num_experts: int
    num_chosen: int
    ffn_size: int
    normalize_weights: bool
    layers: tuple[int, ...]


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer with grouped-query attention, rotary positions and SwiGLU. Sizes count elements.

    ffn_size is that of the dense layers; experts: None for a dense model.
    """

    family: str
    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    num_groups: int
    head_dim: int
    vocab_size: int
    norm_epsilon: float
    rope_theta: float
    tied_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    max_positions: int
    initializer_range: float
    experts: ExpertShape | None = None

    @property
    def padded_vocab_size(self) -> int:
        """The vocabulary filled up to a multiple of 128, for tensor parallelism to divide; Qwen's sizes stay."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def has_experts(self, layer: int) -> bool:
        """Whether layer `layer` (from 0) is a mixture of experts."""
        return self.experts is not None and layer in self.experts.layers


def read_hf_config(model_dir: Path) -> dict[str, Any]:
    """The config.json of a Hugging Face model directory. Raises HfConfigError if it is missing or not a JSON object."""
    path = model_dir / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise HfConfigError(f"{path} does not exist; set actor.model to a Hugging Face model directory") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HfConfigError(f"{path} is not valid JSON ({error}); restore the file") from error
    if not isinstance(config, dict):
        raise HfConfigError(f"{path} holds a JSON {type(config).__name__}, not an object; restore the file")
    return config


def parse_hf_config(config: dict[str, Any]) -> ModelShape:
    """Raises HfConfigError naming every fault of `hf_config_faults`."""
    faults = hf_config_faults(config)
    if faults:
        raise HfConfigError("; ".join(faults))
    family = FAMILIES[config["model_type"]]
    heads = config["num_attention_heads"]
    return ModelShape(
        family=config["model_type"],
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_size=config["intermediate_size"],
        num_heads=heads,
        num_groups=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        norm_epsilon=config["rms_norm_eps"],
        rope_theta=_rope_theta(config),
        tied_embeddings=config.get("tie_word_embeddings", False),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        max_positions=config.get("max_position_embeddings", 32768),
        initializer_range=config.get("initializer_range", 0.02),
        experts=_expert_shape(config) if family.has_experts else None,
    )


def hf_config_faults(config: dict[str, Any]) -> list[str]:
    """Every reason why the model cannot be built, each with its value and what to set; empty if it can."""
    family = config.get("model_type")
    if family not in FAMILIES:
        return [f"config.json: model_type={family!r} is not built; use a model of {', '.join(FAMILIES)}"]
    required = REQUIRED_FIELDS + (REQUIRED_EXPERT_FIELDS if FAMILIES[family].has_experts else ())
    missing = [name for name in required if name not in config]
    if missing:
        return [f"config.json: {', '.join(missing)} missing; restore the file"]
    faults = [
        f"config.json: {name}={config[name]!r} is not a positive number; restore the file"
        for name in required
        if not (isinstance(config[name], int | float) and config[name] > 0)
    ]
    return faults or _size_faults(config) + _rope_faults(config) + _variant_faults(config) + _expert_faults(config)


def _size_faults(config: dict[str, Any]) -> list[str]:
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    faults = []
    if heads % groups:
        faults.append(f"config.json: num_attention_heads={heads} is not a multiple of num_key_value_heads={groups}")
    if not config.get("head_dim") and config["hidden_size"] % heads:
        faults.append(
            f"config.json: hidden_size={config['hidden_size']} is not a multiple of {heads} heads; set head_dim"
        )
    return faults


def _rope_faults(config: dict[str, Any]) -> list[str]:
    for field in ("rope_scaling", "rope_parameters"):
        kind = (config.get(field) or {}).get("rope_type") or (config.get(field) or {}).get("type") or "default"
        if kind != "default":
            return [f"config.json: {field} of type {kind!r} (scaled rope) is not built; use an unscaled config"]
    thetas = {value for value in (config.get("rope_theta"), _rope_parameters(config).get("rope_theta")) if value}
    if not thetas:
        return ["config.json: neither rope_theta nor rope_parameters.rope_theta is there; set one"]
    if len(thetas) > 1:
        return [f"config.json: rope_theta and rope_parameters.rope_theta contradict ({sorted(thetas)}); keep one"]
    return []


def _variant_faults(config: dict[str, Any]) -> list[str]:
    faults = []
    if config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or ()):
        faults.append("config.json: sliding-window attention is not built; set use_sliding_window to false")
    if config.get("hidden_act", "silu") != "silu":
        faults.append(f"config.json: hidden_act={config['hidden_act']!r} is not built; use silu")
    family = config["model_type"]
    if config.get("attention_bias") and not FAMILIES[family].qkv_bias:
        faults.append(f"config.json: attention_bias=true is not built for {family} (its o_proj would have a bias, too)")
    return faults


def _expert_faults(config: dict[str, Any]) -> list[str]:
    if not FAMILIES[config["model_type"]].has_experts:
        return []
    counts = {value for value in (config.get("num_experts"), config.get("num_local_experts")) if value is not None}
    if len(counts) != 1 or not all(isinstance(count, int) and count > 0 for count in counts):
        return [f"config.json: num_experts or num_local_experts is {sorted(counts, key=str)}; set one positive number"]
    (num_experts,), chosen = counts, config["num_experts_per_tok"]
    step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    faults = []
    if chosen > num_experts:
        faults.append(f"config.json: num_experts_per_tok={chosen} is above num_experts={num_experts}; set at most that")
    if chosen == 1 and config.get("norm_topk_prob"):
        faults.append("config.json: norm_topk_prob=true with num_experts_per_tok=1 is not built; set it to false")
    if not isinstance(step, int) or step < 1:
        faults.append(f"config.json: decoder_sparse_step={step!r} is not a positive number; restore the file")
    elif not _expert_layers(config):
        faults.append(
            f"config.json: decoder_sparse_step={step} and mlp_only_layers={dense} leave no layer with experts; "
            "use a dense family"
        )
    return faults


def _expert_shape(config: dict[str, Any]) -> ExpertShape:
    return ExpertShape(
        num_experts=config.get("num_experts") or config["num_local_experts"],
        num_chosen=config["num_experts_per_tok"],
        ffn_size=config["moe_intermediate_size"],
        normalize_weights=config.get("norm_topk_prob", False),
        layers=_expert_layers(config),
    )


def _expert_layers(config: dict[str, Any]) -> tuple[int, ...]:
    step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
    return tuple(
        layer for layer in range(config["num_hidden_layers"]) if layer not in dense and (layer + 1) % step == 0
    )


def _rope_theta(config: dict[str, Any]) -> float:
    return config.get("rope_theta") or _rope_parameters(config)["rope_theta"]


def _rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("rope_parameters") or {}
