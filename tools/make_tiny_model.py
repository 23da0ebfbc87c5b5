"""Makes a small Qwen3 with random weights and a BPE tokenizer of its own, as a Hugging Face directory.

    python -m tools.make_tiny_model --texts demonstrations.jsonl --out models/tiny [--layers 3 --hidden 96 ...]

The tokenizer is trained on the conversations of `--texts` (JSONL, {"messages": [...]}), byte-level underneath, so any
text can be encoded. The model is what a newcomer trains on a CPU in minutes; nothing else in the project knows of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
TAGS = ("<think>", "</think>", "<action>", "</action>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}" + ASSISTANT + "{{ message['content'] }}" + END + "{% else %}"
    "" + USER + "{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)
# A word keeps the blank before it and the number after it: " cabinet 12" is one piece, so the names of objects, which
# the policy has to copy, become single tokens.
PIECES = r" ?[A-Za-z]+(?: \d+(?!\d))?| ?\d+|\n| ?[^\sA-Za-z\d]+|\s+"


@dataclass(frozen=True)
class Shape:
    """The size of the model: Qwen3 with tied embeddings."""

    layers: int = 3
    hidden: int = 96
    heads: int = 4
    key_value_heads: int = 2
    head_dim: int = 32
    feed_forward: int = 288
    max_positions: int = 1024


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, tags: Sequence[str] = TAGS) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose merges never cross `PIECES`, with a chat template of one token per turn mark.
    Each of `tags` is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in tags])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(shape: Shape, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 of `shape` with random fp32 weights; its vocabulary is the tokenizer's."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=True,
        initializer_range=0.04,
        rope_theta=10000.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config).float()


def read_texts(path: Path) -> list[str]:
    """Every message of a conversations file."""
    with path.open(encoding="utf-8") as lines:
        return [message["content"] for line in lines for message in json.loads(line)["messages"]]


def main(arguments: list[str] | None = None) -> int:
    """Write the directory and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocabulary-size", type=int, default=1024)
    parser.add_argument("--tags", nargs="+", default=TAGS, help="of the environment's responses: one token each")
    parser.add_argument("--seed", type=int, default=0)
    for name, default in vars(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    options = parser.parse_args(arguments)
    shape = Shape(**{name: getattr(options, name) for name in vars(Shape())})
    tokenizer = train_tokenizer(read_texts(options.texts), options.vocabulary_size, options.tags)
    model = make_model(shape, tokenizer, options.seed)
    partial = options.out.with_name(options.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save_pretrained(partial)
    model.save_pretrained(partial)
    partial.rename(options.out)
    print(f"{options.out}: {model.num_parameters() / 1e6:.2f} M parameters, vocabulary {len(tokenizer)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
