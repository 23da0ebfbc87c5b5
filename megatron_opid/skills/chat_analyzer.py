"""An analyzer that asks a language model: request, answer, tolerant parsing, counters. The model is a ChatModel."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_opid.skills.cache import ReplyCache
from megatron_opid.skills.counters import AnalysisCounters, AnalysisError
from megatron_opid.skills.outcome import succeeded
from megatron_opid.skills.parse import parse_reply
from megatron_opid.skills.request import build_messages
from rollout.trajectory import HindsightSkills, Trajectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """A model's answer and what it cost; `num_retries` counts the attempts before the one that answered."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    num_retries: int = 0


class ChatModel(Protocol):
    """What answers a chat. `name` identifies the model in the cache."""

    name: str

    async def reply(self, messages: Sequence[dict[str, str]], *, session: str) -> Reply:
        """Raises AnalysisError with the cause if there is no answer."""
        ...

    async def close(self) -> None: ...


class ChatAnalyzer:
    """Analyzer over any ChatModel. Only answers that could be parsed enter `cache`; a bad one is asked for anew."""

    def __init__(
        self, model: ChatModel, max_step_skills: int, success_threshold: float, *, cache: ReplyCache | None = None
    ):
        self._model = model
        self._max_step_skills = max_step_skills
        self._success_threshold = success_threshold
        self._cache = cache
        self._counters = AnalysisCounters()

    async def analyze(self, trajectory: Trajectory) -> HindsightSkills | None:
        self._counters.add("analyses")
        messages = build_messages(trajectory, succeeded(trajectory, self._success_threshold), self._max_step_skills)
        cached = self._cache.get(self._model.name, messages) if self._cache else None
        try:
            text = await self._ask(messages, trajectory.uid) if cached is None else cached
            parsed = parse_reply(text, len(trajectory.steps), self._max_step_skills)
            if self._cache and cached is None:
                text = self._cache.put(self._model.name, messages, text)
                parsed = parse_reply(text, len(trajectory.steps), self._max_step_skills)
        except AnalysisError as error:
            if self._counters.add_failure(error.cause) == 1:
                logger.warning("analysis of episode %s failed (%s): %s", trajectory.uid, error.cause, error)
            return None
        self._counters.add("dropped_step_skills", parsed.num_dropped)
        if cached is not None:
            self._counters.add("cache_hits")
        return parsed.skills

    def counters(self) -> dict[str, float]:
        return self._counters.drain()

    async def close(self) -> None:
        await self._model.close()

    async def _ask(self, messages: list[dict[str, str]], session: str) -> str:
        start_s = time.monotonic()
        try:
            reply = await self._model.reply(messages, session=session)
        finally:
            self._counters.add_latency(time.monotonic() - start_s)
        self._counters.add("prompt_tokens", reply.prompt_tokens)
        self._counters.add("completion_tokens", reply.completion_tokens)
        self._counters.add("retries", reply.num_retries)
        return reply.text
