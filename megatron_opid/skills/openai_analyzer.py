"""The analyzer model behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from collections.abc import Sequence
from typing import Any

import openai
from openai.types.chat import ChatCompletion
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
    wait_random,
)

from megatron_opid.skills.chat_analyzer import Reply
from megatron_opid.skills.counters import AnalysisError
from megatron_opid.skills.endpoint import Endpoint
from megatron_opid.skills.parse import SCHEMA

MAX_RETRY_DELAY_S = 60.0
# An endpoint that asks for a longer pause is not waited for: the analysis fails and the training step goes on.
MAX_RETRY_AFTER_S = 120.0
# An answer that never came whole, or is no JSON in UTF-8: what a proxy or an overloaded server gives.
UNREADABLE = (TimeoutError, json.JSONDecodeError, UnicodeDecodeError)

_STRUCTURED = {"type": "json_schema", "json_schema": {"name": "hindsight_skills", "strict": True, "schema": SCHEMA}}


class EndpointModel:
    """ChatModel over HTTP: at most `concurrency` requests in flight, `timeout_s` per attempt, retries with backoff.

    JSON-schema output is asked for until the endpoint refuses it while accepting the same request without.
    """

    def __init__(self, endpoint: Endpoint, *, concurrency: int, timeout_s: float, max_completion_tokens: int):
        self.name = endpoint.model
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._max_completion_tokens = max_completion_tokens
        self._slots = asyncio.Semaphore(concurrency)
        self._structured = True
        # An attempt as a whole is timed and retried here; a limit per socket read would let a trickle of bytes pass.
        self._client = openai.AsyncOpenAI(
            api_key=endpoint.api_key, base_url=endpoint.base_url, max_retries=0, timeout=None
        )

    async def reply(self, messages: Sequence[dict[str, str]], *, session: str) -> Reply:
        attempts = AsyncRetrying(
            stop=stop_after_attempt(self._endpoint.num_retries + 1),
            retry=retry_if_exception(_is_transient),
            wait=self._wait_s,
            reraise=True,
        )
        try:
            completion = await attempts(self._attempt, messages)
        except (openai.APIError, *UNREADABLE) as error:
            reason = (str(error) or type(error).__name__).replace(self._endpoint.api_key, "***")
            raise AnalysisError(_cause(error), reason) from None
        return _read(completion, attempts.statistics["attempt_number"] - 1)

    async def close(self) -> None:
        await self._client.close()

    async def _attempt(self, messages: Sequence[dict[str, str]]) -> ChatCompletion:
        async with self._slots:
            structured = self._structured
            try:
                return await self._send(messages, {"response_format": _STRUCTURED} if structured else {})
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                if not structured:
                    raise
            completion = await self._send(messages, {})
            self._structured = False
            return completion

    async def _send(self, messages: Sequence[dict[str, str]], options: dict[str, Any]) -> ChatCompletion:
        async with asyncio.timeout(self._timeout_s):
            return await self._client.chat.completions.create(
                model=self.name,
                messages=list(messages),
                max_completion_tokens=self._max_completion_tokens,
                **options,
            )

    def _wait_s(self, state: RetryCallState) -> float:
        """What the endpoint asked for, plus jitter against a stampede; else exponential backoff with jitter."""
        delay_s = self._endpoint.retry_delay_s
        requested_s = _retry_after_s(state.outcome.exception())
        if requested_s is not None:
            return requested_s + wait_random(0, delay_s)(state)
        return wait_exponential_jitter(initial=delay_s, max=MAX_RETRY_DELAY_S, jitter=delay_s)(state)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        wait_s = _retry_after_s(error)
        retriable = error.status_code in (408, 409, 429) or error.status_code >= 500
        return retriable and (wait_s is None or wait_s <= MAX_RETRY_AFTER_S)
    return isinstance(error, (openai.APIConnectionError, *UNREADABLE))


def _retry_after_s(error: BaseException | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date (RFC 9110, 10.2.3); None if there is none."""
    value = error.response.headers.get("retry-after") if isinstance(error, openai.APIStatusError) else None
    if value is None:
        return None
    try:
        wait_s = float(value)
    except ValueError:
        date = email.utils.parsedate_tz(value)
        if date is None:
            return None
        wait_s = email.utils.mktime_tz(date) - time.time()
    return max(wait_s, 0.0) if wait_s < float("inf") else None


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return "timeout"
    if isinstance(error, openai.APIConnectionError):
        return "connection"
    if isinstance(error, openai.RateLimitError):
        return "rate_limit"
    if isinstance(error, openai.APIStatusError) and error.status_code < 500:
        return "request"
    return "server"


def _read(completion: ChatCompletion, num_retries: int) -> Reply:
    """The client does not validate answers, so a wrong shape shows only here."""
    try:
        text = completion.choices[0].message.content if completion.choices else ""
        usage = completion.usage
        prompt_tokens, completion_tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    except (AttributeError, LookupError, TypeError) as error:
        raise AnalysisError("server", f"the endpoint's answer is no chat completion: {error}") from error
    if not isinstance(text, str) or not text:
        raise AnalysisError("empty", "the endpoint answered without text")
    return Reply(text, prompt_tokens, completion_tokens, num_retries)
