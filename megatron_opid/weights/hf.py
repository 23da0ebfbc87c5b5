"""Reading and writing Hugging Face model directories: safetensors in shards, config.json, tokenizer files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_opid.weights.families import parameters
from megatron_opid.weights.hf_config import ModelShape

INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_SHARD_BYTES = 4 * 1024**3
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


class WeightsError(ValueError):
    """The weights are missing, torn, or do not fit config.json; the message names every tensor and file concerned."""


class HfWeights:
    """The tensors of a Hugging Face directory, read lazily one at a time, checked against `shape` when opened.

    Raises:
        WeightsError: a file is missing or torn; a tensor is missing, mis-shaped, or not one of the model's.
    """

    def __init__(self, directory: Path, shape: ModelShape) -> None:
        self._directory = directory
        self._file_of = _tensor_files(directory)
        self._handles: dict[str, Any] = {}
        faults = self._faults(shape)
        if faults:
            raise WeightsError(f"{directory}: " + "; ".join(faults))

    def get(self, name: str) -> Tensor:
        """The whole tensor, on the CPU, in the dtype of the file."""
        return self._open(self._file_of[name]).get_tensor(name)

    def _open(self, file: str) -> Any:
        if file not in self._handles:
            try:
                self._handles[file] = safe_open(self._directory / file, framework="pt")
            except (FileNotFoundError, SafetensorError) as error:
                held = sorted(name for name, of in self._file_of.items() if of == file)
                example = f" (it should hold {held[0]} and {len(held) - 1} others)" if held else ""
                raise WeightsError(f"{self._directory / file}{example} cannot be read: {error}") from error
        return self._handles[file]

    def _faults(self, shape: ModelShape) -> list[str]:
        expected = {
            name: sizes
            for parameter in parameters(shape)
            for name, sizes in zip(parameter.hf_names, parameter.hf_shapes, strict=True)
        }
        missing = [f"tensor {name} is missing" for name in expected if name not in self._file_of]
        ignored = {"lm_head.weight"} if shape.tied_embeddings else set()
        unexpected = sorted(set(self._file_of) - set(expected) - ignored)
        faults = missing + [f"tensor {name} does not belong to a {shape.family} of this config" for name in unexpected]
        for name in (name for name in expected if name in self._file_of):
            file = self._open(self._file_of[name])
            if name not in file.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                faults.append(f"tensor {name} is not in {self._file_of[name]}, where the index says it is")
            elif tuple(file.get_slice(name).get_shape()) != expected[name]:
                found = tuple(file.get_slice(name).get_shape())
                faults.append(f"tensor {name} has shape {found}, config.json asks for {expected[name]}")
        return faults


def write_hf(
    directory: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    source: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model directory from a stream of named tensors: at most one shard is held in memory.

    config.json (with the tensors' dtype) and the tokenizer files come from `source`. Everything is written into a
    temporary sibling that is renamed when complete, so `directory` is never half-written; an older one is replaced.
    """
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    dtype = _write_shards(temporary, tensors, max_shard_bytes)
    _copy_companions(source, temporary, dtype)
    replace_directory(temporary, directory)


def replace_directory(new: Path, directory: Path) -> None:
    """Rename `new` to `directory`, moving an older one out of the way first."""
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _tensor_files(directory: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    index = directory / INDEX
    if index.is_file():
        try:
            return dict(json.loads(index.read_text())["weight_map"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise WeightsError(f"{index} is torn ({error!r}); restore the file") from error
    single = directory / SINGLE_FILE
    if not single.is_file():
        raise WeightsError(f"{directory} holds neither {SINGLE_FILE} nor {INDEX}; only safetensors are read")
    try:
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), SINGLE_FILE)
    except SafetensorError as error:
        raise WeightsError(f"{single} cannot be read: {error}; the file is torn, restore it") from error


def _write_shards(directory: Path, tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int) -> torch.dtype:
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total_bytes = pending_bytes = 0

    def flush() -> None:
        save_file(pending, directory / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > max_shard_bytes:
            flush()
            pending_bytes = 0
        # A clone: the stream may reuse its buffer, and safetensors refuses views.
        pending[name] = tensor.detach().to("cpu", copy=True).contiguous()
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    dtype = next(iter(pending.values())).dtype
    flush()
    _name_shards(directory, shards, total_bytes)
    return dtype


def _name_shards(directory: Path, shards: list[list[str]], total_bytes: int) -> None:
    if len(shards) == 1:
        (directory / "shard-0").rename(directory / SINGLE_FILE)
        return
    weight_map = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"shard-{number}").rename(directory / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _copy_companions(source: Path, directory: Path, dtype: torch.dtype) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in ("config.json", INDEX) and not path.name.endswith(WEIGHT_SUFFIXES):
            shutil.copyfile(path, directory / path.name)
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
