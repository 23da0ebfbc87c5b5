"""The CPU server, misbehaving as a file says: $FAULT_DIR/PORT holds a fault, which meets the next requests to sample.

Faults: hang; slow SECONDS; garbage; cut (the connection ends within the answer); die. Tests and tools.soak_rollout
inject them. With --token-ms the model decodes nothing: answers are drawn by seed and take that long per token, however
many run beside each other, as on a GPU that is bound by reading its weights. That leaves weights, versions, digests and
the protocol as they are and makes a hundred thousand episodes cheap.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from rollout.engines.base import Generation, Sampling
from rollout.engines.commands import ServerCommand, ServerSettings, server_command
from rollout.engines.local import LocalEngine
from rollout.engines.server import __main__ as server

SAMPLING = ("/inference/v1/generate", "/generate")
FAULT_DIR = "FAULT_DIR"


def faulty_command(
    settings: ServerSettings,
    port: int,
    gpus: Sequence[str],
    key_file: Path,
    *,
    faults: Path,
    token_ms: float | None = None,
    mean_tokens: float | None = None,
) -> ServerCommand:
    """`server_command` for a server that misbehaves as the files in `faults` say, and with `token_ms` draws answers."""
    command = server_command(settings, port, gpus, key_file)
    arguments = ["tools.faulty_server" if word == "rollout.engines.server" else word for word in command.arguments]
    if token_ms is not None:
        arguments += ["--token-ms", str(token_ms)]
    if mean_tokens is not None:
        arguments += ["--mean-tokens", str(mean_tokens)]
    return replace(command, arguments=tuple(arguments), environment=command.environment | {FAULT_DIR: str(faults)})


def inject(faults: Path, url: str, fault: str) -> None:
    """The next requests to sample at `url` meet `fault`; "" ends that."""
    path = faults / url.rpartition(":")[2]
    if fault:
        path.with_suffix(".new").write_text(fault)
        path.with_suffix(".new").rename(path)
    else:
        path.unlink(missing_ok=True)


class DrawnAnswers(LocalEngine):
    """Holds and changes weights as its parent does; its answers are of 1 to `max_tokens` tokens, drawn by the seed:
    evenly, or exponentially with `mean_tokens` before the cut, most of them short and a few long."""

    token_s = 0.0
    mean_tokens: float | None = None

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str) -> Generation:
        self._check(prompt_ids, sampling)
        await self.health()
        draw = random.Random(sampling.seed)
        if self.mean_tokens is None:
            size = draw.randint(1, sampling.max_tokens)
        else:
            size = min(sampling.max_tokens, math.ceil(draw.expovariate(1 / self.mean_tokens)))
        stops = size < sampling.max_tokens and bool(sampling.stop_token_ids)
        others = [token for token in range(self.model.config.vocab_size) if token not in sampling.stop_token_ids]
        ids = draw.choices(others, k=size - stops) + list(sampling.stop_token_ids[:stops])
        with self._busy():
            while self._paused:
                await asyncio.sleep(0.01)
            await asyncio.sleep(self.token_s * len(ids))
        logprob = -math.log(self.model.config.vocab_size)
        reason = "stop" if stops else "length"
        return Generation(tuple(ids), (logprob,) * len(ids), reason, self.weight_version)

    @contextlib.contextmanager
    def _busy(self):
        """Count the seconds in which any request runs."""
        self._num_running = getattr(self, "_num_running", 0) + 1
        if self._num_running == 1:
            self._busy_since_s = time.perf_counter()
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self.busy_s += time.perf_counter() - self._busy_since_s


class Faulty:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, fault_file: Path):
        self._app = app
        self._fault_file = fault_file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_sampling = scope["type"] == "http" and scope["path"] in SAMPLING
        fault = self._fault_file.read_text().split() if is_sampling and self._fault_file.exists() else []
        match fault:
            case []:
                await self._app(scope, receive, send)
            case ["hang"]:
                while (await receive())["type"] != "http.disconnect":
                    pass
            case ["slow", seconds]:
                await asyncio.sleep(float(seconds))
                await self._app(scope, receive, send)
            case ["garbage"]:
                await _send(send, b'{"choices": [{"index": 0, "token_ids": "x"}], "meta_info": 7}')
            case ["cut"]:
                headers = [(b"content-length", b"1000")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": b'{"choi', "more_body": True})
                raise ConnectionAbortedError("as the fault wants it")
            case ["die"]:
                os._exit(7)
            case _:
                raise ValueError(f"{self._fault_file} holds the unknown fault {' '.join(fault)!r}")


async def _send(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> int:
    """Serve until SIGTERM."""
    parser = server.argument_parser()
    parser.add_argument("--token-ms", type=float, help="draw answers, this long per token; default: the model decodes")
    parser.add_argument("--mean-tokens", type=float, help="of drawn answers, before the cut; default: drawn evenly")
    options = server.parse(parser)
    engine_class: type[LocalEngine] = LocalEngine
    if options.token_ms is not None:
        engine_class, DrawnAnswers.token_s = DrawnAnswers, options.token_ms / 1000
        DrawnAnswers.mean_tokens = options.mean_tokens
    faults = Path(os.environ[FAULT_DIR]) / str(options.port)
    return server.serve(options, engine_class=engine_class, wrap=lambda app: Faulty(app, faults))


if __name__ == "__main__":
    sys.exit(main())
