"""The running batch of the local engine: prompts join and rows leave between decode steps, around one KV cache."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from rollout.engines.base import FinishReason, Generation, Sampling
from rollout.engines.kv_slab import KVSlab
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


class DecodeBatch:
    """The requests that are being decoded, each with a row of the key-value slab.

    Args:
        model: a decoder with full attention in every layer.
        prefill_tokens: prompts that join together are run in pieces of at most this many tokens, padding included
            (a longer prompt runs alone): small pieces of like lengths stay in the CPU's caches and pad little.
    """

    def __init__(self, model: PreTrainedModel, prefill_tokens: int = 2048):
        self._model = model
        self._prefill_tokens = prefill_tokens
        self._slab = KVSlab()
        self.requests: list[Request] = []  # by row

    def advance(self, newcomers: Sequence[Request]) -> list[Request]:
        """Sample one more token of every request, newcomers included; return those that finished.

        They leave the batch. Requests whose caller has left are dropped.
        """
        with torch.inference_mode():
            logits = [self._decode()] if self.requests else []
            logits += [self._prefill(piece) for piece in self._pieces(newcomers)]
            _append_tokens(self.requests, torch.cat(logits))
        finished = [request for request in self.requests if request.finish_reason]
        with torch.inference_mode():
            self._drop_rows()
        return finished

    def clear(self) -> list[Request]:
        """Forget every request and give their memory back; returns them."""
        requests, self.requests = self.requests, []
        self._slab.clear()
        return requests

    def _decode(self) -> Tensor:
        """Logits of the next token of every running request, [requests, vocabulary]."""
        lengths = torch.tensor([request.num_cached_tokens for request in self.requests])
        inputs = torch.tensor([[request.token_ids[-1]] for request in self.requests])
        longest = int(lengths.max())
        mask = torch.arange(longest + 1) >= (longest - lengths)[:, None]
        return self._forward(inputs, mask, lengths[:, None], self._slab.window(longest))

    def _prefill(self, requests: list[Request]) -> Tensor:
        """Run prompts and give them rows; logits of their first tokens, [requests, vocabulary]."""
        width = max(len(request.prompt_ids) for request in requests)
        inputs = torch.zeros(len(requests), width, dtype=torch.int64)
        mask = torch.zeros(len(requests), width, dtype=torch.bool)
        for row, request in enumerate(requests):
            start = width - len(request.prompt_ids)
            inputs[row, start:] = torch.tensor(request.prompt_ids)
            mask[row, start:] = True
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache()
        logits = self._forward(inputs, mask, positions, cache)
        # The decode step has run before: each running request's newest token is in the slab already.
        longest = max((len(r.prompt_ids) + len(r.token_ids) for r in self.requests), default=0)
        self._slab.add(cache, longest)
        self.requests += requests
        return logits

    def _forward(self, inputs: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Logits of each row's last column, [rows, vocabulary]."""
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

    def _drop_rows(self) -> None:
        for row in reversed(range(len(self.requests))):
            request = self.requests[row]
            if request.finish_reason or request.answer.done():
                self._slab.remove(row)
                last = self.requests.pop()
                if row < len(self.requests):
                    self.requests[row] = last
        if not self.requests:
            self._slab.clear()


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
