"""What the clients of vLLM and SGLang servers share: connections, time limits, faults by kind, the weights' version."""

from __future__ import annotations

import asyncio
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

from rollout.engines.base import EngineError, Generation, Sampling

# Of the server's routes; and of those that control it, for which SGLang may have a key of its own.
API_KEY = "ROLLOUT_ENGINE_API_KEY"
ADMIN_KEY = "ROLLOUT_ENGINE_ADMIN_KEY"
CONNECT_TIMEOUT_S = 5.0
# Both servers close a connection that idles for 5 s; one must not be used in the moment of its closing.
KEEP_ALIVE_S = 2.0
PROBE_TOKEN = 0
# The request itself is at fault: any other engine would refuse it as well.
BAD_REQUEST = (400, 413, 422)

FaultKind = Literal["dead", "hanging", "slow", "garbage", "refused", "stale", "aborted"]


class EngineFault(EngineError):
    """A server failed a request. `kind` says how: dead (no connection), hanging (no answer in time), slow (answers far
    later than the others), garbage (an answer that is none), refused (an HTTP error), stale (other weights than were
    synced), aborted (the request was, the server goes on)."""

    def __init__(self, kind: FaultKind, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class CacheCounts:
    """Prompt tokens that were looked up in the server's prefix cache since its start, and those found there."""

    queried_tokens: float
    hit_tokens: float


class HttpEngine(ABC):
    """One server, as one event loop talks to it.

    It generates only while the server holds the weights of `expected_version`: a server that was restarted, or was
    given others, is `stale` until it is synced. `is_asleep` and `is_paused` are what this client has told it, or must
    expect of one that did not answer: others may have told it something else. Keys come from the environment
    (ROLLOUT_ENGINE_API_KEY and ROLLOUT_ENGINE_ADMIN_KEY) and go nowhere but into the Authorization header.

    Args:
        url: http://host:port of the server.
        request_timeout_s: for one response, waiting in the server's queue included; twice that where the connection
            ends and the request is sent again.
        control_timeout_s: for everything else but loading weights, which has `load_timeout_s`.
    """

    dialect: str
    loads_in_place = False  # where what we add to the server's workers can, by what they said at an update's begin

    def __init__(
        self,
        url: str,
        *,
        request_timeout_s: float = 600.0,
        control_timeout_s: float = 60.0,
        load_timeout_s: float = 900.0,
    ):
        self.url = url.rstrip("/")
        self.expected_version: int | None = None
        self.is_asleep = self.is_paused = False
        self.request_timeout_s = request_timeout_s
        self._control_timeout_s = control_timeout_s
        self.load_timeout_s = load_timeout_s
        self._sessions: tuple[aiohttp.ClientSession, aiohttp.ClientSession] | None = None
        self._num_connections = self._num_verified_connections = 0
        self._verifying = asyncio.Lock()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str) -> Generation:
        """Sample one response; log-probs at the sampling temperature.

        Raises:
            EngineFault: the server failed, or holds other weights than `expected_version`.
            ValueError: the server refuses the request for what it is (an empty or too long prompt, a bad id).
        """
        version = self.expected_version
        if version is None:
            raise EngineFault("stale", f"{self.url} was not given weights yet")
        answer = await self._sample(self._generate_body(prompt_ids, sampling, session))
        generation = readable(self.url, lambda: self._read_generation(answer, sampling, version))
        await self._verify_connections()
        return generation

    async def probe(self, timeout_s: float) -> None:
        """Generate one token, weights' version checked: whether the server does its work, not only listens."""
        sampling = Sampling(temperature=0.0, max_tokens=1, stop_token_ids=())
        try:
            async with asyncio.timeout(timeout_s):
                await self.generate([PROBE_TOKEN], sampling, session="probe")
        except TimeoutError:
            raise EngineFault("hanging", f"{self.url} did not generate one token within {timeout_s:.0f} s") from None
        except ValueError as error:
            raise EngineFault("refused", str(error)) from error

    async def verify_version(self) -> None:
        """Raise a `stale` EngineFault unless the server holds the weights of `expected_version`."""
        held = await self.held_version()
        if held is None or held != self.expected_version:
            raise EngineFault("stale", f"{self.url} holds weights {held}, not {self.expected_version}")

    async def health(self) -> None:
        await self._control_json("GET", "/health")

    async def close(self) -> None:
        """Close the connections; the server goes on."""
        for session in self._sessions or ():
            await session.close()
        self._sessions = None

    @abstractmethod
    async def pause(self) -> None:
        """Abort what runs; new requests wait until `resume`."""

    @abstractmethod
    async def resume(self) -> None: ...

    @abstractmethod
    async def sleep(self) -> None:
        """Give back the memory of weights and KV cache: the next thing to come must be weights."""

    @abstractmethod
    async def wake(self) -> None:
        """Take all memory again; weights and answers are undefined until new weights are loaded."""

    @abstractmethod
    async def load_from_disk(self, directory: Path, version: int) -> None:
        """Replace the weights by those of a Hugging Face directory that the server can read; wakes a sleeping one."""

    @abstractmethod
    async def begin_update(self) -> int | None:
        """Forget the version, and wake the memory of the weights: what comes before new weights.

        Returns: the version that the server held, as `held_version` tells it.
        """

    @abstractmethod
    async def end_update(self, version: int) -> None:
        """What comes after new weights: they are called `version`; a server that slept or was paused serves again."""

    @abstractmethod
    async def serve_again(self) -> None:
        """The last part of `end_update`, by itself where the weights were given their version as they came."""

    @abstractmethod
    async def post_update(self, route: str, body: dict[str, Any] | None = None) -> None:
        """One call of the server's own weight transfer protocol (rollout/weight_sync/update.py)."""

    @abstractmethod
    async def held_version(self) -> int | None:
        """The version of the weights in the server, by its own account; None if nobody has synced it."""

    @abstractmethod
    async def checksum(self, sent: Mapping[str, int]) -> str:
        """A checksum of all weights, equal between servers of one program and layout that hold equal weights.

        Raises:
            DigestMismatch: a weight's digest is not the one in `sent` (by Hugging Face name).
        """

    @abstractmethod
    async def world_size(self) -> int:
        """The number of GPUs that hold the model, each of which joins a transfer by NCCL."""

    @abstractmethod
    async def cache_counts(self) -> CacheCounts: ...

    @abstractmethod
    async def identify(self) -> str:
        """The name of the model that is served; raises an EngineFault if the server does not speak this dialect."""

    def _control_key(self, route: str) -> str:
        """The key that a control route asks for; empty if there is none."""
        return os.environ.get(API_KEY, "")

    @abstractmethod
    def _generate_route(self) -> str: ...

    @abstractmethod
    def _generate_body(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> dict[str, Any]: ...

    @abstractmethod
    def _read_generation(self, answer: Any, sampling: Sampling, version: int) -> Generation: ...

    def _open(self) -> tuple[aiohttp.ClientSession, aiohttp.ClientSession]:
        """The connections for samples and those for control, opened inside of the event loop that uses them.

        Apart, so that a connection that may carry samples is always one whose opening was seen.
        """
        if self._sessions is None:
            self._sessions = _session(self.url, self._count_connection), _session(self.url)
        return self._sessions

    async def _count_connection(self, *event: object) -> None:
        self._num_connections += 1

    async def _sample(self, body: dict[str, Any]) -> Any:
        try:
            answer = await self._ask_for_sample(body)
        except EngineFault as fault:
            # A server that stood still closes, once it goes on, connections that have idled for long, also one that a
            # request waits on. A sample can be asked for twice, and a dead server refuses the new connection.
            if not _is_broken_connection(fault.__cause__):
                raise
            answer = await self._ask_for_sample(body)
        if answer.status in BAD_REQUEST:
            raise ValueError(f"{self.url} refuses the request: {answer.excerpt()}")
        return answer.json()

    async def _ask_for_sample(self, body: dict[str, Any]) -> _Answer:
        samples, _ = self._open()
        key, route = os.environ.get(API_KEY, ""), self._generate_route()
        return await _request(samples, self.url, key, self.request_timeout_s, "POST", route, json=body)

    def _check_finish_reason(self, reason: str) -> None:
        """Before anything else of an answer is read: that of an aborted request may lack the rest."""
        if reason == "abort":
            raise EngineFault("aborted", f"{self.url} aborted the request")
        if reason not in ("stop", "length"):
            raise EngineFault("refused", f"{self.url} finished a request by {reason!r}")

    async def _verify_connections(self) -> None:
        """Ask for the weights' version once for all connections opened since it was last asked: a connection does not
        outlive the server's process, so an answer over a verified one comes from the process that was synced."""
        num_mine = self._num_connections
        async with self._verifying:
            if num_mine <= self._num_verified_connections:
                return
            num_seen = self._num_connections
            await self.verify_version()
            self._num_verified_connections = num_seen

    async def _control_json(self, method: str, route: str, *, timeout_s: float | None = None, **arguments: Any) -> Any:
        """The JSON (None for an empty body) that a route answers; an EngineFault for anything but success."""
        return (await self._control(method, route, timeout_s or self._control_timeout_s, **arguments)).json()

    async def _control_text(self, route: str) -> str:
        answer = await self._control("GET", route, self._control_timeout_s)
        answer.raise_for_status()
        return answer.text()

    async def _control(self, method: str, route: str, timeout_s: float, **arguments: Any) -> _Answer:
        _, control = self._open()
        return await _request(control, self.url, self._control_key(route), timeout_s, method, route, **arguments)


@dataclass(frozen=True)
class _Answer:
    """What a server answered to a request of `route`."""

    url: str
    route: str
    status: int
    body: bytes

    def json(self) -> Any:
        """None for an empty body; an EngineFault for anything but success."""
        self.raise_for_status()
        return readable(self.url, lambda: json.loads(self.body)) if self.body else None

    def raise_for_status(self) -> None:
        if self.status != 200:
            raise EngineFault("refused", f"{self.url}: HTTP {self.status} for {self.route}: {self.excerpt()}")

    def text(self) -> str:
        return self.body.decode(errors="replace")

    def excerpt(self) -> str:
        text = self.text()
        return text if len(text) <= 300 else f"{text[:300]}..."


async def _request(
    session: aiohttp.ClientSession, url: str, key: str, timeout_s: float, method: str, route: str, **arguments: Any
) -> _Answer:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        _faults(url, timeout_s),
        session.request(method, route, headers=headers, allow_redirects=False, **arguments) as response,
    ):
        return _Answer(url, route, response.status, await response.read())


