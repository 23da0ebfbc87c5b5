"""The tokens that end a response."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def end_token_ids(tokenizer: PreTrainedTokenizerBase, model: Path) -> tuple[int, ...]:
    """The tokenizer's, which ends a turn of its chat template, and those of the model's generation_config.json.

    SGLang stops at the latter whatever it is asked, vLLM and the local engine only where they are named: all are, so
    that a response ends at the same token on each. Qwen3 has <|endoftext|> beside <|im_end|>.
    """
    path = model / "generation_config.json"
    own = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or [])]))
