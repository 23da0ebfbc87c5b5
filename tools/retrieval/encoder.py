"""Sentence vectors from a Hugging Face encoder (e5, MiniLM and their like)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

MAX_TOKENS = 512


@dataclass(frozen=True)
class EncoderOptions:
    """`model` is a directory; the prefixes stand before every document and query (e5: "passage: ", "query: ")."""

    model: str
    document_prefix: str = ""
    query_prefix: str = ""


class Encoder:
    """Mean pooling, or the first token's vector where the model's own 1_Pooling/config.json says so; unit length.

    Raises:
        ValueError: the directory is no model.
    """

    def __init__(self, options: EncoderOptions, device: str) -> None:
        self.options = options
        self._device = device
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
            self._model = AutoModel.from_pretrained(options.model, local_files_only=True).to(device).eval()
        except OSError as error:
            raise ValueError(f"{options.model} is no Hugging Face encoder: {str(error).splitlines()[0]}") from error
        self._max_tokens = min(MAX_TOKENS, self._model.config.max_position_embeddings)
        self._takes_first_token = _takes_first_token(Path(options.model))
        self.dimension = int(self._model.config.hidden_size)

    def documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[texts, dimension] float32, unit length."""
        return self._encode([self.options.document_prefix + text for text in texts])

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[texts, dimension] float32, unit length."""
        return self._encode([self.options.query_prefix + text for text in texts])

    @torch.inference_mode()
    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt")
        hidden = self._model(**inputs.to(self._device)).last_hidden_state.float()
        if self._takes_first_token:
            pooled = hidden[:, 0]
        else:
            mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()


def _takes_first_token(model: Path) -> bool:
    path = model / "1_Pooling" / "config.json"
    return path.is_file() and bool(json.loads(path.read_text()).get("pooling_mode_cls_token"))
