"""The local engine as a server holds it: requests that can be aborted, weights from disk, sleep, counters."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from starlette.requests import Request
from torch import Tensor

from rollout.engines.base import Generation, Sampling
from rollout.engines.local import LocalEngine

CACHE_BLOCK_TOKENS = 16


class Host:
    """One engine and what its server counts. `version_label` is whatever the last update called its weights."""

    def __init__(self, engine: LocalEngine, directory: Path, version_label: Any):
        self.engine = engine
        self.directory = directory
        self.version_label = version_label
        self.is_paused = False
        self.is_asleep = False
        self.num_finished: dict[str, int] = {}
        self.prompt_tokens = self.response_tokens = self.cached_tokens = 0
        self._running: set[asyncio.Task[Generation]] = set()
        self._blocks: set[int] = set()

    @property
    def num_running(self) -> int:
        return len(self._running)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, request: Request, cache_salt: str = ""
    ) -> tuple[Generation | None, int]:
        """The response, None if it was aborted or its caller has left; and how many prompt tokens a cache would have
        held. Waits while the engine is paused.

        Raises: ValueError for a request that cannot be run.
        """
        num_cached = self._look_up(prompt_ids, cache_salt)
        task = asyncio.create_task(self.engine.generate(prompt_ids, sampling, session=""))
        self._running.add(task)
        leaving = asyncio.create_task(_disconnect(request))
        try:
            await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                generation = await task
                self._count(generation.finish_reason, len(prompt_ids), len(generation.token_ids), num_cached)
                return generation, num_cached
            self._count("abort", len(prompt_ids), 0, num_cached)
            return None, num_cached
        finally:
            leaving.cancel()
            self._running.discard(task)

    async def pause(self) -> None:
        """Abort what runs and admit no request until `resume`; returns when none runs."""
        self.is_paused = True
        self.abort_all()
        await self.engine.pause()

    async def resume(self) -> None:
        self.is_paused = False
        await self.engine.resume()

    def abort_all(self) -> None:
        """End every request; each is answered at once."""
        for task in self._running:
            task.cancel()

    async def load(self, directory: Path) -> None:
        """`load_tensors` of a Hugging Face directory.

        Raises: ValueError, OSError: the directory does not hold these weights, whole.
        """
        await self.load_tensors(_tensors(directory))
        self.directory = directory

    async def load_tensors(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights; a paused engine stays paused.

        Raises: ValueError: these are not this model's weights, whole.
        """
        await self.engine.update_weights(named_tensors, self.engine.weight_version + 1)
        if self.is_paused:
            await self.engine.pause()

    def forget_prefixes(self) -> None:
        """No prompt's beginning counts as seen before."""
        self._blocks.clear()

    async def sleep(self, *, drop_weights: bool) -> None:
        """Pause and give memory back; weights that are dropped are wrong after `wake`, until they are loaded."""
        await self.pause()
        self.is_asleep = True
        self.forget_prefixes()
        if drop_weights:
            with torch.no_grad():
                for parameter in self.engine.model.parameters():
                    parameter.zero_()

    async def wake(self) -> None:
        self.is_asleep = False
        await self.resume()

    def _look_up(self, prompt_ids: Sequence[int], salt: str) -> int:
        """Tokens of the prompt's leading blocks that were seen before; the last token is always computed."""
        num_cached, chain, seen = 0, hash(salt), True
        for start in range(0, len(prompt_ids) - CACHE_BLOCK_TOKENS, CACHE_BLOCK_TOKENS):
            chain = hash((chain, *prompt_ids[start : start + CACHE_BLOCK_TOKENS]))
            seen = seen and chain in self._blocks
            num_cached += CACHE_BLOCK_TOKENS * seen
            self._blocks.add(chain)
        return num_cached

    def _count(self, reason: str, prompt_tokens: int, response_tokens: int, cached_tokens: int) -> None:
        self.num_finished[reason] = self.num_finished.get(reason, 0) + 1
        self.prompt_tokens += prompt_tokens
        self.response_tokens += response_tokens
        self.cached_tokens += cached_tokens


async def _disconnect(request: Request) -> None:
    """Returns when the caller has closed the connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{directory} holds no safetensors")
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                yield name, file.get_tensor(name)
