"""What samples, from the configuration: engine, weight sync, and the servers that this run starts itself."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from megatron_opid.config import Config, EngineConfig, resolve_model

if TYPE_CHECKING:
    from rollout.engines.base import Engine
    from rollout.engines.commands import ServerSettings
    from rollout.engines.http import HttpEngine
    from rollout.engines.launch import Launcher
    from rollout.engines.pool import EnginePool
    from rollout.weight_sync.base import WeightSync
    from rollout.weight_sync.servers import Run

MIB = 1 << 20
SHAPE_KEYS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
MANY_MACHINES = (
    "engine.name={name} without engine.urls starts its servers on one machine, and the ranks are on several; give the "
    "engines nodes of their own (slurm.launch job=disaggregated), or set engine.urls"
)


def engine_faults(config: Config, world_size: int) -> list[str]:
    """Why the engines of this configuration cannot serve: values first, then the servers at `engine.urls`."""
    engine = config.engine
    if engine.name == "local":
        return _local_faults(engine)
    faults = [fault for url in engine.urls for fault in _url_faults(url)]
    sync = sync_name(engine)
    if len(set(engine.urls)) < len(engine.urls):
        faults.append(f"engine.urls={list(engine.urls)} names a server twice")
    if sync == "in_process":
        faults.append(f"engine.sync=in_process cannot reach engine.name={engine.name}; set disk, nccl or ipc")
    if sync == "ipc" and engine.placement != "colocated":
        faults.append("engine.sync=ipc needs engine.placement=colocated: a handle is good on its own GPU only")
    if sync == "ipc" and engine.name == "vllm" and engine.tensor_parallel > 1:
        faults.append(f"engine.sync=ipc with vllm needs engine.tensor_parallel=1, it is {engine.tensor_parallel}")
    if sync == "nccl" and engine.placement == "colocated":
        faults.append("engine.sync=nccl needs engine.placement=disaggregated: NCCL refuses two ranks on one GPU")
    if engine.cpu_servers and engine.urls:
        faults.append("engine.cpu_servers=true starts servers, engine.urls names given ones; set one of them")
    if engine.cpu_servers and (sync == "ipc" or engine.tensor_parallel > 1):
        faults.append("engine.cpu_servers=true has engine.sync=disk or nccl and engine.tensor_parallel=1 only")
    if not engine.urls and not engine.cpu_servers:
        faults += _gpu_faults(config, world_size)
    if not engine.urls:
        faults += _machine_faults(config, world_size)
    if not faults and engine.urls:
        faults += asyncio.run(_server_faults(config))
    return faults


def sync_name(engine: EngineConfig) -> str:
    """The transport that `auto` stands for."""
    if engine.sync != "auto":
        return engine.sync
    return "in_process" if engine.name == "local" else "disk"


def client(engine: EngineConfig, url: str) -> HttpEngine:
    """The client of one server; its keys come from the environment."""
    from rollout.engines.sglang import SglangEngine
    from rollout.engines.vllm import VllmEngine

    kind = VllmEngine if engine.name == "vllm" else SglangEngine
    return kind(url, request_timeout_s=engine.request_timeout_s)


def make_pool(config: Config, urls: tuple[str, ...], launcher: Launcher | None) -> EnginePool:
    """One rank's view of the servers; `launcher` is given to the rank that started them."""
    from rollout.engines.pool import EnginePool, PoolSettings

    engine = config.engine
    settings = PoolSettings(recovery_timeout_s=engine.recovery_timeout_s, slow_ratio=engine.slow_ratio)
    return EnginePool([client(engine, url) for url in urls], settings, launcher)


def server_settings(config: Config) -> ServerSettings:
    """What every server of this run is started with."""
    from rollout.engines.commands import ServerSettings

    engine = config.engine
    return ServerSettings(
        dialect=engine.name,
        model=resolve_model(config.actor.model).absolute(),
        dtype="float32" if config.actor.precision == "fp32" else "bfloat16",
        transfer=sync_name(engine),
        tensor_parallel=engine.tensor_parallel,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        max_batch_sequences=engine.max_batch_sequences,
        max_model_tokens=_longest_sequence(config),
        sleeps=engine.placement == "colocated",
        on_cpu=engine.cpu_servers,
    )


def make_launcher(config: Config, num_trainer_gpus: int) -> Launcher:
    """The launcher of this run's own servers, on the GPUs that their placement gives them; nothing runs yet."""
    from rollout.engines.launch import Launcher

    engine = config.engine
    directory = Path(config.run.dir) / "engines"
    first = 0 if engine.placement == "colocated" else num_trainer_gpus
    return Launcher(
        server_settings(config),
        num_servers=engine.num_servers,
        gpus=_visible_gpus()[first:],
        directory=directory,
        startup_timeout_s=engine.startup_timeout_s,
    )


