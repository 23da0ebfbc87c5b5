"""OpenAI's /v1/models and /v1/chat/completions around the served policy, as both servers have them."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rollout.engines.base import EngineError, Sampling
from rollout.engines.server.host import Host
from rollout.prompt import encode_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_MAX_TOKENS = 512


def routes(host: Host, tokenizer: PreTrainedTokenizerBase, served_name: str) -> list[Route]:
    """The routes; the tokenizer's own chat template renders the messages."""

    async def models(request: Request) -> Response:
        card = {
            "id": served_name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "rollout",
            "root": str(host.directory),
            "max_model_len": host.engine.model.config.max_position_embeddings,
        }
        return JSONResponse({"object": "list", "data": [card]})

    async def complete(request: Request) -> Response:
        body = await request.json()
        if body.get("model") != served_name:
            return _error(f"The model `{body.get('model')}` does not exist.", "NotFoundError", 404)
        if body.get("stream") or body.get("n", 1) != 1:
            return _error("this server neither streams nor samples several answers", "BadRequestError", 400)
        sampling = Sampling(
            temperature=body.get("temperature", 1.0),
            max_tokens=body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_MAX_TOKENS,
            stop_token_ids=(tokenizer.eos_token_id,),
            top_p=body.get("top_p", 1.0),
            seed=body.get("seed"),
        )
        try:
            prompt_ids = encode_chat(tokenizer, body["messages"], host.engine.model.config.max_position_embeddings)
            generation, _ = await host.generate(prompt_ids, sampling, request)
        except (ValueError, LookupError, TypeError) as error:
            return _error(str(error), "BadRequestError", 400)
        except EngineError as error:
            return _error(str(error), "InternalServerError", 500)
        ids = generation.token_ids if generation else ()
        text = tokenizer.decode(ids, skip_special_tokens=True)
        finish = generation.finish_reason if generation else "abort"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        usage = {
            "prompt_tokens": len(prompt_ids),
            "completion_tokens": len(ids),
            "total_tokens": len(prompt_ids) + len(ids),
        }
        return JSONResponse(
            {
                "id": f"chatcmpl-{uuid.uuid4().hex}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": served_name,
                "choices": [choice],
                "usage": usage,
            }
        )

    return [Route("/v1/models", models), Route("/v1/chat/completions", complete, methods=["POST"])]


def _error(message: str, kind: str, status: int) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)
