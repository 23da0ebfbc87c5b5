"""What samples, from the configuration: why it cannot, the clients of the servers, and the weight sync."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from envs.base import package_fault
from megatron_opid.config import Config, EngineConfig, resolve_model
from megatron_opid.servers import Place, local_world_size, sync_name, visible_gpus

if TYPE_CHECKING:
    from rollout.engines.base import Engine
    from rollout.engines.http import HttpEngine
    from rollout.engines.launch import Launcher
    from rollout.engines.pool import EnginePool
    from rollout.weight_sync.base import WeightSync
    from rollout.weight_sync.servers import AllGather, Run

MIB = 1 << 20
SHAPE_KEYS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def engine_faults(config: Config, world_size: int) -> list[str]:
    """Why the engines of this configuration cannot serve: values first, then the servers at `engine.urls`."""
    engine, faults = config.engine, engine_value_faults(config.engine)
    if engine.name == "local":
        return faults
    sync = sync_name(engine)
    if sync == "ipc" and not engine.urls and engine.num_servers * engine.tensor_parallel > local_world_size(world_size):
        faults.append(
            f"engine.sync=ipc: engine.num_servers={engine.num_servers} × engine.tensor_parallel="
            f"{engine.tensor_parallel} GPUs must be those of the machine's {local_world_size(world_size)} ranks; set "
            "engine.num_servers lower, or run.num_processes higher"
        )
    if engine.cpu_servers and importlib.util.find_spec("uvicorn") is None:
        faults.append(package_fault("engine.cpu_servers=true", "uvicorn", "server"))
    starts_on_gpus = not engine.urls and not engine.cpu_servers
    own = (_gpu_faults(config, world_size) or _server_package_faults(engine)) if starts_on_gpus else []
    faults += own or _package_faults(engine, sync)  # without GPUs or a server their transport is of no interest
    if not faults and engine.urls:
        faults += asyncio.run(_server_faults(config))
    return faults


def engine_value_faults(engine: EngineConfig) -> list[str]:
    """Why no machine could serve with these values."""
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
    if sync == "nccl" and engine.placement == "colocated":
        faults.append("engine.sync=nccl needs engine.placement=disaggregated: NCCL refuses two ranks on one GPU")
    if engine.cpu_servers and engine.urls:
        faults.append("engine.cpu_servers=true starts servers, engine.urls names given ones; set one of them")
    if engine.cpu_servers and engine.server_arguments:
        faults.append(f"engine.server_arguments={list(engine.server_arguments)} are the real servers' own: set none")
    if engine.cpu_servers and (sync == "ipc" or engine.tensor_parallel > 1):
        faults.append("engine.cpu_servers=true has engine.sync=disk or nccl and engine.tensor_parallel=1 only")
    return faults


def client(engine: EngineConfig, url: str) -> HttpEngine:
    """The client of one server; its keys come from the environment."""
    from rollout.engines.sglang import SglangEngine
    from rollout.engines.vllm import VllmEngine

    kind = VllmEngine if engine.name == "vllm" else SglangEngine
    return kind(url, request_timeout_s=engine.request_timeout_s)


def make_pool(config: Config, urls: tuple[str, ...], launcher: Launcher | None, *, rank: int) -> EnginePool:
    """One rank's view of the servers. It looks after those that it started; rank 0 after those of `engine.urls`."""
    from rollout.engines.pool import EnginePool, PoolSettings

    engine = config.engine
    settings = PoolSettings(
        recovery_timeout_s=engine.recovery_timeout_s,
        slow_ratio=engine.slow_ratio,
        arrival_share=engine.arrival_share,
    )
    given = engine.urls if rank == 0 else ()
    own = given if launcher is None else launcher.urls
    return EnginePool([client(engine, url) for url in urls], settings, launcher, own)


