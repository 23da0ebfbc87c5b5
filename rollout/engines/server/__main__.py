"""Serves a model on a CPU: `python -m rollout.engines.server --model DIR --dialect vllm|sglang --port N`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from rollout.engines.http import ADMIN_KEY, API_KEY
from rollout.engines.key_guard import KeyGuard
from rollout.engines.local import LocalEngine
from rollout.engines.server import chat, sglang_routes, vllm_routes
from rollout.engines.server.host import Host

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def application(host: Host, dialect: str, served_name: str, *, deterministic: bool) -> Starlette:
    """The server around an engine. Keys are asked for where the environment variables of the clients are set."""
    tokenizer = AutoTokenizer.from_pretrained(host.directory, local_files_only=True)
    if dialect == "vllm":
        routes = vllm_routes.routes(host)
    else:
        routes = sglang_routes.routes(host, deterministic=deterministic)
    guards = [Middleware(_SglangGuard)]
    if dialect == "vllm":
        guards = [Middleware(KeyGuard)] if os.environ.get(API_KEY) else []
    return Starlette(routes=[*routes, *chat.routes(host, tokenizer, served_name)], middleware=guards)


def argument_parser() -> argparse.ArgumentParser:
    """The options of the server, named as the real servers name theirs where they have them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face directory")
    parser.add_argument("--dialect", choices=["vllm", "sglang"], required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--served-model-name", help="default: the directory")
    parser.add_argument("--weight-version", default="default", help="SGLang's label of the weights it starts with")
    parser.add_argument("--enable-deterministic-inference", action="store_true", help="SGLang: seeds count")
    parser.add_argument("--grace-s", type=int, default=5)
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; exits with code 2 if the model is none."""
    options = parser.parse_args(arguments)
    if not (options.model / "config.json").is_file():
        parser.error(f"--model {options.model} is no Hugging Face model directory")
    return options


def serve(
    options: argparse.Namespace,
    *,
    engine_class: type[LocalEngine] = LocalEngine,
    wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> int:
    """Serve until SIGTERM or SIGINT; requests that run are then given `--grace-s` to finish."""
    logging.basicConfig(level=logging.WARNING)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    engine = engine_class.from_pretrained(
        options.model, device="cpu", dtype=DTYPES[options.dtype], max_batch_sequences=options.max_num_seqs
    )
    host = Host(engine, options.model, None if options.dialect == "vllm" else options.weight_version)
    served_name = options.served_model_name or str(options.model)
    deterministic = options.enable_deterministic_inference
    uvicorn.run(
        wrap(application(host, options.dialect, served_name, deterministic=deterministic)),
        host=options.host,
        port=options.port,
        log_level="warning",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=options.grace_s,
    )
    return 0


class _SglangGuard:
    """SGLang's key guards all routes, and its admin key the control routes."""

    def __init__(self, app: ASGIApp):
        self._app = app
        self._api_key, self._admin_key = os.environ.get(API_KEY, ""), os.environ.get(ADMIN_KEY, "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = self._wanted(scope["path"]) if scope["type"] == "http" else ""
        if key and Headers(scope=scope).get("authorization") != f"Bearer {key}":
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _wanted(self, path: str) -> str:
        if path in sglang_routes.OPEN_TO_ALL:
            return ""
        is_admin = path in sglang_routes.KEPT_BY_ADMIN_KEY and self._admin_key
        return self._admin_key if is_admin else self._api_key


if __name__ == "__main__":
    sys.exit(serve(parse(argument_parser())))
