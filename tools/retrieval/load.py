"""A load on a retrieval server: kept connections, plain HTTP/1.1 on asyncio streams, so that the client costs little.

Latencies of an open loop count from the moment at which a request was due, so a server that falls behind is seen.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
import orjson
import uvloop

NUM_CONNECTIONS = 64


@dataclass(frozen=True)
class Load:
    """What came back. `statuses` counts answers by HTTP status, "short" those with fewer than the wanted documents."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    duration_s: float = 0.0


def wait_until_healthy(port: int, timeout_s: float) -> None:
    """Raises TimeoutError if the server does not answer in time."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=30).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError(f"no retrieval server on port {port} after {timeout_s:g} s")


def run_load(port: int, queries: Sequence[str], *, rate: float | None, duration_s: float, topk: int = 3) -> Load:
    """Send `queries` again and again for `duration_s`.

    Args:
        rate: requests a second at fixed times; None sends the next one as soon as a connection is free.
    """
    requests = [_request(query, topk) for query in queries]
    return uvloop.run(_run(port, requests, rate, duration_s, topk))


def _request(query: str, topk: int) -> bytes:
    body = json.dumps({"queries": [query], "topk": topk, "return_scores": True}).encode()
    head = (
        f"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    return head.encode() + b"\r\n\r\n" + body


async def _run(port: int, requests: list[bytes], rate: float | None, duration_s: float, topk: int) -> Load:
    latencies_s: list[float] = []
    statuses: Counter[str] = Counter()
    due = _due_times(rate, duration_s, time.perf_counter())
    started_s = time.perf_counter()

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number, due_s in due:
            if (wait_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            sent_s = due_s if rate is not None else time.perf_counter()
            writer.write(requests[number % len(requests)])
            status, body = await _response(reader)
            latencies_s.append(time.perf_counter() - sent_s)
            statuses[status] += 1
            if status == "200" and len(orjson.loads(body)["result"][0]) < topk:
                statuses["short"] += 1
        writer.close()

    await asyncio.gather(*(connection() for _ in range(NUM_CONNECTIONS)))
    return Load(latencies_s, statuses, time.perf_counter() - started_s)


def _due_times(rate: float | None, duration_s: float, start_s: float):
    """(number, time) of each request; connections take the next one when they are free."""
    for number in itertools.count():
        due_s = time.perf_counter() if rate is None else start_s + number / rate
        if due_s >= start_s + duration_s:
            return
        yield number, due_s


async def _response(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.split("content-length:", 1)[1].split("\r\n", 1)[0])
    return head.split(" ", 2)[1], await reader.readexactly(length)
