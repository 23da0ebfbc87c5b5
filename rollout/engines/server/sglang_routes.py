"""SGLang 0.5.14's routes (srt/entrypoints/http_server.py of its source), with our hooks (sglang_hooks.py)."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from rollout.engines import sglang_names
from rollout.engines.base import EngineError, Sampling
from rollout.engines.server.host import Host
from rollout.engines.server.transfer import Transfer

OPEN_TO_ALL = ("/health", "/health_generate", "/metrics")
KEPT_BY_ADMIN_KEY = (
    "/pause_generation",
    "/continue_generation",
    "/update_weights_from_disk",
    "/update_weight_version",
    "/init_weights_update_group",
    "/destroy_weights_update_group",
    "/update_weights_from_distributed",
    "/release_memory_occupation",
    "/resume_memory_occupation",
    "/weights_checker",
    "/flush_cache",
    "/abort_request",
)
KNOWN_PARAMS = {"temperature", "top_p", "max_new_tokens", "stop_token_ids", "sampling_seed"}


def routes(host: Host, *, deterministic: bool) -> list[Route]:
    """The routes around one engine; `deterministic` heeds `sampling_seed`, which SGLang else ignores."""
    api = _Routes(host, deterministic)
    posted: dict[str, Any] = {
        "/generate": api.generate,
        "/pause_generation": api.pause,
        "/continue_generation": api.resume,
        "/update_weights_from_disk": api.update_from_disk,
        "/update_weight_version": api.update_version,
        "/init_weights_update_group": api.join_group,
        "/destroy_weights_update_group": api.leave_group,
        "/update_weights_from_distributed": api.update_from_group,
        "/release_memory_occupation": api.release_memory,
        "/resume_memory_occupation": api.resume_memory,
        "/weights_checker": api.check_weights,
        "/abort_request": api.abort,
    }
    got: dict[str, Any] = {
        "/health": api.health,
        "/health_generate": api.health,
        "/model_info": api.model_info,
        "/server_info": api.server_info,
        "/flush_cache": api.flush_cache,
        "/metrics": api.metrics,
    }
    return [
        *(Route(path, handler, methods=["POST"]) for path, handler in posted.items()),
        *(Route(path, handler, methods=["GET", "POST"]) for path, handler in got.items()),
    ]


class _Routes:
    def __init__(self, host: Host, deterministic: bool):
        self._host = host
        self._deterministic = deterministic
        self._released: set[str] = set()
        self._transfer = Transfer(host)
        self._is_open = asyncio.Event()
        self._is_open.set()

    @asynccontextmanager
    async def _writer_lock(self) -> AsyncIterator[None]:
        """While SGLang changes weights and is not paused: it waits for all that runs, and holds back what comes."""
        if self._host.is_paused:
            yield
            return
        self._is_open.clear()
        try:
            while self._host.num_running:
                await asyncio.sleep(0.01)
            yield
        finally:
            self._is_open.set()

    async def health(self, request: Request) -> Response:
        """Plain /health only answers at once where the environment says so; else a token is generated."""
        generates = os.environ.get("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "1").lower() not in ("0", "false")
        if request.url.path == "/health" and not generates:
            return Response()
        await request.body()
        probe = self._host.generate([0], Sampling(0.0, 1, ()), request)
        try:
            async with asyncio.timeout(20):
                await asyncio.gather(probe, asyncio.sleep(1))
        except (TimeoutError, EngineError):
            return Response(status_code=503)
        return Response()

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        params = body.get("sampling_params") or {}
        unknown = set(params) - KNOWN_PARAMS
        if unknown or not body.get("input_ids"):
            return _error(f"unknown sampling parameters {sorted(unknown)}, or no input_ids")
        sampling = Sampling(
            temperature=params.get("temperature", 1.0),
            max_tokens=params.get("max_new_tokens", 128),
            stop_token_ids=tuple(params.get("stop_token_ids") or ()),
            top_p=params.get("top_p", 1.0),
            seed=(params.get("sampling_seed") or 42) if self._deterministic else None,
        )
        try:
            salt = body.get("extra_key") or ""
            await self._is_open.wait()
            generation, num_cached = await self._host.generate(body["input_ids"], sampling, request, salt)
        except ValueError as error:
            return _error(str(error))
        except EngineError as error:
            return JSONResponse({"detail": str(error)}, 500)
        ids, logprobs = (generation.token_ids, generation.logprobs) if generation else ((), ())
        meta: dict[str, Any] = {
            "id": body.get("rid") or uuid.uuid4().hex,
            "finish_reason": _finish(generation is None, ids, sampling.max_tokens),
            "completion_tokens": len(ids),
            "weight_version": self._host.version_label,
        }
        if generation is not None:  # an abort in the waiting queue says no more
            meta |= {"prompt_tokens": len(body["input_ids"]), "cached_tokens": num_cached, "num_retractions": 0}
        if body.get("return_logprob"):
            meta["output_token_logprobs"] = [[v, token, None] for v, token in zip(logprobs, ids, strict=True)]
        return JSONResponse({"output_ids": list(ids), "meta_info": meta})

    async def pause(self, request: Request) -> Response:
        mode = (await request.json()).get("mode", "abort")
        if mode != "abort":
            return _error(f"mode={mode} is not emulated")
        await self._host.pause()
        return JSONResponse({"message": "Generation paused successfully.", "status": "ok"})

    async def resume(self, request: Request) -> Response:
        await request.json()  # a body is required
        await self._host.resume()
        return JSONResponse({"message": "Generation continued successfully.", "status": "ok"})

    async def update_from_disk(self, request: Request) -> Response:
        body = await request.json()
        try:
            async with self._writer_lock():
                await self._host.load(Path(body["model_path"]))
        except (ValueError, OSError) as error:
            message = f"{type(error).__name__}: {error}"
            return JSONResponse({"success": False, "message": message, "num_paused_requests": 0}, 400)
        if body.get("weight_version") is not None:
            self._host.version_label = body["weight_version"]
        return JSONResponse(
            {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}
        )

    async def join_group(self, request: Request) -> Response:
        body = await request.json()
        if body.get("backend") != "gloo":
            return _update_answer(False, f"backend={body.get('backend')} is not emulated")
        place = (body["master_address"], body["master_port"], body["rank_offset"], body["world_size"])
        try:
            await self._transfer.join(*place)
        except RuntimeError as error:
            return _update_answer(False, f"Failed to initialize custom process group: {error}.")
        return _update_answer(True, "Succeeded to initialize custom process group.")

    async def leave_group(self, request: Request) -> Response:
        await request.json()
        if self._transfer.leave():
            return _update_answer(True, "Succeeded to destroy custom process group.")
        return _update_answer(False, "The group to be destroyed does not exist.")

    async def update_from_group(self, request: Request) -> Response:
        body = await request.json()
        if body.get("abort_all_requests", False):
            self._host.abort_all()
        try:
            async with self._writer_lock():
                await self._receive(body)
        except (RuntimeError, ValueError) as error:
            return _update_answer(False, f"Failed to update parameter online: {error}.")
        if body.get("weight_version") is not None:
            self._host.version_label = body["weight_version"]
        return _update_answer(True, "Succeeded to update parameter online.")

    async def _receive(self, body: dict[str, Any]) -> None:
        match body.get("load_format"):
            case "flattened_bucket":
                await self._transfer.receive(body["names"], body["dtypes"], body["shapes"], None)
                await self._transfer.load()
            case sglang_names.STREAM:
                self._transfer.start()
                await self._transfer.receive_all()
                await self._transfer.load_all()
            case other:
                raise ValueError(f"load_format={other} is not emulated")

    async def update_version(self, request: Request) -> Response:
        body = await request.json()
        if body.get("abort_all_requests", True):
            self._host.abort_all()
        self._host.version_label = body["new_version"]
        return JSONResponse({"success": True, "message": "", "new_version": body["new_version"]})

    async def release_memory(self, request: Request) -> Response:
        tags = set((await request.json()).get("tags") or ("weights", "kv_cache"))
        if self._host.num_running and not self._host.is_paused:
            os._exit(1)  # the real scheduler asserts that it is idle, and dies
        self._released |= tags
        await self._host.sleep(drop_weights="weights" in tags)
        return JSONResponse(None)

    async def resume_memory(self, request: Request) -> Response:
        for tag in (await request.json()).get("tags") or ("weights", "kv_cache"):
            if tag not in self._released:
                return _error(f"{tag} was not released")
            self._released.remove(tag)
        self._host.is_asleep = bool(self._released)
        return JSONResponse(None)

    async def check_weights(self, request: Request) -> Response:
        body = await request.body() and await request.json()
        match body.get("action"):
            case sglang_names.LAYOUT:
                rank = {"in_place": self._transfer.loads_in_place, "checksums": {}}
            case sglang_names.DIGESTS:
                rank = {"checksums": {name: str(value) for name, value in self._host.engine.digests().items()}}
            case _:
                return JSONResponse({"success": False, "message": f"{body} is not emulated"}, 400)
        return JSONResponse({"success": True, "message": "", "ranks": [rank]})

    async def abort(self, request: Request) -> Response:
        if not (await request.json()).get("abort_all"):
            return _error("only abort_all is emulated")
        self._host.abort_all()
        return Response()

    async def flush_cache(self, request: Request) -> Response:
        self._host.forget_prefixes()
        return PlainTextResponse("Cache flushed.\n")

    async def model_info(self, request: Request) -> Response:
        return JSONResponse(
            {
                "model_path": str(self._host.directory),
                "tokenizer_path": str(self._host.directory),
                "is_generation": True,
                "weight_version": self._host.version_label,
                "model_type": self._host.engine.model.config.model_type,
            }
        )

    async def server_info(self, request: Request) -> Response:
        return JSONResponse({"tp_size": 1, "dp_size": 1, "tokenizer_worker_num": 1, "version": "0.5.14"})

    async def metrics(self, request: Request) -> Response:
        host = self._host
        values = {"sglang:num_running_reqs": host.num_running, "sglang:generation_tokens_total": host.response_tokens}
        lines = [f'{name}{{model_name="model"}} {float(value)}' for name, value in values.items()]
        return PlainTextResponse("\n".join([*lines, f"rollout:busy_seconds_total {host.engine.busy_s}"]) + "\n")


def _finish(is_aborted: bool, ids: tuple[int, ...], max_tokens: int) -> dict[str, Any]:
    """SGLang looks at the number of tokens first: a stop token that is the last allowed one finishes by length."""
    if is_aborted:
        return {"type": "abort", "message": "Abort in waiting queue"}
    if len(ids) >= max_tokens:
        return {"type": "length", "length": max_tokens}
    return {"type": "stop", "matched": ids[-1]}


def _update_answer(success: bool, message: str) -> JSONResponse:
    return JSONResponse({"success": success, "message": message}, 200 if success else 400)


def _error(message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, 400)
