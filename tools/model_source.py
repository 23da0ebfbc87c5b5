"""A model for the command-line tools: a Hugging Face directory or a checkpoint of ours, checked when it is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import Tensor

from megatron_opid.actor.stored_weights import open_stored_weights
from megatron_opid.config import resolve_model
from megatron_opid.weights.families import parameters
from megatron_opid.weights.hf_config import HfConfigError, ModelShape, parse_hf_config, read_hf_config
from megatron_opid.weights.megatron import WeightSource, is_megatron


@dataclass(frozen=True)
class ModelSource:
    """`companions` is where config.json, tokenizer and generation config lie."""

    directory: Path
    shape: ModelShape
    weights: WeightSource
    companions: Path

    @property
    def tensor_names(self) -> list[str]:
        return [name for parameter in parameters(self.shape) for name in parameter.hf_names]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All Hugging Face tensors in the order of the layers, one at a time."""
        for name in self.tensor_names:
            yield name, self.weights.get(name)


def open_model(directory: Path, model: Path | None = None) -> ModelSource:
    """Open a model; `model` is where a checkpoint's config.json and tokenizer lie, if not beside it.

    A training run's checkpoint has none: they are taken from the run's actor.model.
    Raises: HfConfigError, WeightsError, CheckpointError, each naming what is wrong.
    """
    if not directory.is_dir():
        raise HfConfigError(f"{directory} is no directory; give a Hugging Face model or a checkpoint (…/step_N)")
    companions = directory
    if is_megatron(directory):
        companions = model or _companions_of_checkpoint(directory)
    shape = parse_hf_config(read_hf_config(companions))
    return ModelSource(directory, shape, open_stored_weights(directory, shape), companions)


def _companions_of_checkpoint(directory: Path) -> Path:
    if (directory / "config.json").is_file():
        return directory
    run = directory.absolute().parent.parent
    config = run / "config.yaml"
    if config.is_file():
        name = yaml.safe_load(config.read_text())["actor"]["model"]
        found = [path for path in (resolve_model(name), run / name) if (path / "config.json").is_file()]
        if found:
            return found[0]
        root = os.environ.get("MODELS_ROOT", "")
        raise HfConfigError(
            f"{config} says actor.model={name!r}, which is not found here (MODELS_ROOT={root!r}); give --model"
        )
    raise HfConfigError(
        f"{directory} has no config.json, and {config} does not exist; give the Hugging Face directory as --model"
    )