def make_sync(config: Config, engine: Engine, run: Run, place: Place, all_gather: AllGather) -> WeightSync:
    """The transport of `engine.sync`."""
    if config.engine.name == "local":
        from rollout.weight_sync.in_process import InProcessSync

        return InProcessSync(engine, run, config.engine.verify_every)
    common = {
        "is_sender": place.rank == 0,
        "bucket_bytes": config.engine.bucket_mib * MIB,
        "all_gather": all_gather,
    }
    match sync_name(config.engine):
        case "disk":
            from rollout.weight_sync.disk import DiskSync

            return DiskSync(
                engine,
                run,
                config.engine.verify_every,
                directory=weights_directory(config),
                source=resolve_model(config.actor.model),
                **common,
            )
        case "nccl":
            from rollout.weight_sync.nccl import NcclSync

            return NcclSync(
                engine,
                run,
                config.engine.verify_every,
                backend="gloo" if config.engine.cpu_servers else "nccl",
                **common,
            )
        case "ipc":
            from rollout.weight_sync.ipc import IpcSync

            return IpcSync(
                engine,
                run,
                config.engine.verify_every,
                tensor_parallel=config.engine.tensor_parallel,
                first_rank=place.first_rank,
                **common,
            )
    raise ValueError(f"engine.sync={config.engine.sync!r} is unknown")


def weights_directory(config: Config) -> Path:
    """Where sync over disk writes: below `engine.sync_dir`, which runs may share, a path of this run's own."""
    run = Path(config.run.dir)
    return Path(config.engine.sync_dir, *run.absolute().parts[1:]) if config.engine.sync_dir else run / "weights"


def _local_faults(engine: EngineConfig) -> list[str]:
    faults = []
    if engine.urls:
        faults.append(f"engine.urls={list(engine.urls)} needs engine.name=vllm or sglang")
    if engine.cpu_servers:
        faults.append("engine.cpu_servers=true needs engine.name=vllm or sglang, whose protocol they speak")
    if sync_name(engine) != "in_process":
        faults.append(f"engine.sync={engine.sync} needs engine.name=vllm or sglang; local has in_process")
    return faults


def _server_package_faults(engine: EngineConfig) -> list[str]:
    """Whether the Python of servers that we start on GPUs has theirs."""
    from rollout.engines.base import EngineError
    from rollout.engines.commands import ENGINE_PYTHON, has_package

    try:
        is_there = has_package(engine.name)
    except EngineError as error:
        return [str(error)]
    if is_there:
        return []
    python = os.environ.get(ENGINE_PYTHON) or "this Python"
    return [
        f"engine.name={engine.name}: {python} has no package {engine.name}; install it there, pip install -e "
        f"'.[{engine.name}]', or set {ENGINE_PYTHON} to a Python that has it"
    ]


def _package_faults(engine: EngineConfig, sync: str) -> list[str]:
    """Packages that a transport through GPUs' memory needs here; what the servers' own Python has is theirs to say."""
    from rollout.engines.commands import ENGINE_PYTHON

    if engine.cpu_servers or sync not in ("nccl", "ipc"):
        return []
    needed = {("nccl", "vllm"): "vllm", ("nccl", "sglang"): "sglang", ("ipc", "sglang"): "sglang"}
    if not engine.urls and not os.environ.get(ENGINE_PYTHON):
        needed |= {("ipc", "vllm"): "ray"}  # vLLM's back end imports it, whether it is used or not
    package = needed.get((sync, engine.name))
    if package is None or importlib.util.find_spec(package) is not None:
        return []
    return [
        f"engine.sync={sync} with {engine.name} needs the package {package} here; install it or set engine.sync=disk"
    ]


def _url_faults(url: str) -> list[str]:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        return ["engine.urls holds credentials; put the key into ROLLOUT_ENGINE_API_KEY"]
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
        return [f"engine.urls: {url!r} is no server's address; set it to something like http://host:8000"]
    return []


def _gpu_faults(config: Config, world_size: int) -> list[str]:
    engine, num_gpus = config.engine, len(visible_gpus())
    needed = engine.num_servers * engine.tensor_parallel
    trainer = 0 if engine.placement == "colocated" else local_world_size(world_size)
    if needed + trainer <= num_gpus:
        return []
    if num_gpus == 0:
        return [
            f"engine.name={engine.name} starts servers on GPUs, this machine has none; set engine.name=local, "
            "engine.cpu_servers=true, or engine.urls to servers elsewhere"
        ]
    besides = f" besides the trainer's {trainer}" if trainer else ""
    colocated = "engine.placement=colocated, " if trainer else ""
    return [
        f"engine.num_servers={engine.num_servers} × engine.tensor_parallel={engine.tensor_parallel} need {needed} GPUs"
        f"{besides}, this machine has {num_gpus}; set them lower, {colocated}engine.urls, or engine.cpu_servers=true"
    ]


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
