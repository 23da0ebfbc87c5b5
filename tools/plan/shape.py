"""Sizes of a model: parameters by how they are split, multiply-adds per token, bytes of key-value cache."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from megatron_opid.config import ConfigError, resolve_model
from megatron_opid.weights.families import Kind, Parameter, parameters
from megatron_opid.weights.hf_config import ModelShape, parse_hf_config, read_hf_config

PUBLISHED_MODELS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "models.json").read_text())


@dataclass(frozen=True)
class LayerParameters:
    """Elements of an average layer: split by tensor parallelism, on every rank, and split by expert parallelism."""

    split: float
    replicated: float
    experts: float


@dataclass(frozen=True)
class Sizes:
    """What the plan needs of a ModelShape. Sizes count elements."""

    shape: ModelShape

    @classmethod
    def of(cls, hf_config: dict[str, Any]) -> Sizes:
        """Raises HfConfigError for a model that is not built."""
        return cls(parse_hf_config(hf_config))

    @property
    def query(self) -> int:
        return self.shape.num_heads * self.shape.head_dim

    @property
    def key(self) -> int:
        return self.shape.num_groups * self.shape.head_dim

    @property
    def is_mixture(self) -> bool:
        return self.shape.experts is not None

    @cached_property
    def parameters(self) -> int:
        """Elements of the Hugging Face checkpoint, from the table that loads it."""
        return sum(_elements(parameter) for parameter in parameters(self.shape))

    @cached_property
    def layer(self) -> LayerParameters:
        sums = {"split": 0, "replicated": 0, "experts": 0}
        for parameter in parameters(self.shape):
            if parameter.name.startswith("decoder.layers."):
                replicated = parameter.kind is Kind.REPLICATED
                group = "experts" if parameter.expert is not None else "replicated" if replicated else "split"
                sums[group] += _elements(parameter)
        return LayerParameters(**{name: total / self.shape.num_layers for name, total in sums.items()})

    @property
    def padded_embedding(self) -> int:
        return self.shape.padded_vocab_size * self.shape.hidden_size

    @property
    def active_expert_matrix(self) -> float:
        """Weights of one average layer's experts that one token meets; 0 in a dense model."""
        experts = self.shape.experts
        return self.layer.experts * experts.num_chosen / experts.num_experts if experts else 0.0

    @property
    def dense_matrix(self) -> float:
        """Weights of one average layer's other matrix products: attention, and the feed-forward block or the router."""
        router = self.shape.experts.num_experts * self.shape.hidden_size if self.shape.experts else 0
        bias = (self.query + 2 * self.key) * self.shape.qkv_bias
        return self.layer.split - bias + router

    @property
    def active_matrix(self) -> float:
        """Weights that a token meets in the layers' matrix products, the LM head left out."""
        return self.shape.num_layers * (self.dense_matrix + self.active_expert_matrix)

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values in bf16, all layers."""
        return 2 * 2 * self.shape.num_layers * self.key


def find_hf_config(model: str) -> dict[str, Any]:
    """The model directory's config.json, or the published one where no such directory is here.

    Raises:
        ConfigError: neither is there.
        HfConfigError: the file is torn.
    """
    directory = resolve_model(model)
    if model and (directory / "config.json").is_file():
        return read_hf_config(directory)
    name = Path(model).name
    if name in PUBLISHED_MODELS:
        return PUBLISHED_MODELS[name]
    known = ", ".join(PUBLISHED_MODELS)
    if not model:
        raise ConfigError(
            [
                "this experiment names no model (a demo makes its own, where it runs); set actor.model to "
                f"one of {known}, or to a model's directory: what `make demo` has left is in runs/EXPERIMENT/init_0"
            ]
        )
    raise ConfigError([f"actor.model={model!r} has no config.json here and is none of {known}; set actor.model"])


def _elements(parameter: Parameter) -> int:
    return sum(prod(shape) for shape in parameter.hf_shapes)
