"""Time and memory of tools.convert on a synthetic model of Qwen3-8B's shape: bf16, random values, 16.4 GB.

    python -m tools.bench_convert --work /tmp/bench_convert [--layers 36] [--json docs/bench/convert.json]

Makes the model shard by shard, converts it to Megatron (files of TP 2 x PP 2) and back, each in a process of its own,
and compares the result with the source, bit for bit. Seconds run until everything is on the disk (sync), as those of a
plain copy of the same files, the yardstick. Peak memory is sampled at 20 Hz: the process's own memory (resident less
shared pages), and the resident set, which also counts pages of mapped files that the kernel may drop at any time; the
rest of the page cache is no process's. Everything in `--work` is deleted at the end. Needs three times the model's size
of disk.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from megatron_opid.weights.families import parameters
from megatron_opid.weights.hf import write_hf
from megatron_opid.weights.hf_config import parse_hf_config

QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
}
SAMPLES_PER_S = 20


def make_model(directory: Path, hf_config: dict) -> int:
    """Write random bf16 weights; returns their bytes."""
    source = directory.with_name("description")
    source.mkdir(parents=True)
    (source / "config.json").write_text(json.dumps(hf_config))
    shape = parse_hf_config(hf_config)
    sizes = [size for parameter in parameters(shape) for size in parameter.hf_shapes]

    def tensors() -> Iterator[tuple[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for parameter in parameters(shape):
            for name, size in zip(parameter.hf_names, parameter.hf_shapes, strict=True):
                # Random bits, infinities and all, four values to a draw: only copies are made of them.
                bits = torch.empty(math.prod(size) // 4, dtype=torch.int64).random_(generator=generator)
                yield name, bits.view(torch.bfloat16).view(size)

    write_hf(directory, tensors(), source=source)
    return 2 * sum(map(math.prod, sizes))


def measure(arguments: list[object]) -> dict[str, float]:
    """Run `python -m tools.convert ARGUMENTS`: seconds, CPU seconds, peak memory.

    Raises: CalledProcessError if it fails.
    """
    command = [sys.executable, "-m", "tools.convert", *map(str, arguments)]
    os.sync()
    started_s = time.perf_counter()
    process = subprocess.Popen(command)
    watched = psutil.Process(process.pid)
    peak_resident = peak_own = cpu_s = 0
    while process.poll() is None:
        try:
            memory, times = watched.memory_info(), watched.cpu_times()
        except psutil.NoSuchProcess:
            break
        peak_resident = max(peak_resident, memory.rss)
        peak_own = max(peak_own, memory.rss - memory.shared)  # shared: pages of mapped files
        cpu_s = times.user + times.system
        time.sleep(1 / SAMPLES_PER_S)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command)
    os.sync()
    return {
        "seconds": time.perf_counter() - started_s,
        "cpu_s": cpu_s,
        "peak_own_bytes": peak_own,
        "peak_resident_bytes": peak_resident,
    }


def copy_seconds(source: Path, target: Path) -> float:
    """A plain copy of the same files to the disk, for comparison."""
    os.sync()
    started_s = time.perf_counter()
    shutil.copytree(source, target)
    os.sync()
    return time.perf_counter() - started_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/bench_convert"))
    parser.add_argument("--layers", type=int, default=QWEN3_8B["num_hidden_layers"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    work = options.work
    work.mkdir(parents=True)
    try:
        num_bytes = make_model(work / "hf", QWEN3_8B | {"num_hidden_layers": options.layers})
        result: dict[str, Any] = {"model_bytes": num_bytes, "layers": options.layers, "cores": os.cpu_count()}
        layout = ["--tensor-parallel", 2, "--pipeline-parallel", 2]
        result["load_before"] = os.getloadavg()
        result["hf_to_megatron"] = measure(["hf-to-megatron", work / "hf", work / "megatron", *layout])
        result["megatron_to_hf"] = measure(["megatron-to-hf", work / "megatron", work / "back"])
        result["verify"] = measure(["verify", work / "hf", work / "back"])
        shutil.rmtree(work / "back")
        shutil.rmtree(work / "megatron")
        result["copy_s"] = copy_seconds(work / "hf", work / "copy")
        for part in ("hf_to_megatron", "megatron_to_hf", "verify"):
            result[part]["seconds_to_copy_seconds"] = result[part]["seconds"] / result["copy_s"]
        result["load_after"] = os.getloadavg()
    finally:
        shutil.rmtree(work)
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
