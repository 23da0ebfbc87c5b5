"""The analyzer model is the policy itself: the rollout engine writes the skills, no second model is needed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_opid.skills.chat_analyzer import Reply
from megatron_opid.skills.counters import AnalysisError
from rollout.engines.base import Engine, EngineError, Sampling
from rollout.prompt import encode_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# As in validation: skills should be what the policy thinks most likely, while a greedy small model tends to loop.
TEMPERATURE = 0.4


class PolicyModel:
    """ChatModel over a rollout engine. A request above `max_prompt_tokens` is refused: cut, it has no instructions."""

    name = "policy"

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_prompt_tokens: int,
        max_completion_tokens: int,
        timeout_s: float,
        seed: int,
    ):
        self._engine = engine
        self._tokenizer = tokenizer
        self._max_prompt_tokens = max_prompt_tokens
        self._max_completion_tokens = max_completion_tokens
        self._timeout_s = timeout_s
        self._seed = seed

    async def reply(self, messages: Sequence[dict[str, str]], *, session: str) -> Reply:
        prompt_ids = encode_chat(self._tokenizer, messages, self._max_prompt_tokens + 1)
        if len(prompt_ids) > self._max_prompt_tokens:
            raise AnalysisError("too_long", f"the request is longer than {self._max_prompt_tokens} tokens")
        sampling = Sampling(
            temperature=TEMPERATURE,
            max_tokens=self._max_completion_tokens,
            stop_token_ids=(self._tokenizer.eos_token_id,),
            seed=zlib.crc32(f"{self._seed}/{session}".encode()),
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                generation = await self._engine.generate(prompt_ids, sampling, session=f"{session}/skills")
        except TimeoutError:
            raise AnalysisError("timeout", f"the engine did not answer within {self._timeout_s} s") from None
        except EngineError as error:
            raise AnalysisError("engine", str(error)) from error
        return Reply(
            text=self._tokenizer.decode(generation.token_ids, skip_special_tokens=True),
            prompt_tokens=len(prompt_ids),
            completion_tokens=len(generation.token_ids),
        )

    async def close(self) -> None:
        """Nothing to do: the engine belongs to the rollout."""
