"""The CPU server, misbehaving as a file says: $FAULT_DIR/PORT holds a fault, which meets the next requests to sample.

Faults: hang; slow SECONDS; garbage; cut (the connection ends within the answer); die.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from rollout.engines.server import __main__ as server

SAMPLING = ("/inference/v1/generate", "/generate")


class Faulty:
    """ASGI middleware."""

    def __init__(self, app, fault_file: Path):
        self._app = app
        self._fault_file = fault_file

    async def __call__(self, scope, receive, send):
        fault = self._fault_file.read_text().split() if self._fault_file.exists() else []
        if not fault or scope["type"] != "http" or scope["path"] not in SAMPLING:
            await self._app(scope, receive, send)
            return
        match fault:
            case ["hang"]:
                while (await receive())["type"] != "http.disconnect":
                    pass
            case ["slow", seconds]:
                await asyncio.sleep(float(seconds))
                await self._app(scope, receive, send)
            case ["garbage"]:
                await _send(send, b'{"choices": [{"index": 0, "token_ids": "x"}], "meta_info": 7}')
            case ["cut"]:
                start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]}
                await send(start)
                await send({"type": "http.response.body", "body": b'{"choi', "more_body": True})
                raise ConnectionAbortedError("as the test wants it")
            case ["die"]:
                os._exit(7)


async def _send(send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> int:
    port = sys.argv[sys.argv.index("--port") + 1]
    plain = server.application
    server.application = lambda *args, **kwargs: Faulty(plain(*args, **kwargs), Path(os.environ["FAULT_DIR"]) / port)
    return server.main()


if __name__ == "__main__":
    sys.exit(main())
