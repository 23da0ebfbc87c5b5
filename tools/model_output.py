"""Writing a model from the command line: what is refused first, the progress bar, the Hugging Face directory."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from megatron_opid.weights.families import parameters
from megatron_opid.weights.hf import write_hf
from megatron_opid.weights.hf_config import ModelShape
from tools.model_source import ModelSource


class OutputError(ValueError):
    """The model cannot be written; the message lists every fault. Nothing has been written."""


def refuse(target: Path, model: ModelSource, faults: list[str]) -> None:
    """Raises: OutputError with all faults, and those of the place to write to."""
    faults = list(faults)
    if target.exists():
        faults.append(f"{target} exists; name a new directory, or delete it first")
    parent = next(path for path in target.absolute().parents if path.exists())
    needed, free = num_bytes(model), shutil.disk_usage(parent).free
    if needed > free:
        faults.append(f"{target} needs {needed / 1e9:.1f} GB, {parent} has {free / 1e9:.1f} GB free")
    if faults:
        raise OutputError("; ".join(faults))


def write_hf_model(model: ModelSource, target: Path, max_shard_bytes: int) -> None:
    """Write the Hugging Face directory `target`; it appears complete or not at all. Raises: OutputError."""
    refuse(target, model, [])
    try:
        with progress_of(model) as progress:
            write_hf(target, reported(model, progress), source=model.companions, max_shard_bytes=max_shard_bytes)
    finally:
        shutil.rmtree(target.with_name(target.name + ".tmp"), ignore_errors=True)


def progress_of(model: ModelSource) -> tqdm:
    interval_s = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(total=num_bytes(model), unit="B", unit_scale=True, mininterval=interval_s, desc=model.directory.name)


def reported(model: ModelSource, progress: tqdm) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors; the bar moves as they are consumed."""
    for name, tensor in model.tensors():
        yield name, tensor
        progress.update(tensor.nbytes)


def num_bytes(model: ModelSource) -> int:
    return num_parameters(model.shape) * dtype_of(model).itemsize


def num_parameters(shape: ModelShape) -> int:
    return sum(math.prod(sizes) for parameter in parameters(shape) for sizes in parameter.hf_shapes)


def dtype_of(model: ModelSource) -> torch.dtype:
    """Of the final norm, a small tensor: a model's tensors have one dtype."""
    return model.weights.get("model.norm.weight").dtype
