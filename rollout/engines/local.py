"""The engine in the worker's own process: a transformers model, continuous batching over the requests that wait.

transformers' own continuous batching (5.23) runs on a CPU with right log-probs, but has no seed per request and
is slow: 64 waiting prompts of 120 tokens, 12 sampled tokens each, 0.3M parameters, one core, responses per CPU second:
214 here, 33 there with a small cache, 4 with its defaults (tools/bench_local_engine.py, docs/bench/local_engine.json).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rollout.engines.base import EngineError, Generation, Sampling
from rollout.engines.decode import DecodeBatch, Request
from rollout.weight_sync.digest import digest

# After answers are given, the loop runs this many times before the next decode step: an episode that was answered, one
# that takes a finished episode's place and a task started by either all come to their next request within that.
_LOOP_PASSES = 3


class LocalEngine:
    """Continuous batching on the event loop's own thread: a decode step, then every coroutine that can run, and so on.

    With environments in the same process nothing depends on timing, so equal seeds give equal batches and bitwise equal
    answers. A draw depends on its request's own seed and never on what else is in the batch (log-probs can differ in
    the last bits between batches of different shape).

    Args:
        model: a causal LM in eval mode on its device; full attention in every layer.
        max_batch_sequences: rows decoded at once; further requests wait.
        weight_version: what the model's weights are called until the first update.

    Raises:
        ValueError: the model has sliding-window layers.
    """

    def __init__(self, model: PreTrainedModel, *, max_batch_sequences: int = 64, weight_version: int = 0):
        layer_types = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        if layer_types != {"full_attention"}:
            raise ValueError(f"the local engine runs full attention only, this model has {sorted(layer_types)}")
        self.busy_s = 0.0
        self.weight_version = weight_version
        self.model = model.eval()
        self._max_batch_sequences = max_batch_sequences
        self._batch = DecodeBatch(model)
        self._waiting: deque[Request] = deque()
        self._driver: asyncio.Task[None] | None = None
        self._paused = False
        self._fault: str | None = None
        self._device = model.device

    @classmethod
    def from_pretrained(cls, path: Path, *, device: str, dtype: torch.dtype, max_batch_sequences: int) -> LocalEngine:
        """The engine on a Hugging Face model directory."""
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
        return cls(model.to(device), max_batch_sequences=max_batch_sequences)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str) -> Generation:
        """Sample one response; `session` is not used. Log-probs and temperature 0: see `sampling.sample`.

        Raises:
            ValueError: the prompt is empty, has ids outside the vocabulary, or is too long with its response.
            EngineError: the model failed, or its weights are incomplete.
        """
        self._check(prompt_ids, sampling)
        await self.health()
        request = Request(tuple(prompt_ids), sampling, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._start()
        return await request.answer

    async def pause(self) -> None:
        """Admit no waiting request; return when the running ones are finished."""
        self._paused = True
        if self._driver is not None and not self._driver.done():
            await asyncio.wait({self._driver})

    async def resume(self) -> None:
        self._paused = False
        if self._waiting:
            self._start()

    async def sleep(self) -> None:
        """Pause, and move the weights out of the accelerator's memory."""
        await self.pause()
        self.model.to("cpu")

    async def wake(self) -> None:
        self.model.to(self._device)
        await self.resume()

    async def health(self) -> None:
        """Return if the weights are whole, raise EngineError if an update has failed half-way."""
        if self._fault is not None:
            raise EngineError(self._fault)

    async def counters(self) -> dict[str, float]:
        """Nothing happens to it that its requests do not tell."""
        return {}

    def waiting(self) -> list[str]:
        return [f"the local engine: {len(self._batch.requests)} requests run, {len(self._waiting)} wait"]

    async def close(self) -> None:
        """Refuse every later request, after those that run are finished."""
        await self.pause()
        self._fault = "the engine is closed"
        self._fail_all(EngineError(self._fault))

    async def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace all weights in place, between requests, by Hugging Face names; tied tensors may come once.

        Raises:
            ValueError: a name is unknown, missing or given twice with other values, or a shape or dtype differs. The
                engine then refuses to generate until a whole update succeeds.
        """
        await self.pause()
        self._fault = f"weights are incomplete: the update to version {version} failed"
        try:
            _load(self.model, named_tensors)
            self._fault = None
            self.weight_version = version
        finally:
            if self._fault is not None:
                self._fail_all(EngineError(self._fault))
            await self.resume()

    def digests(self) -> dict[str, int]:
        """The digest of every weight that the engine holds, by name, tied names included."""
        return {name: digest(tensor) for name, tensor in self.model.named_parameters(remove_duplicate=False)}

    def _check(self, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        config = self.model.config
        if not prompt_ids:
            raise ValueError("the prompt is empty")
        if min(prompt_ids) < 0 or max(prompt_ids) >= config.vocab_size:
            raise ValueError(
                f"prompt id {max(prompt_ids)} is outside the model's vocabulary of {config.vocab_size}: "
                "the tokenizer does not belong to the model"
            )
        if sampling.max_tokens < 1 or len(prompt_ids) + sampling.max_tokens > config.max_position_embeddings:
            raise ValueError(
                f"a prompt of {len(prompt_ids)} tokens and max_tokens={sampling.max_tokens} do not fit the model's "
                f"{config.max_position_embeddings} positions; set max_prompt_tokens and max_response_tokens lower"
            )

    def _start(self) -> None:
        if self._driver is None or self._driver.done():
            self._driver = asyncio.get_running_loop().create_task(self._drive())

    async def _drive(self) -> None:
        """Decode until nothing is left, or until what runs is finished when paused."""
        while True:
            for _ in range(_LOOP_PASSES):
                await asyncio.sleep(0)
            newcomers = self._admit()
            if not newcomers and not self._batch.requests:
                return
            started_s = time.perf_counter()
            try:
                finished = self._batch.advance(newcomers)
            except Exception as error:
                self._fail_all(error, newcomers)
                return
            finally:
                self.busy_s += time.perf_counter() - started_s
            for request in finished:
                self._answer(request)

    def _admit(self) -> list[Request]:
        newcomers: list[Request] = []
        while self._waiting and not self._paused:
            if len(self._batch.requests) + len(newcomers) >= self._max_batch_sequences:
                break
            request = self._waiting.popleft()
            if not request.answer.done():
                newcomers.append(request)
        return newcomers

    def _answer(self, request: Request) -> None:
        if not request.answer.done():
            generation = Generation(
                tuple(request.token_ids), tuple(request.logprobs), request.finish_reason, self.weight_version
            )
            request.answer.set_result(generation)

    def _fail_all(self, error: Exception, newcomers: Sequence[Request] = ()) -> None:
        """Give the error to everyone who waits: torch's own failures as EngineError, others (a defect) as they are."""
        for request in [*self._batch.clear(), *newcomers, *self._waiting]:
            if not request.answer.done():
                fault = EngineError(f"{type(error).__name__}: {error}") if isinstance(error, RuntimeError) else error
                request.answer.set_exception(fault)
        self._waiting.clear()


def _load(model: PreTrainedModel, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy the tensors into the model's parameters; refuse whatever does not fit, by name."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    loaded: set[Tensor] = set()  # tensors hash by identity, so that a tied parameter counts once
    for name, tensor in named_tensors:
        target = parameters.get(name)
        if target is None:
            raise ValueError(f"weight {name!r} is not a parameter of {type(model).__name__}")
        if tensor.shape != target.shape or tensor.dtype != target.dtype:
            raise ValueError(
                f"weight {name!r} is {tensor.dtype} {list(tensor.shape)}, "
                f"the engine's is {target.dtype} {list(target.shape)}"
            )
        source = tensor.detach().to(target.device)
        if target in loaded and not torch.equal(target, source):
            raise ValueError(f"weight {name!r} came twice, or is tied to one that came, with other values")
        with torch.no_grad():
            target.copy_(source)
        loaded.add(target)
    missing = sorted(name for name, target in parameters.items() if target not in loaded)
    if missing:
        raise ValueError(f"{len(missing)} weights are missing from the update, the first is {missing[0]!r}")
