"""The client of an SGLang 0.5.14 server, started by our sglang_worker.py (see commands.py).

SGLang's log-probs are those at the temperature, before top-p. A seed counts with --enable-deterministic-inference only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rollout.engines.base import Generation, Sampling
from rollout.engines.http import ADMIN_KEY, CacheCounts, EngineFault, HttpEngine, readable
from rollout.engines.rank_digests import compare_ranks
from rollout.engines.sglang_names import DIGESTS, LAYOUT, UNSYNCED

# Control routes that the admin key does not open.
KEPT_BY_API_KEY = ("/model_info", "/server_info")
# For the last step of requests that were aborted.
IDLE_WITHIN_S = 10


class SglangEngine(HttpEngine):
    """Every answer names the version of the weights; hits in the prefix cache are counted from the answers."""

    dialect = "sglang"

    def __init__(self, url: str, **timeouts: float):
        super().__init__(url, **timeouts)
        self._prompt_tokens = self._cached_tokens = 0

    async def pause(self) -> None:
        await self._control_json("POST", "/pause_generation", json={"mode": "abort"})
        self.is_paused = True

    async def resume(self) -> None:
        await self._control_json("POST", "/continue_generation", json={})
        self.is_paused = False

    async def sleep(self) -> None:
        await self.pause()  # aborts: the scheduler dies if it is asked for its memory while anything runs
        await self._memory("release", ["kv_cache", "weights"])
        self.is_asleep = True

    async def wake(self) -> None:
        await self._memory("resume", ["weights"])
        await self._memory("resume", ["kv_cache"])
        self.is_asleep = False
        await self.resume()

    async def load_from_disk(self, directory: Path, version: int) -> None:
        await self.begin_update()
        if not self.is_asleep:
            await self.pause()
        body = {
            "model_path": str(directory),
            "load_format": "auto",
            "weight_version": str(version),
            "flush_cache": False,  # our requests find prefixes of their own version only
        }
        await self.post_update("/update_weights_from_disk", body)
        await self.end_update(version)

    async def begin_update(self) -> int | None:
        if self.is_asleep:
            await self._memory("resume", ["weights"])
        held = await self.held_version()
        await self._set_version(UNSYNCED)
        if held is None or held != self.expected_version:
            # It may be another process, of another model. Another run may have left it paused, and called other weights
            # by the numbers that are to come.
            self.loads_in_place = await self._takes_in_place()
            if not self.is_asleep:  # else its cache was given back
                await self.pause()
                await self._control_text(f"/flush_cache?timeout={IDLE_WITHIN_S}")
        return held

    async def end_update(self, version: int) -> None:
        await self._set_version(str(version))
        await self.serve_again()

    async def serve_again(self) -> None:
        if self.is_asleep:
            await self._memory("resume", ["kv_cache"])
            self.is_asleep = False
        if self.is_paused:
            await self.resume()

    async def post_update(self, route: str, body: dict[str, Any] | None = None) -> None:
        answer = await self._control_json("POST", route, json=body or {}, timeout_s=self.load_timeout_s)
        success, message = readable(self.url, lambda: (answer["success"], answer["message"]))
        if not success:
            raise EngineFault("refused", f"{self.url} did not take the weights: {message}")

    async def held_version(self) -> int | None:
        info = await self._control_json("GET", "/model_info")
        label = readable(self.url, lambda: info["weight_version"])
        return int(label) if str(label).isdigit() else None

    async def checksum(self, sent: Mapping[str, int]) -> str:
        ranks = await self._ask_ranks(DIGESTS, timeout_s=self.load_timeout_s)
        return readable(self.url, lambda: compare_ranks(self.url, sent, [rank["checksums"] for rank in ranks]))

    async def world_size(self) -> int:
        info = await self._control_json("GET", "/server_info")
        return readable(self.url, lambda: int(info["tp_size"]))

    async def cache_counts(self) -> CacheCounts:
        """From the answers that this client got."""
        return CacheCounts(self._prompt_tokens, self._cached_tokens)

    async def identify(self) -> str:
        info = await self._control_json("GET", "/model_info")
        settings = await self._control_json("GET", "/server_info")
        await self._takes_in_place()  # known with our hooks only
        readable(self.url, lambda: self._check_processes(settings))
        return readable(self.url, lambda: str(info["model_path"] if "weight_version" in info else info["version"]))

    def _control_key(self, route: str) -> str:
        api_key = super()._control_key(route)
        return api_key if route in KEPT_BY_API_KEY else os.environ.get(ADMIN_KEY) or api_key

    def _generate_route(self) -> str:
        return "/generate"

    def _generate_body(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> dict[str, Any]:
        params = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.max_tokens,
            "stop_token_ids": list(sampling.stop_token_ids),
            "sampling_seed": sampling.seed,
        }
        salt = {"extra_key": str(self.expected_version)}  # of its prefix cache
        return {"input_ids": list(prompt_ids), "sampling_params": params, "return_logprob": True} | salt

    def _read_generation(self, answer: Any, sampling: Sampling, version: int) -> Generation:
        meta = answer["meta_info"]
        self._check_finish_reason(meta["finish_reason"]["type"])
        if meta["weight_version"] != str(version):
            raise EngineFault("stale", f"{self.url} sampled with weights {meta['weight_version']!r}, not {version}")
        logprobs = meta.get("output_token_logprobs") or []
        self._prompt_tokens += meta["prompt_tokens"]
        self._cached_tokens += meta.get("cached_tokens", 0)
        ids = tuple(map(int, answer["output_ids"]))
        if ids != tuple(int(entry[1]) for entry in logprobs):
            raise ValueError("output_ids are not those of output_token_logprobs")
        # SGLang calls a stop token that is the last allowed one "length", and an end token of the model's own
        # configuration, which it always heeds, "stop".
        reason = "stop" if ids[-1] in sampling.stop_token_ids else "length"
        return Generation(ids, tuple(float(entry[0]) for entry in logprobs), reason, version)

    async def _verify_connections(self) -> None:
        """Nothing to ask: each answer said its version."""

    def _check_processes(self, settings: Mapping[str, Any]) -> None:
        """Each tokenizer worker has a version and a lock of its own, of which one request reaches one."""
        for name in ("tokenizer_worker_num", "dp_size"):
            if settings[name] != 1:
                raise EngineFault("refused", f"{self.url} runs with {name}={settings[name]}: start it with 1")

    async def _takes_in_place(self) -> bool:
        """Whether all ranks can take weights by STREAM."""
        ranks = await self._ask_ranks(LAYOUT)
        return readable(self.url, lambda: all(rank["in_place"] for rank in ranks))

    async def _ask_ranks(self, action: str, *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """What our hook answers on each rank."""
        answer = await self._control_json("POST", "/weights_checker", json={"action": action}, timeout_s=timeout_s)
        return readable(self.url, lambda: answer["ranks"])

    async def _memory(self, what: str, tags: list[str]) -> None:
        await self._control_json("POST", f"/{what}_memory_occupation", json={"tags": tags})

    async def _set_version(self, label: str) -> None:
        body = {"new_version": label, "abort_all_requests": False}
        await self._control_json("POST", "/update_weight_version", json=body)
