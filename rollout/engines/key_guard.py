"""The key of a vLLM server, asked for on every path: `--middleware rollout.engines.key_guard.KeyGuard`.

vLLM 0.24.0's own key guards /v1, /v2 and /inference only. Its routes for weights, sleep and calls into the workers are
open to whoever reaches the port.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from rollout.engines.http import API_KEY

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_TO_ALL = ("/health",)  # for whoever waits for the server, or watches it


class KeyGuard:
    """ASGI middleware that wants `Authorization: Bearer KEY` with the key in ROLLOUT_ENGINE_API_KEY.

    vLLM makes it with the application as only argument.

    Raises:
        KeyError: the environment has no key, so that nothing would be guarded.
    """

    def __init__(self, app: ASGIApp):
        self._app = app
        self._wanted = f"Bearer {os.environ[API_KEY]}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_TO_ALL or self._has_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        given = Headers(scope=scope).get("authorization", "")
        return hmac.compare_digest(given.encode(), self._wanted)
