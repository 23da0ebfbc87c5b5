"""Seconds of a weight push into a server, and the memory that it gives back asleep.

    python -m tools.bench_weight_sync --dialect vllm --transport ipc  --shape 8b --json FILE     (one GPU)
    python -m tools.bench_weight_sync --dialect vllm --transport nccl --shape 8b --json FILE     (two GPUs)
    python -m tools.bench_weight_sync --dialect vllm --transport disk --cpu                 (our CPU server; nccl: gloo)

One rank pushes random weights of a published shape, made tensor by tensor as a gather would give them, through the
project's own client and transports. The first push forms the group and compares digests; the others are timed. The
bandwidth of the link is that of a plain copy of 1 GiB between the two GPUs, or within the one. `requests_s` are the
seconds of a push in which a request of each route (or of a method of vLLM's workers) was on its way; `free_gib` is
what the server's GPU has left after each push. Between pushes the server of `ipc` sleeps, as it does in training.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from megatron_opid.servers import visible_gpus
from rollout.engines.base import Sampling
from rollout.engines.commands import ServerSettings
from rollout.engines.http import HttpEngine
from rollout.engines.launch import Launcher
from rollout.engines.pool import EnginePool, PoolSettings
from rollout.weight_sync.base import WeightSync
from rollout.weight_sync.bucket import buckets
from rollout.weight_sync.disk import DiskSync
from rollout.weight_sync.ipc import IpcSync
from rollout.weight_sync.nccl import NcclSync
from rollout.weight_sync.stream import batches
from tools.extras import imports_of
from tools.make_tiny_model import train_tokenizer

with imports_of("server", __name__):
    from tools.bench_rollout import CLIENTS

# Layers, hidden, heads, key-value heads, head dimension, feed-forward, tied embeddings: Qwen3's; tiny is for a CPU.
SHAPES = {
    "tiny": (2, 128, 4, 2, 32, 384, True),
    "0.6b": (28, 1024, 16, 8, 128, 3072, True),
    "8b": (36, 4096, 32, 8, 128, 12288, False),
}
VOCABULARY = {"tiny": 1024}
QWEN3_VOCABULARY = 151936
GIB = 1 << 30


def make_config(shape: str) -> Qwen3Config:
    layers, hidden, heads, key_value_heads, head_dim, feed_forward, tied = SHAPES[shape]
    return Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=VOCABULARY.get(shape, QWEN3_VOCABULARY),
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
    )


class Weights:
    """Names and shapes of a model, and streams of random tensors of them."""

    def __init__(self, config: Qwen3Config, dtype: torch.dtype, device: torch.device):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._dtype, self._device = dtype, device
        self.num_bytes = sum(torch.Size(shape).numel() for shape in self._shapes.values()) * dtype.itemsize

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        for name, shape in self._shapes.items():
            yield name, torch.empty(shape, dtype=self._dtype, device=self._device).normal_(std=0.02)


class Bench:
    """One server, one rank."""

    def __init__(self, options: argparse.Namespace, work: Path):
        self._options = options
        self._device = torch.device("cpu" if options.cpu else "cuda:0")
        self._peer = 1 if options.transport == "nccl" else 0  # the server's GPU
        dtype = torch.float32 if options.cpu else torch.bfloat16
        self.weights = Weights(make_config(options.shape), dtype, self._device)
        self._model = self._write_model(work / "model", dtype)
        settings = ServerSettings(
            options.dialect,
            self._model,
            "float32" if options.cpu else "bfloat16",
            max_model_tokens=4096,
            transfer=options.transport,
            gpu_memory_utilization=options.gpu_memory_utilization,
            sleeps=options.transport == "ipc",
            dummy_weights=options.transport != "disk",
            on_cpu=options.cpu,
        )
        gpus = [] if options.cpu else [visible_gpus()[self._peer]]
        self.launcher = Launcher(settings, num_servers=1, gpus=gpus, directory=work / "logs", startup_timeout_s=900)
        self._work = work

    def run(self) -> dict:
        """Start, push, sleep: the figures."""
        link = {} if self._options.cpu else {"link_gib_per_s": link_gib_per_s(self._peer)}  # while its memory is free
        asyncio.run(self.launcher.start())
        requests_s: dict[str, float] = defaultdict(float)
        self._engine = timed(CLIENTS[self._options.dialect], requests_s)(self.launcher.urls[0])
        with asyncio.Runner() as runner:
            self._run = runner.run
            pool = EnginePool([self._engine], PoolSettings(recovery_timeout_s=10))
            sync = self._sync(pool)
            first = sync.push(self.weights.stream(), 1)
            figures: dict = {"first_push_s": first.seconds, "verified": first.verified}
            figures |= {"pushes_s": [], "requests_s": [], "free_gib": [], "asleep": []}
            for version in range(2, 2 + self._options.pushes):
                if self._options.transport == "ipc":
                    figures["asleep"].append(self._sleep())
                requests_s.clear()
                figures["pushes_s"].append(sync.push(self.weights.stream(), version).seconds)
                figures["requests_s"].append(dict(requests_s))
                if not self._options.cpu:
                    figures["free_gib"].append(torch.cuda.mem_get_info(self._peer)[0] / GIB)
            self._run(self._sample())
            self._run(pool.close())
        figures["gather_s"] = self._gather_s()
        return figures | self._summary(figures, link)

    def _gather_s(self) -> float:
        """Of making the tensors and, where that is done, packing them, with nobody to send them to: the median of three
        times."""
        times = []
        for _ in range(3):
            started_s = time.perf_counter()
            gather = batches if self._options.transport == "nccl" else buckets
            for _ in gather(self.weights.stream(), self._options.bucket_mib << 20):
                if not self._options.cpu:
                    torch.cuda.synchronize()
            times.append(time.perf_counter() - started_s)
        return statistics.median(times)

    def _sync(self, pool: EnginePool) -> WeightSync:
        common = {"is_sender": True, "bucket_bytes": self._options.bucket_mib << 20}
        match self._options.transport:
            case "disk":
                place = {"directory": self._work / "weights", "source": self._model}
                return DiskSync(pool, self._run, 1_000_000, **common, **place)
            case "nccl":
                backend = "gloo" if self._options.cpu else "nccl"
                return NcclSync(pool, self._run, 1_000_000, **common, backend=backend)
        gather = {"all_gather": lambda text: [text], "tensor_parallel": 1}
        return IpcSync(pool, self._run, 1_000_000, **common, **gather)

    def _sleep(self) -> dict[str, float]:
        """Have the server sleep; GiB of the GPU in use before and after.

        This process' tensors are taken off, but not its CUDA context: `left_gib` has it, so that the server gives back
        a larger share than these two tell.
        """
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._device)
        started_s = time.perf_counter()
        self._run(self._engine.sleep())
        seconds = time.perf_counter() - started_s
        free_asleep, _ = torch.cuda.mem_get_info(self._device)
        own = torch.cuda.memory_reserved(self._device)
        return {
            "seconds": seconds,
            "given_back_gib": (free_asleep - free) / GIB,
            "left_gib": (total - free_asleep - own) / GIB,
        }

    async def _sample(self) -> None:
        """The server still works."""
        sampling = Sampling(temperature=1.0, max_tokens=8, stop_token_ids=(), seed=1)
        await self._engine.generate([5, 6, 7], sampling, session="a")

    def _summary(self, figures: dict, link: dict[str, float]) -> dict:
        seconds, gib = statistics.median(figures["pushes_s"]), self.weights.num_bytes / GIB
        summary = {"gib": gib, "push_s": seconds, **link}
        if link:
            summary["push_over_bytes_at_link_speed"] = seconds * link["link_gib_per_s"] / gib
        return summary

    def _write_model(self, directory: Path, dtype: torch.dtype) -> Path:
        """config.json and a tokenizer; weights only where a server must load some."""
        config = make_config(self._options.shape)
        if self._options.cpu or self._options.transport == "disk":
            AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(directory)
        else:
            config.dtype = dtype
            config.save_pretrained(directory)
        train_tokenizer(["a few words"], 300).save_pretrained(directory)
        return directory


def timed(kind: type[HttpEngine], seconds: dict[str, float]) -> type[HttpEngine]:
    """A client of that kind which adds up, by route or by the worker's method, how long its control requests take."""

    class Timed(kind):
        async def _control(self, method: str, route: str, timeout_s: float, **arguments: Any) -> Any:
            started_s = time.perf_counter()
            try:
                return await super()._control(method, route, timeout_s, **arguments)
            finally:
                name = (arguments.get("json") or {}).get("method", route)
                seconds[name] += time.perf_counter() - started_s

    return Timed


