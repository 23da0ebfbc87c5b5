"""What tools.bench_actor measures on: shapes of Qwen3 with random weights, batches, and the operations they need."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_opid.actor.plan import sequence_operations
from megatron_opid.actor.samples import TokenSequence
from megatron_opid.weights.families import parameters
from megatron_opid.weights.hf_config import ModelShape

# layers, hidden_size, intermediate_size, attention heads, key-value heads, head_dim, tied embeddings, vocab_size
SIZES = {
    "tiny": (2, 64, 128, 4, 2, 32, True, 512),
    "qwen3-0.6b": (28, 1024, 3072, 16, 8, 128, True, 151936),
    "qwen3-1.7b": (28, 2048, 6144, 16, 8, 128, True, 151936),
    "qwen3-4b": (36, 2560, 9728, 32, 8, 128, True, 151936),
    "qwen3-8b": (36, 4096, 12288, 32, 8, 128, False, 151936),
}
OPERATIONS_PER_MULTIPLY_ADD = 2
PASSES_OF_TRAINING = 3  # forward, and twice that in the backward


@dataclass(frozen=True)
class BatchKind:
    """Lengths in tokens: log-normal around the means with these spreads; prompts are cut at 3/4 of `longest`, responses
    at 1/4."""

    mean_prompt: int
    prompt_spread: float
    mean_response: int
    response_spread: float
    longest: int


BATCHES = {
    "agentic": BatchKind(1500, 0.4, 120, 0.75, 8192),
    "long": BatchKind(10000, 0.3, 3000, 0.5, 16384),
}


def write_config(name: str, directory: Path) -> None:
    """A model directory that holds a config.json and no weights."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(hf_config(name)))


def hf_config(name: str) -> dict[str, Any]:
    """The config.json of a shape of SIZES."""
    layers, hidden, ffn, heads, groups, head_dim, tied, vocabulary = SIZES[name]
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "tie_word_embeddings": tied,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 40960,
        "hidden_act": "silu",
        "attention_bias": False,
    }


def make_sequences(kind: BatchKind, count: int, vocab_size: int, scale: float = 1.0) -> list[TokenSequence]:
    """`count` sequences of random tokens, the same in every call; `scale` shortens all lengths."""
    generator = np.random.default_rng(0)

    def lengths(mean: int, spread: float, longest: float) -> np.ndarray:
        drawn = mean * generator.lognormal(-(spread**2) / 2, spread, count)
        return (scale * drawn.clip(1, longest)).clip(2).astype(int)

    prompts = lengths(kind.mean_prompt, kind.prompt_spread, 0.75 * kind.longest)
    responses = lengths(kind.mean_response, kind.response_spread, 0.25 * kind.longest)
    return [
        TokenSequence(generator.integers(0, vocab_size, p), generator.integers(0, vocab_size, r))
        for p, r in zip(prompts, responses, strict=True)
    ]


def training_operations(shape: ModelShape, sequences: Sequence[TokenSequence]) -> float:
    """Floating-point operations of one forward and backward pass that cannot be avoided: the head on response rows
    only, causal attention counted half, nothing recomputed."""
    multiply_adds = sum(sequence_operations(shape, sequence) for sequence in sequences)
    return OPERATIONS_PER_MULTIPLY_ADD * PASSES_OF_TRAINING * multiply_adds


class RandomWeights:
    """Hugging Face tensors made when they are asked for, the same for the same name: no file, no second copy."""

    def __init__(self, shape: ModelShape, device: torch.device) -> None:
        self._shapes = {
            name: sizes
            for parameter in parameters(shape)
            for name, sizes in zip(parameter.hf_names, parameter.hf_shapes, strict=True)
        }
        self._device = device

    def get(self, name: str) -> Tensor:
        """float32: norms are 1, everything else normal with deviation 0.02."""
        sizes = self._shapes[name]
        if len(sizes) == 1:
            return torch.ones(sizes, device=self._device)
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        return torch.empty(sizes, device=self._device).normal_(0, 0.02, generator=generator)

    def names(self) -> list[str]:
        return list(self._shapes)
