"""The command line and environment of one server: vLLM 0.24.0, SGLang 0.5.14, or our CPU server in either's dialect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rollout.address import LOOPBACK
from rollout.engines.base import EngineError
from rollout.engines.http import ADMIN_KEY, API_KEY
from rollout.engines.sglang_names import UNSYNCED

# The Python that vLLM or SGLang is installed in; unset or empty: this one.
ENGINE_PYTHON = "ENGINE_PYTHON"
KEY_GUARD = "rollout.engines.key_guard.KeyGuard"
EXTENSION = "rollout.engines.vllm_worker.WeightBook"
# nvidia/cu13/lib, or of CUDA 12 nvidia/cuda_runtime/lib.
FIND_CUDA_RUNTIME = """
import importlib.util, pathlib
spec = importlib.util.find_spec("nvidia")
for place in spec.submodule_search_locations if spec else ():
    for library in pathlib.Path(place).glob("*/lib/libcudart.so.*"):
        print(library.parent)
"""
# Tokens of a step for which vLLM replays a CUDA graph: its own sizes, which 0.24.0 ends at two tokens a sequence and
# 512 in all, and larger ones. Only steps of nothing but next tokens stay below its end, and where each episode goes on
# by itself nearly every step holds a prompt, too. One graph holds all of such a step (cudagraph_mode FULL). 0.24.0's
# older model runner, which mixtures get, captures sequences as long as the step: a graph for more than the longest one
# would read beyond its table of blocks. FlashAttention must be ours (vllm_attention.py, by EXTENSION).
VLLM_GRAPH_TOKENS = (1, 2, 4, *range(8, 256, 8), *range(256, 512, 16), *range(512, 2049, 128))
# Parts of a sequence's keys that FlashAttention works on at the same time, at most. A graph holds memory for that many
# partial outputs of all tokens, also asleep: of vLLM's own 32 they are 1 GiB for an 8B.
VLLM_KEY_SPLITS = 8


@dataclass(frozen=True)
class ServerSettings:
    """What every server of a launcher is started with.

    `host` is the address to listen on, `dtype` float32 or bfloat16; `transfer` the weight transport; `sleeps` asks for
    memory that can be given back; `dummy_weights` starts without weights, which sync over disk cannot mend; `on_cpu`
    for our CPU server; `arguments` follow all others; `max_model_tokens` are a prompt's and its response's.
    `num_api_servers` are vLLM's processes that answer for one engine: of each sampled token's log-prob vLLM 0.24.0
    makes several objects on the way to JSON, which one process hardly does for 128 requests
    (docs/bench/rollout_vllm_one_api_server.json).
    """

    dialect: Literal["vllm", "sglang"]
    model: Path
    dtype: str
    max_model_tokens: int
    host: str = LOOPBACK
    transfer: Literal["disk", "nccl", "ipc"] = "disk"
    tensor_parallel: int = 1
    num_api_servers: int = 4
    gpu_memory_utilization: float = 0.85
    max_batch_sequences: int = 64
    sleeps: bool = False
    dummy_weights: bool = False
    on_cpu: bool = False
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServerCommand:
    """An argument list, and what is added to the environment."""

    arguments: tuple[str, ...]
    environment: dict[str, str]


def server_command(settings: ServerSettings, port: int, gpus: Sequence[str], key_file: Path) -> ServerCommand:
    """How to start one server on `settings.host`:`port` with the GPUs whose CUDA names are given.

    Several GPUs of one server never use NVLink multicast, which both servers' fused all-reduce would: where the driver
    fails at it, the GPUs are out of service until the machine is started again.

    Keys that stand in the environment reach the server by its environment or by `key_file`, which this writes where
    it is needed: a command line can be read by every user of the machine.
    """
    if settings.on_cpu:
        return _cpu(settings, port)
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    if settings.dialect == "vllm":
        return _vllm(settings, port, environment)
    return _sglang(settings, port, environment, key_file)


def _engine_python() -> str:
    """vLLM and SGLang want another PyTorch than the trainer: they may have a Python of their own."""
    return os.environ.get(ENGINE_PYTHON) or sys.executable


def has_package(name: str) -> bool:
    """Whether the engines' Python has a package; a folder of that name in the current directory is none.

    Raises:
        EngineError: there is no such Python.
    """
    code = f"import importlib.util\nspec = importlib.util.find_spec({name!r})\nprint(bool(spec and spec.origin))"
    return _printed(code)[-1:] == ["True"]  # a wrapper may print as well


def _printed(code: str) -> list[str]:
    """The lines that the engines' Python prints for `code`."""
    python = _engine_python()
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"{ENGINE_PYTHON}={python} is no Python that runs: {error}") from error
    return done.stdout.splitlines()


def _cuda_runtime_paths() -> dict[str, str]:
    """LD_LIBRARY_PATH with the CUDA runtimes that pip installed for the engines; nothing where there are none.

    SGLang's memory saver is preloaded, before Python could say where libcudart is, and torch_memory_saver 0.0.10 does
    not know: without a system-wide CUDA the scheduler ends with exit code 127 (sgl-project/sglang issue 36533).
    """
    found = _printed(FIND_CUDA_RUNTIME)
    given = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": ":".join([*([given] if given else []), *found])} if found else {}