def link_gib_per_s(peer: int) -> float:
    """Of plain copies of 1 GiB from GPU 0 to GPU `peer`; within one GPU a copy reads and writes."""
    source = torch.empty(GIB, dtype=torch.uint8, device="cuda:0")
    target = torch.empty(GIB, dtype=torch.uint8, device=f"cuda:{peer}")
    target.copy_(source)
    torch.cuda.synchronize()
    started_s = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started_s
    del source, target
    torch.cuda.empty_cache()
    return 10 / seconds


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialect", choices=list(CLIENTS), required=True)
    parser.add_argument("--transport", choices=["disk", "nccl", "ipc"], required=True)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--bucket-mib", type=int, default=1024)
    parser.add_argument("--pushes", type=int, default=5)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.6)
    parser.add_argument("--cpu", action="store_true", help="our CPU server")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.cpu and options.transport == "ipc":
        parser.error("--transport ipc needs a GPU")
    with tempfile.TemporaryDirectory(prefix="bench_weight_sync_") as name:
        bench = Bench(options, Path(name))
        with bench.launcher:
            figures = bench.run()
    report = {
        "options": {key: str(value) for key, value in vars(options).items()},
        "device": platform.processor() if options.cpu else torch.cuda.get_device_name(0),
        "figures": figures,
    }
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
