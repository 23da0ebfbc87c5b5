"""vLLM 0.24.0's routes (entrypoints/serve/disagg, serve/dev/rlhf, serve/dev/sleep, serve/dev/rpc of its source)."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from rollout.engines.base import EngineError, Sampling
from rollout.engines.server.host import Host
from rollout.engines.server.transfer import Transfer

KNOWN_PARAMS = {
    "temperature",
    "top_p",
    "max_tokens",
    "stop_token_ids",
    "ignore_eos",
    "seed",
    "logprobs",
    "detokenize",
    "output_kind",
}


def routes(host: Host) -> list[Route]:
    """The routes around one engine."""
    api = _Routes(host)
    return [
        Route("/health", api.health),
        Route("/inference/v1/generate", api.generate, methods=["POST"]),
        Route("/reset_prefix_cache", api.reset_prefix_cache, methods=["POST"]),
        Route("/is_paused", api.is_paused),
        Route("/sleep", api.sleep, methods=["POST"]),
        Route("/wake_up", api.wake_up, methods=["POST"]),
        Route("/is_sleeping", api.is_sleeping),
        Route("/get_world_size", api.world_size),
        Route("/init_weight_transfer_engine", api.init_transfer, methods=["POST"]),
        Route("/start_weight_update", api.start_update, methods=["POST"]),
        Route("/update_weights", api.update_weights, methods=["POST"]),
        Route("/finish_weight_update", api.finish_update, methods=["POST"]),
        Route("/collective_rpc", api.collective_rpc, methods=["POST"]),
        Route("/metrics", api.metrics),
    ]


class _Routes:
    def __init__(self, host: Host):
        self._host = host
        self._asleep: set[str] = set()
        self._transfer = Transfer(host)
        self._is_updating = False

    async def health(self, request: Request) -> Response:
        try:
            await self._host.engine.health()
        except EngineError:
            return Response(status_code=503)
        return Response()

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        params = body.get("sampling_params")
        if not isinstance(params, dict) or not body.get("token_ids"):
            return _error("token_ids and sampling_params are required")
        unknown = set(params) - KNOWN_PARAMS
        if unknown:
            return _error(f"this server does not know the sampling parameters {sorted(unknown)}")
        sampling = Sampling(
            temperature=params.get("temperature", 1.0),
            max_tokens=params.get("max_tokens", 16),
            stop_token_ids=tuple(params.get("stop_token_ids") or ()),
            top_p=params.get("top_p", 1.0),
            seed=params.get("seed"),
        )
        try:
            salt = body.get("cache_salt") or ""
            generation, _ = await self._host.generate(body["token_ids"], sampling, request, salt)
        except ValueError as error:
            return _error(str(error))
        except EngineError as error:
            return _error(str(error), "InternalServerError", 500)
        ids, logprobs = (generation.token_ids, generation.logprobs) if generation else ((), ())
        content = [
            {"token": f"token_id:{token}", "logprob": max(value, -9999.0), "bytes": None, "top_logprobs": []}
            for token, value in zip(ids, logprobs, strict=True)
        ]
        choice = {
            "index": 0,
            "logprobs": {"content": content} if params.get("logprobs") is not None else None,
            "finish_reason": generation.finish_reason if generation else "abort",
            "token_ids": list(ids),
            "routed_experts": None,
        }
        # The real server, too, answers a fresh id and not the request's.
        answer = {
            "request_id": uuid.uuid4().hex,
            "choices": [choice],
            "prompt_logprobs": None,
            "kv_transfer_params": None,
        }
        return JSONResponse(answer)

    async def reset_prefix_cache(self, request: Request) -> Response:
        self._host.forget_prefixes()
        return Response()

    async def is_paused(self, request: Request) -> Response:
        return JSONResponse({"is_paused": self._host.is_paused})

    async def sleep(self, request: Request) -> Response:
        level = int(request.query_params.get("level", "1"))
        if level == 0:
            await self._host.pause()
            return Response()
        await self._host.sleep(drop_weights=level == 2)
        self._asleep = {"weights", "kv_cache"}
        return Response()

    async def wake_up(self, request: Request) -> Response:
        self._asleep -= set(request.query_params.getlist("tags")) or set(self._asleep)
        if not self._asleep:
            await self._host.wake()
        return Response()

    async def is_sleeping(self, request: Request) -> Response:
        return JSONResponse({"is_sleeping": self._host.is_asleep or self._host.is_paused})

    async def world_size(self, request: Request) -> Response:
        return JSONResponse({"world_size": 1})

    async def init_transfer(self, request: Request) -> Response:
        info = (await request.json())["init_info"]
        try:
            await self._transfer.join(
                info["master_address"], info["master_port"], info["rank_offset"], info["world_size"]
            )
        except RuntimeError as error:
            return _error(str(error), "InternalServerError", 500)
        return JSONResponse({"message": "Weight transfer initialized"})

    async def start_update(self, request: Request) -> Response:
        await request.json()  # a body is required
        if self._is_updating:
            return _error("a weight update is already active", "InternalServerError", 500)
        self._is_updating = True
        self._transfer.start()
        return JSONResponse({"message": "Weight update started"})

    async def update_weights(self, request: Request) -> Response:
        info = (await request.json())["update_info"]
        if not self._is_updating or not info.get("packed"):
            return _error("no update is active, or it is not packed", "InternalServerError", 500)
        try:
            await self._transfer.receive(
                info["names"], info["dtype_names"], info["shapes"], info["packed_buffer_size_bytes"]
            )
        except RuntimeError as error:
            self._is_updating = False
            return _error(str(error), "InternalServerError", 500)
        return JSONResponse({"message": "Weights updated"})

    async def finish_update(self, request: Request) -> Response:
        if not self._is_updating:
            return _error("no weight update is active", "InternalServerError", 500)
        self._is_updating = False
        if error := await self._load_received():
            return _error(error, "InternalServerError", 500)
        return JSONResponse({"message": "Weight update finished"})

    async def _load_received(self) -> str:
        """Why what has come does not load; empty if it does."""
        try:
            await self._transfer.load_all()
        except ValueError as error:
            return str(error)
        return ""

    async def collective_rpc(self, request: Request) -> Response:
        """The methods of vLLM's worker, and of our extension, that the client calls."""
        body = await request.json()
        arguments: dict[str, Any] = body.get("kwargs", {})
        match body.get("method"):
            case "reload_weights":
                if "kv_cache" in self._asleep and "weights" in self._asleep:
                    return _error("the weights are asleep", "InternalServerError", 500)
                try:
                    await self._host.load(Path(arguments["weights_path"]))
                except (ValueError, OSError) as error:
                    return _error(f"{type(error).__name__}: {error}", "InternalServerError", 500)
                result = None
            case "opid_begin_update":
                result = {"in_place": self._transfer.loads_in_place, "version": self._host.version_label}
                self._host.version_label = None
                self._transfer.start()
            case "opid_receive":
                try:
                    await self._transfer.receive_all()
                except RuntimeError as error:
                    return _error(str(error), "InternalServerError", 500)
                return await self._end_update(arguments["version"], in_place=True)
            case "opid_end_update":
                return await self._end_update(**arguments)
            case "opid_weight_version":
                result = {"version": self._host.version_label}
            case "opid_weight_digests":
                result = {name: str(value) for name, value in self._host.engine.digests().items()}
            case method:
                return _error(f"the worker has no method {method!r}", "InternalServerError", 500)
        return JSONResponse({"results": [result]})

    async def _end_update(self, version: int, *, in_place: bool) -> Response:
        if in_place and (error := await self._load_received()):
            return _error(error, "InternalServerError", 500)
        self._host.version_label = version
        return JSONResponse({"results": [None]})

    async def metrics(self, request: Request) -> Response:
        host, label = self._host, '{engine="0",model_name="model"}'
        values = {
            "num_requests_running": host.num_running,
            "prefix_cache_queries_total": host.prompt_tokens,
            "prefix_cache_hits_total": host.cached_tokens,
            "generation_tokens_total": host.response_tokens,
        }
        lines = [f"vllm:{name}{label} {float(value)}" for name, value in values.items()]
        lines += [
            f'vllm:request_success_total{{engine="0",finished_reason="{reason}"}} {float(count)}'
            for reason, count in sorted(host.num_finished.items())
        ]
        return PlainTextResponse("\n".join([*lines, f"rollout:busy_seconds_total {host.engine.busy_s}"]) + "\n")


def _error(message: str, kind: str = "BadRequestError", status: int = 400) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)