def make_sync(config: Config, engine: Engine, run: Run, *, rank: int) -> WeightSync:
    """The transport of `engine.sync`."""
    if config.engine.name == "local":
        from rollout.weight_sync.in_process import InProcessSync

        return InProcessSync(engine, run, config.engine.verify_every)
    bucket_bytes, is_sender = config.engine.bucket_mib * MIB, rank == 0
    match sync_name(config.engine):
        case "disk":
            from rollout.weight_sync.disk import DiskSync

            return DiskSync(
                engine,
                run,
                config.engine.verify_every,
                is_sender=is_sender,
                directory=weights_directory(config),
                source=resolve_model(config.actor.model),
                bucket_bytes=bucket_bytes,
            )
        case "nccl":
            from rollout.weight_sync.nccl import NcclSync

            return NcclSync(
                engine,
                run,
                config.engine.verify_every,
                is_sender=is_sender,
                bucket_bytes=bucket_bytes,
                backend="gloo" if config.engine.cpu_servers else "nccl",
            )
        case "ipc":
            from megatron_opid.exchange import all_gather_text
            from rollout.weight_sync.ipc import IpcSync

            return IpcSync(
                engine,
                run,
                config.engine.verify_every,
                is_sender=is_sender,
                bucket_bytes=bucket_bytes,
                all_gather=all_gather_text,
                tensor_parallel=config.engine.tensor_parallel,
            )
    raise ValueError(f"engine.sync={config.engine.sync!r} is unknown")


def weights_directory(config: Config) -> Path:
    """Where sync over disk writes: below `engine.sync_dir`, which runs may share, a path of this run's own."""
    run = Path(config.run.dir)
    return Path(config.engine.sync_dir, *run.absolute().parts[1:]) if config.engine.sync_dir else run / "weights"


def _longest_sequence(config: Config) -> int:
    """Tokens of prompt and response, of the policy and of an analyzer that runs on its engine."""
    longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    skills = config.skills
    is_analyzer = config.algorithm.name == "opid" and skills.analyzer == "policy"
    return max(longest, skills.max_prompt_tokens + skills.max_completion_tokens) if is_analyzer else longest


def _local_faults(engine: EngineConfig) -> list[str]:
    faults = []
    if engine.urls:
        faults.append(f"engine.urls={list(engine.urls)} needs engine.name=vllm or sglang")
    if engine.cpu_servers:
        faults.append("engine.cpu_servers=true needs engine.name=vllm or sglang, whose protocol they speak")
    if sync_name(engine) != "in_process":
        faults.append(f"engine.sync={engine.sync} needs engine.name=vllm or sglang; local has in_process")
    return faults


def _url_faults(url: str) -> list[str]:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        return ["engine.urls holds credentials; put the key into ROLLOUT_ENGINE_API_KEY"]
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
        return [f"engine.urls: {url!r} is no server's address; set it to something like http://host:8000"]
    return []


def local_world_size(world_size: int) -> int:
    """The ranks on this machine: all of them, unless a launcher says otherwise."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size))


def _machine_faults(config: Config, world_size: int) -> list[str]:
    """A run starts servers on one machine only, where all of its ranks must be to reach them."""
    if local_world_size(world_size) == world_size:
        return []
    return [MANY_MACHINES.format(name=config.engine.name)]


def _gpu_faults(config: Config, world_size: int) -> list[str]:
    engine, num_gpus = config.engine, len(_visible_gpus())
    needed = engine.num_servers * engine.tensor_parallel
    trainer = 0 if engine.placement == "colocated" else local_world_size(world_size)
    if needed + trainer <= num_gpus:
        return []
    return [
        f"engine.num_servers={engine.num_servers} × engine.tensor_parallel={engine.tensor_parallel} need {needed} GPUs "
        f"besides the trainer's {trainer}, this machine has {num_gpus}; set them lower, engine.placement=colocated, "
        "engine.urls, or engine.cpu_servers=true"
    ]


def _visible_gpus() -> list[str]:
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]


async def _server_faults(config: Config) -> list[str]:
    return [fault for url in config.engine.urls for fault in await _faults_of(config, url)]


async def _faults_of(config: Config, url: str) -> list[str]:
    """Whether a given server answers, speaks the dialect, and serves a model of our shape."""
    from rollout.engines.http import EngineFault

    engine = client(config.engine, url)
    try:
        model = await engine.identify()
    except EngineFault as fault:
        if fault.kind in ("dead", "hanging"):
            return [f"engine.urls: {fault}; start the server or set engine.urls"]
        if "HTTP 401" in str(fault) or "HTTP 403" in str(fault):
            return [f"engine.urls: {url} refuses the key; set ROLLOUT_ENGINE_API_KEY (and ..._ADMIN_KEY)"]
        return [
            f"engine.urls: {url} does not answer as a server for engine.name={config.engine.name} would "
            f"(rollout/engines/commands.py has how to start one): {fault}"
        ]
    finally:
        await engine.close()
    return _shape_faults(url, model, resolve_model(config.actor.model))


def _shape_faults(url: str, served: str, ours: Path) -> list[str]:
    """Differences between the served model and ours, where the served one's files can be read here."""
    theirs = resolve_model(served)
    if not (theirs / "config.json").is_file() or not (ours / "config.json").is_file():
        return []
    shape, own_shape = (json.loads((path / "config.json").read_text()) for path in (theirs, ours))
    return [
        f"engine.urls: {url} serves {served} with {key}={shape.get(key)}, actor.model={ours} has {own_shape.get(key)}"
        for key in SHAPE_KEYS
        if shape.get(key) != own_shape.get(key)
    ]