def _cpu(settings: ServerSettings, port: int) -> ServerCommand:
    arguments = [
        *(sys.executable, "-m", "rollout.engines.server"),
        *("--model", str(settings.model), "--dialect", settings.dialect),
        *("--host", settings.host, "--port", str(port)),
        *("--dtype", settings.dtype, "--max-num-seqs", str(settings.max_batch_sequences)),
        *("--weight-version", UNSYNCED, "--enable-deterministic-inference"),
    ]
    # Spinning OpenMP threads of one server would take the core of another.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"}
    return ServerCommand((*arguments, *settings.arguments), environment)


def _vllm(settings: ServerSettings, port: int, environment: dict[str, str]) -> ServerCommand:
    arguments = [
        *(_engine_python(), "-m", "vllm.entrypoints.cli.main", "serve", str(settings.model)),
        *("--host", settings.host, "--port", str(port), "--dtype", settings.dtype),
        *("--tensor-parallel-size", str(settings.tensor_parallel)),
        *("--gpu-memory-utilization", str(settings.gpu_memory_utilization)),
        *("--max-num-seqs", str(settings.max_batch_sequences)),
        *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"),
        *("--worker-extension-cls", EXTENSION),
        *("--api-server-count", str(settings.num_api_servers)),
        "--disable-uvicorn-access-log",  # a line per response
    ]
    # Longer than any of ours where the model can be: so many tokens has the largest graph.
    longest = max(settings.max_model_tokens, min(VLLM_GRAPH_TOKENS[-1], _positions(settings.model)))
    arguments += ["--max-model-len", str(longest)]
    graph_tokens = [tokens for tokens in VLLM_GRAPH_TOKENS if tokens <= longest]
    compilation: dict[str, Any] = {"cudagraph_mode": "FULL", "cudagraph_capture_sizes": graph_tokens}
    if settings.tensor_parallel > 1:
        compilation["pass_config"] = {"fuse_allreduce_rms": False}
        environment = environment | {"VLLM_ALLREDUCE_USE_SYMM_MEM": "0"}
    arguments += ["--compilation-config", json.dumps(compilation)]
    arguments += ["--attention-config", json.dumps({"flash_attn_max_num_splits_for_cuda_graph": VLLM_KEY_SPLITS})]
    if settings.sleeps:
        arguments += ["--enable-sleep-mode"]
    if settings.dummy_weights:
        arguments += ["--load-format", "dummy"]
    # Without dev mode the routes for weights, pause and sleep do not exist.
    environment = environment | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    if settings.transfer != "disk":
        arguments += ["--weight-transfer-config", json.dumps({"backend": settings.transfer})]
    if settings.transfer == "ipc":
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # handles of device memory come pickled
    if os.environ.get(API_KEY):
        environment["VLLM_API_KEY"] = os.environ[API_KEY]
        arguments += ["--middleware", KEY_GUARD]  # finds the key in the environment that the server inherits
    return ServerCommand((*arguments, *settings.arguments), environment)


def _positions(model: Path) -> int:
    """The longest sequence that a Hugging Face model is made for."""
    return json.loads((model / "config.json").read_text())["max_position_embeddings"]


def _sglang(settings: ServerSettings, port: int, environment: dict[str, str], key_file: Path) -> ServerCommand:
    arguments = [
        *(_engine_python(), "-m", "rollout.engines.sglang_worker", "--model-path", str(settings.model)),
        *("--host", settings.host, "--port", str(port), "--dtype", settings.dtype),
        *("--tp-size", str(settings.tensor_parallel)),
        *("--mem-fraction-static", str(settings.gpu_memory_utilization)),
        *("--max-running-requests", str(settings.max_batch_sequences)),
        *("--context-length", str(settings.max_model_tokens)),
        *("--skip-tokenizer-init", "--enable-metrics", "--weight-version", UNSYNCED),
        *("--attention-backend", "triton", "--sampling-backend", "pytorch"),
        *("--log-level", "warning"),  # at info it prints its keys
    ]
    if settings.tensor_parallel > 1:
        arguments += ["--enforce-disable-flashinfer-allreduce-fusion"]
    if settings.transfer == "nccl":
        # SGLang switches it off; both ends of a transfer must agree, or the first broadcast fails.
        environment = environment | {"NCCL_CUMEM_ENABLE": os.environ.get("NCCL_CUMEM_ENABLE", "1")}
    if settings.sleeps:
        arguments += ["--enable-memory-saver"]
        environment = environment | _cuda_runtime_paths()
    if settings.dummy_weights:
        arguments += ["--load-format", "dummy"]
    keys = {"api-key": os.environ.get(API_KEY), "admin-api-key": os.environ.get(ADMIN_KEY)}
    lines = [f"{name}: {json.dumps(key)}\n" for name, key in keys.items() if key]
    if lines:
        key_file.unlink(missing_ok=True)
        with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(lines)
        arguments += ["--config", str(key_file)]
    # The health probe that generates is held back while the server is paused. Nothing opens the port for gRPC, but the
    # default, 10,000 above the other, is above 65,535 for many a free port, and then the server refuses to start.
    environment = environment | {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0", "SGLANG_GRPC_PORT": str(port - 1)}
    return ServerCommand((*arguments, *settings.arguments), environment)
