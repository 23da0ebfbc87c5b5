"""The servers that a run starts itself: each machine's first rank starts those of its own machine."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_opid.config import Config, EngineConfig, resolve_model
from rollout.address import LOOPBACK, address_towards

if TYPE_CHECKING:
    from rollout.engines.commands import ServerSettings
    from rollout.engines.launch import Launcher
    from rollout.weight_sync.servers import AllGather


@dataclass(frozen=True)
class Place:
    """Where a rank runs: it is number `local_rank` of its machine's `num_local_ranks`, which follow one another."""

    rank: int
    num_ranks: int
    local_rank: int
    num_local_ranks: int

    @classmethod
    def of(cls, rank: int, num_ranks: int) -> Place:
        """By the variables of the launcher; without one all ranks are on this machine."""
        return cls(rank, num_ranks, int(os.environ.get("LOCAL_RANK", rank)), local_world_size(num_ranks))

    @property
    def first_rank(self) -> int:
        """The first rank of this machine."""
        return self.rank - self.local_rank

    @property
    def is_alone(self) -> bool:
        """Whether all ranks are on this machine."""
        return self.num_local_ranks == self.num_ranks


def local_world_size(world_size: int) -> int:
    """The ranks on this machine: all of them, unless a launcher says otherwise."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size))


def sync_name(engine: EngineConfig) -> str:
    """The transport that `auto` stands for."""
    if engine.sync != "auto":
        return engine.sync
    return "in_process" if engine.name == "local" else "disk"


def start_servers(config: Config, place: Place, all_gather: AllGather) -> tuple[Launcher | None, tuple[str, ...]]:
    """Start `engine.num_servers` servers on every machine; to be called by all ranks, over which `all_gather` is.

    They ask for a key: ROLLOUT_ENGINE_API_KEY, which this sets to one of this run's own unless rank 0 has one. They
    listen on loopback where there is one machine, else on the address of each that leads to the others.

    Returns: the launcher of this machine's servers, on its first rank; the URLs of all servers, by machine.

    Raises:
        ServerStartError: a server of this machine did not start.
    """
    _share_key(place, all_gather)  # alone, too: other users of this machine reach loopback
    host = LOOPBACK if place.is_alone else _own_address(place, all_gather)
    launcher = _make_launcher(config, place, host) if place.local_rank == 0 else None
    urls: tuple[str, ...] = ()
    if launcher is not None:
        logs = _log_directory(config)
        print(f"starting {config.engine.name} servers, logs in {logs}", file=sys.stderr, flush=True)  # for minutes
        try:
            asyncio.run(launcher.start())
        except BaseException:
            launcher.close()
            raise
        urls = launcher.urls
    return launcher, tuple(url for text in all_gather(json.dumps(urls)) for url in json.loads(text))


def server_settings(config: Config) -> ServerSettings:
    """What every server of this run is started with."""
    from rollout.engines.commands import ServerSettings

    engine = config.engine
    return ServerSettings(
        dialect=engine.name,
        model=resolve_model(config.actor.model).absolute(),
        dtype="float32" if config.actor.precision == "fp32" else "bfloat16",
        max_model_tokens=_longest_sequence(config),
        transfer=sync_name(engine),
        tensor_parallel=engine.tensor_parallel,
        num_api_servers=engine.num_api_servers,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        max_batch_sequences=engine.max_batch_sequences,
        sleeps=engine.placement == "colocated",
        on_cpu=engine.cpu_servers,
        arguments=tuple(map(str, engine.server_arguments)),
    )


def visible_gpus() -> list[str]:
    """The CUDA names of the GPUs that this process may use."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]


def _make_launcher(config: Config, place: Place, host: str) -> Launcher:
    """The launcher of this machine's servers, on the GPUs that their placement gives them; nothing runs yet."""
    from rollout.engines.launch import Launcher

    engine = config.engine
    first_gpu = 0 if engine.placement == "colocated" else place.num_local_ranks
    return Launcher(
        replace(server_settings(config), host=host),
        num_servers=engine.num_servers,
        gpus=visible_gpus()[first_gpu:],
        directory=_log_directory(config),
        startup_timeout_s=engine.startup_timeout_s,
        first_number=place.first_rank // place.num_local_ranks * engine.num_servers,
    )


def _log_directory(config: Config) -> Path:
    return Path(config.run.dir) / "engines"


def _share_key(place: Place, all_gather: AllGather) -> None:
    """Give every rank, and what it starts, the key of rank 0."""
    from rollout.engines.http import API_KEY

    own = os.environ.get(API_KEY) or secrets.token_urlsafe(32)
    os.environ[API_KEY] = all_gather(own if place.rank == 0 else "")[0]


def _own_address(place: Place, all_gather: AllGather) -> str:
    """This machine's address as the others see it: towards rank 0's, and from there towards the second machine's."""
    addresses = all_gather(address_towards(os.environ["MASTER_ADDR"]))
    return addresses[place.rank] if place.first_rank > 0 else address_towards(addresses[place.num_local_ranks])


def _longest_sequence(config: Config) -> int:
    """Tokens of prompt and response, of the policy and of an analyzer that runs on its engine."""
    longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    skills = config.skills
    is_analyzer = config.algorithm.name == "opid" and skills.analyzer == "policy"
    return max(longest, skills.max_prompt_tokens + skills.max_completion_tokens) if is_analyzer else longest
