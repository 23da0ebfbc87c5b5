"""A random Qwen3 and a byte tokenizer, small enough to make in every test."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rollout.agent_loop import EpisodeSettings

VOCAB_SIZE = 264
TEMPLATE = "<|im_start|>{{ messages[0]['content'] }}<|im_end|>{% if add_generation_prompt %}<|im_start|>{% endif %}"


def make_model(seed: int = 0, *, tied: bool = True, layers: int = 2) -> Qwen3ForCausalLM:
    """A Qwen3 with spread-out logits, so that a wrong position or mask shows in the log-probs."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: index for index, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=TEMPLATE
    )


def make_settings(**changes: object) -> EpisodeSettings:
    values: dict = {
        "max_steps": 4,
        "history_length": 2,
        "prompt_style": "full",
        "max_prompt_tokens": 128,
        "max_response_tokens": 6,
        "temperature": 1.0,
        "stop_token_ids": (2, 70, 71, 72, 73, 74, 75, 76, 77),
        "vocab_size": VOCAB_SIZE,
    }
    return EpisodeSettings(**{**values, **changes})
