"""Writing a Hugging Face model directory from a stream of tensors: safetensors in shards, config.json, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_SHARD_BYTES = 4 * 1024**3
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
NOT_COMPANIONS = ("config.json", INDEX, "checkpoint.json")  # the last describes a Megatron checkpoint


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
    copy_companions(source, temporary, dtype)
    replace_directory(temporary, directory)


def replace_directory(new: Path, directory: Path) -> None:
    """Rename `new` to `directory`, moving an older one out of the way first."""
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _write_shards(directory: Path, tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int) -> torch.dtype:
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total_bytes = pending_bytes = 0

    def flush() -> None:
        shard = directory / f"shard-{len(shards)}"
        shard.touch()
        mode = shard.stat().st_mode
        save_file(pending, shard, metadata={"format": "pt"})
        shard.chmod(mode)  # as the umask says: safetensors leaves its files to their owner alone
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


def copy_companions(source: Path, directory: Path, dtype: torch.dtype) -> None:
    """Tokenizer, generation config and config.json (with `dtype`): whatever lies beside the weights in `source`."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in NOT_COMPANIONS and not path.name.endswith(WEIGHT_SUFFIXES):
            shutil.copyfile(path, directory / path.name)
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
