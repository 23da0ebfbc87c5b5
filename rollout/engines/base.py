"""The engine protocol: token ids in, token ids and log-probs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Sampling:
    """How to sample one response. `seed` makes the draw repeatable where the engine allows it."""

    temperature: float
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class Generation:
    """A sampled response, the stop token included; `logprobs` is the natural log at the sampling temperature."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    weight_version: int


class EngineError(RuntimeError):
    """The engine could not answer; the episode that asked becomes a failure and is not learned from."""


class Engine(Protocol):
    """Samples responses. Many `generate` calls may wait at once; weights change only while no call is running."""

    busy_s: float  # seconds spent on requests since the engine was made

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str) -> Generation:
        """Sample one response. Calls with the same `session` share a prompt prefix and should share a cache."""
        ...

    async def pause(self) -> None:
        """Accept no new work; return when nothing is running."""
        ...

    async def resume(self) -> None: ...

    async def sleep(self) -> None:
        """Give the accelerator's memory back until new weights come."""
        ...

    async def counters(self) -> dict[str, float]:
        """What happened to the engine since the previous call."""
        ...

    def waiting(self) -> list[str]:
        """What is being worked on at the moment, a line per engine; callable from any thread."""
        ...

    async def close(self) -> None: ...