@asynccontextmanager
async def _faults(url: str, timeout_s: float) -> AsyncIterator[None]:
    """Turns what goes wrong on the way to a server, or takes longer than `timeout_s`, into EngineFaults."""
    started_s = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except aiohttp.ClientError as error:  # before TimeoutError: one that could not connect in time is both
        # An answer that ends early is a payload error, too.
        is_unreadable = isinstance(error, aiohttp.ClientPayloadError) and "Can not decode" in str(error)
        is_garbage = isinstance(error, aiohttp.ClientResponseError) or is_unreadable
        seconds = time.monotonic() - started_s
        reason = f"{str(error) or type(error).__name__} after {seconds:.1f} s"
        raise EngineFault("garbage" if is_garbage else "dead", f"{url}: {reason}") from error
    except TimeoutError:
        raise EngineFault("hanging", f"{url} did not answer within {timeout_s:.0f} s") from None


def _is_broken_connection(error: BaseException | None) -> bool:
    """Whether a connection that had been made ended, and took the request with it."""
    ends = aiohttp.ServerDisconnectedError | aiohttp.ClientConnectionResetError | aiohttp.ClientOSError
    return isinstance(error, ends) and not isinstance(error, aiohttp.ClientConnectorError)


def _session(url: str, on_connection: Callable[..., Awaitable[None]] | None = None) -> aiohttp.ClientSession:
    """aiohttp: the time of a request with httpx grows with the number of open connections (5 times this at 128)."""
    trace = aiohttp.TraceConfig()
    if on_connection is not None:
        trace.on_connection_create_end.append(on_connection)
    return aiohttp.ClientSession(  # no proxy of the environment leads there: engines are near
        base_url=url,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[trace],
    )


def readable(url: str, read: Callable[[], Any]) -> Any:
    """What `read` makes of an answer; a `garbage` fault if the answer has another shape."""
    try:
        return read()
    except EngineFault:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise EngineFault("garbage", f"{url} gave an unreadable answer: {type(error).__name__}: {error}") from error
