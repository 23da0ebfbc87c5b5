"""The running batch of the local engine: prompts join and rows leave between decode steps, around one KV cache."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from rollout.engines.base import FinishReason, Generation, Sampling
from rollout.engines.sampling import request_uniforms, sample


@dataclass(eq=False)
class Request:
    """One response in the making. `answer` is where its caller waits; a caller who left has cancelled it."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    answer: asyncio.Future[Generation]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    uniforms: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.uniforms = request_uniforms(self.sampling.seed, self.sampling.max_tokens)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens whose keys and values are in the cache: all but the newest sampled one, which is the next input."""
        return len(self.prompt_ids) + max(len(self.token_ids) - 1, 0)

    @property
    def finish_reason(self) -> FinishReason | None:
        """None while the response goes on."""
        if self.token_ids and self.token_ids[-1] in self.sampling.stop_token_ids:
            return "stop"
        return "length" if len(self.token_ids) == self.sampling.max_tokens else None


Part = tuple[
    list[Request], DynamicCache, Tensor
]  # rows, their cache right-aligned at its end, logits [rows, vocabulary]


class DecodeBatch:
    """Rows of requests and their keys and values, right-aligned: the last column is every row's newest cached token.

    Args:
        model: a decoder with full attention in every layer.
        prefill_tokens: prompts that join together are run in pieces of at most this many tokens, padding included
            (a longer prompt runs alone): small pieces of like lengths stay in the CPU's caches and pad little.
    """

    def __init__(self, model: PreTrainedModel, prefill_tokens: int = 2048):
        self._model = model
        self._prefill_tokens = prefill_tokens
        self._cache = DynamicCache()
        self.requests: list[Request] = []

    def advance(self, newcomers: Sequence[Request]) -> list[Request]:
        """Sample one more token of every request, newcomers included; return those that finished.

        They leave the batch. Requests whose caller has left are dropped.
        """
        with torch.inference_mode():
            parts = [self._decode()] if self.requests else []
            parts += [self._prefill(piece) for piece in self._pieces(newcomers)]
            requests = [request for rows, _, _ in parts for request in rows]
            _append_tokens(requests, torch.cat([logits for _, _, logits in parts]))
            finished = [request for request in requests if request.finish_reason]
            self._keep(parts)
        return finished

    def clear(self) -> list[Request]:
        """Forget every request, and return them."""
        requests, self.requests = self.requests, []
        self._cache = DynamicCache()
        return requests

    def _decode(self) -> Part:
        lengths = torch.tensor([request.num_cached_tokens for request in self.requests])
        inputs = torch.tensor([[request.token_ids[-1]] for request in self.requests])
        width = self._cache.get_seq_length()
        mask = torch.arange(width + 1) >= (width - lengths)[:, None]
        return self.requests, self._cache, self._forward(inputs, mask, lengths[:, None], self._cache)

    def _prefill(self, requests: list[Request]) -> Part:
        width = max(len(request.prompt_ids) for request in requests)
        inputs = torch.zeros(len(requests), width, dtype=torch.int64)
        mask = torch.zeros(len(requests), width, dtype=torch.bool)
        for row, request in enumerate(requests):
            start = width - len(request.prompt_ids)
            inputs[row, start:] = torch.tensor(request.prompt_ids)
            mask[row, start:] = True
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache()
        return requests, cache, self._forward(inputs, mask, positions, cache)

    def _forward(self, inputs: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Logits of each row's last column, on the CPU: [rows, vocabulary]."""
        device = self._model.device
        output = self._model(
            input_ids=inputs.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _pieces(self, newcomers: Sequence[Request]) -> Iterator[list[Request]]:
        """Newcomers in pieces of similar length within the token budget."""
        piece: list[Request] = []
        for request in sorted(newcomers, key=lambda request: len(request.prompt_ids)):
            if piece and (len(piece) + 1) * len(request.prompt_ids) > self._prefill_tokens:
                yield piece
                piece = []
            piece.append(request)
        if piece:
            yield piece

    def _keep(self, parts: list[Part]) -> None:
        """Make the next batch of the unfinished rows of all parts."""
        kept = [
            [row for row, request in enumerate(rows) if not request.finish_reason and not request.answer.done()]
            for rows, _, _ in parts
        ]
        if len(parts) == 1 and len(kept[0]) == len(parts[0][0]):
            self.requests, self._cache, _ = parts[0]
            return
        self.requests = [rows[row] for (rows, _, _), keep in zip(parts, kept, strict=True) for row in keep]
        self._cache = DynamicCache()
        if not self.requests:
            return
        width = max(request.num_cached_tokens for request in self.requests)
        pieces = [_select(cache, keep, width) for (_, cache, _), keep in zip(parts, kept, strict=True) if keep]
        for index, layer in enumerate(zip(*pieces, strict=True)):
            keys, values = (torch.cat(tensors) for tensors in zip(*layer, strict=True))
            self._cache.update(keys, values, index)


def _select(cache: DynamicCache, rows: list[int], width: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of some rows, per layer, [rows, heads, width, head size]: cut or zero-padded on the left."""
    # F.pad with a negative size cuts, so that one call serves both.
    missing = (0, 0, width - cache.get_seq_length(), 0)
    return [(pad(layer.keys[rows], missing), pad(layer.values[rows], missing)) for layer in cache.layers]


def _append_tokens(requests: list[Request], logits: Tensor) -> None:
    """Draw every request's next token from its row of `logits` [requests, vocabulary]."""
    sampling = [request.sampling for request in requests]
    ids, logprobs = sample(
        logits,
        torch.tensor([s.temperature for s in sampling], dtype=torch.float32, device=logits.device),
        torch.tensor([s.top_p for s in sampling], dtype=torch.float32, device=logits.device),
        torch.tensor([r.uniforms[len(r.token_ids)] for r in requests], dtype=torch.float64, device=logits.device),
    )
    for request, token, logprob in zip(requests, ids.tolist(), logprobs.tolist(), strict=True):
        request.token_ids.append(token)
        request.logprobs.append(logprob)
