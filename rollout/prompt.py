"""From prompt text to prompt ids: one way for the agent loop, the teacher prompts and the policy analyzer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from rollout.line_encoder import LineEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str, max_prompt_tokens: int) -> tuple[int, ...]:
    """Ids of `text` as one user turn, ready for the assistant's answer; see `encode_chat`."""
    return encode_chat(tokenizer, [{"role": "user", "content": text}], max_prompt_tokens)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], max_prompt_tokens: int
) -> tuple[int, ...]:
    """Ids of a chat under the tokenizer's own template, generation prompt added, at most `max_prompt_tokens` long.

    Templates that know a thinking mode (Qwen3) get it switched off; others ignore the variable. An over-long chat loses
    its beginning, because the newest observation and the call to act stand at the end.

    Raises:
        ValueError: the tokenizer has no chat template, or `max_prompt_tokens` is below 1.
    """
    if max_prompt_tokens < 1:
        raise ValueError(f"max_prompt_tokens={max_prompt_tokens} leaves no room for a prompt; set at least 1")
    if tokenizer.chat_template is None:
        raise ValueError(f"tokenizer {tokenizer.name_or_path!r} has no chat template; use an instruction-tuned model")
    text = tokenizer.apply_chat_template(
        [dict(message) for message in messages], add_generation_prompt=True, tokenize=False, enable_thinking=False
    )
    return _line_encoder(tokenizer).encode(text)[-max_prompt_tokens:]


@lru_cache(maxsize=4)
def _line_encoder(tokenizer: PreTrainedTokenizerBase) -> LineEncoder:
    return LineEncoder(tokenizer)
