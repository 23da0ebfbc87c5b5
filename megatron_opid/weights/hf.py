"""Reading Hugging Face model directories: safetensors in shards, checked against config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_opid.weights.families import parameters
from megatron_opid.weights.hf_config import ModelShape
from rollout.hf_directory import INDEX, SINGLE_FILE, write_hf

MAX_OPEN_FILES = 2

__all__ = ["HfWeights", "WeightsError", "write_hf"]


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

    def dtypes(self) -> dict[str, str]:
        """Tensor name -> dtype as safetensors writes it (BF16, F32, ...)."""
        return {name: self._open(file).get_slice(name).get_dtype() for name, file in self._file_of.items()}

    def _open(self, file: str) -> Any:
        if file not in self._handles:
            # What is read stays mapped as long as its file is open: only the file in use and the one before are.
            for older in list(self._handles)[: 1 - MAX_OPEN_FILES]:
                del self._handles[older]
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
