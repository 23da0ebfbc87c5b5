"""The client of a vLLM 0.24.0 server, started with VLLM_SERVER_DEV_MODE=1 and our worker extension (see launch.py).

vLLM labels no weights and sums none up: the extension's methods, called by /collective_rpc, keep the version in the
worker, where it dies with the process, and compute digests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rollout.engines.base import Generation, Sampling
from rollout.engines.http import CacheCounts, HttpEngine, readable
from rollout.engines.prometheus import counter_total
from rollout.engines.rank_digests import compare_ranks

# RequestOutputKind: without it the server's front end makes an answer of all tokens so far at every token.
FINAL_ONLY = 2
CACHE_QUERIES, CACHE_HITS = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"


class VllmEngine(HttpEngine):
    """Needs --logprobs-mode processed_logprobs: by default vLLM's log-probs ignore the temperature."""

    dialect = "vllm"

    async def pause(self) -> None:
        # Level 0 pauses as /pause does, without the 20 ms that /pause sleeps, and keeps cached prefixes: our requests
        # find those of their own version only.
        await self._control_json("POST", "/sleep", params={"level": 0, "mode": "abort"})
        self.is_paused = True

    async def resume(self) -> None:
        await self._wake("scheduling")
        self.is_paused = False

    async def sleep(self) -> None:
        # Level 2 keeps no copy of the weights: every training step sends all of them anyway.
        await self._control_json("POST", "/sleep", params={"level": 2, "mode": "abort"})
        self.is_asleep = True

    async def wake(self) -> None:
        await self._wake("weights")
        await self._wake("kv_cache")
        self.is_asleep = False

    async def load_from_disk(self, directory: Path, version: int) -> None:
        await self.begin_update()
        if not self.is_asleep:
            await self.pause()  # should it fail midway, nothing is sampled with what it leaves
        await self._rpc("reload_weights", kwargs={"weights_path": str(directory)}, timeout_s=self.load_timeout_s)
        await self._end_update(version, in_place=False)

    async def begin_update(self) -> int | None:
        if self.is_asleep:
            await self._wake("weights")
        states = await self._rpc("opid_begin_update")
        self.loads_in_place = readable(self.url, lambda: all(state["in_place"] for state in states))
        held = self._common_version(states)
        if held is None or held != self.expected_version:
            # Another run may have left it paused, and called other weights by the numbers that are to come.
            # Asked in this way it is an error if the cache cannot be emptied.
            if not self.is_asleep:
                await self.pause()
            await self._control_json("POST", "/reset_prefix_cache", params={"reset_running_requests": "true"})
        return held

    async def end_update(self, version: int) -> None:
        await self._end_update(version, in_place=self.loads_in_place)

    async def _end_update(self, version: int, *, in_place: bool) -> None:
        await self._rpc("opid_end_update", kwargs={"version": version, "in_place": in_place})
        await self.serve_again()

    async def serve_again(self) -> None:
        if self.is_asleep:
            await self._wake("kv_cache")
            self.is_asleep = False
        elif self.is_paused:
            await self.resume()

    async def post_update(self, route: str, body: dict[str, Any] | None = None) -> None:
        await self._control_json("POST", route, json=body, timeout_s=self.load_timeout_s)

    async def call_workers(self, method: str, **arguments: Any) -> None:
        """One call of our extension's part of a weight transfer (rollout/weight_sync/update.py)."""
        await self._rpc(method, kwargs=arguments, timeout_s=self.load_timeout_s)

    async def held_version(self) -> int | None:
        return self._common_version(await self._rpc("opid_weight_version"))

    async def checksum(self, sent: Mapping[str, int]) -> str:
        ranks = await self._rpc("opid_weight_digests", timeout_s=self.load_timeout_s)
        return readable(self.url, lambda: compare_ranks(self.url, sent, ranks))

    async def world_size(self) -> int:
        answer = await self._control_json("GET", "/get_world_size")
        return readable(self.url, lambda: int(answer["world_size"]))

    async def cache_counts(self) -> CacheCounts:
        text = await self._control_text("/metrics")
        return CacheCounts(counter_total(text, CACHE_QUERIES), counter_total(text, CACHE_HITS))

    async def identify(self) -> str:
        models = await self._control_json("GET", "/v1/models")
        await self._control_json("GET", "/is_paused")  # exists in dev mode only
        await self.held_version()  # exists with our extension only
        return readable(self.url, lambda: models["data"][0].get("root") or models["data"][0]["id"])

    def _generate_route(self) -> str:
        return "/inference/v1/generate"

    def _generate_body(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> dict[str, Any]:
        params = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "stop_token_ids": list(sampling.stop_token_ids),
            "ignore_eos": True,  # of the model's own configuration; ours stand above
            "seed": sampling.seed,
            "logprobs": 0,  # of the sampled token alone
            "detokenize": False,
            "output_kind": FINAL_ONLY,
        }
        return {"token_ids": list(prompt_ids), "sampling_params": params, "cache_salt": str(self.expected_version)}

    def _read_generation(self, answer: Any, sampling: Sampling, version: int) -> Generation:
        (choice,) = answer["choices"]
        reason = choice["finish_reason"]
        self._check_finish_reason(reason)
        logprobs = tuple(float(entry["logprob"]) for entry in choice["logprobs"]["content"])
        return Generation(tuple(map(int, choice["token_ids"])), logprobs, reason, version)

    async def _rpc(self, method: str, *, timeout_s: float | None = None, **arguments: Any) -> list[Any]:
        body = {"method": method, **arguments}
        answer = await self._control_json("POST", "/collective_rpc", json=body, timeout_s=timeout_s)
        return readable(self.url, lambda: answer["results"])

    def _common_version(self, states: Sequence[Mapping[str, Any]]) -> int | None:
        """None where the workers do not agree."""
        versions = readable(self.url, lambda: {state["version"] for state in states})
        return versions.pop() if len(versions) == 1 else None

    async def _wake(self, tag: str) -> None:
        await self._control_json("POST", "/wake_up", params={"tags": tag})
