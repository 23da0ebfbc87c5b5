"""Model weights in Megatron distributed checkpoints, as Hugging Face tensors: read and written one parameter at a time.

`DIRECTORY/megatron` is what Megatron-Core's dist_checkpointing writes and reads; an optimizer beside the weights is not
touched. Reading and writing need neither Megatron nor a process group.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from megatron_opid.weights.dcp import DcpError, DcpReader, DcpWriter
from megatron_opid.weights.families import Kind, Parameter, parameters
from megatron_opid.weights.hf import WeightsError
from megatron_opid.weights.hf_config import ModelShape
from megatron_opid.weights.shard import fuse, unfuse
from megatron_opid.weights.stored import TargetLayout, pieces, place

TENSORS = "megatron"
# What dist_checkpointing looks at first.
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


class WeightSource(Protocol):
    """Where whole Hugging Face tensors come from: HfWeights, MegatronWeights, or anything that makes them."""

    def get(self, name: str) -> Tensor: ...


def is_megatron(directory: Path) -> bool:
    """Whether `directory` is a checkpoint of ours and not a Hugging Face model."""
    return (directory / TENSORS).is_dir()


class MegatronWeights:
    """The Hugging Face tensors of a checkpoint directory, whatever layout wrote it, read one parameter at a time.

    Raises:
        WeightsError: the checkpoint is not complete or torn; a parameter is missing or mis-shaped for `shape`.
    """

    def __init__(self, directory: Path, shape: ModelShape) -> None:
        try:
            self._reader = DcpReader(directory / TENSORS)
        except DcpError as error:
            raise WeightsError(str(error)) from error
        self._shape = shape
        self._owner = {name: parameter for parameter in parameters(shape) for name in parameter.hf_names}
        self._last: tuple[Parameter, dict[str, Tensor]] | None = None
        faults = self._faults()
        if faults:
            raise WeightsError(f"{directory}: " + "; ".join(faults))

    def get(self, name: str) -> Tensor:
        """The whole Hugging Face tensor, in the checkpoint's dtype; the tensors of one parameter are read together."""
        parameter = self._owner[name]
        if self._last is None or self._last[0] is not parameter:
            self._last = None  # before the next is read
            self._last = (parameter, dict(zip(parameter.hf_names, self._read(parameter), strict=True)))
        return self._last[1][name]

    def _read(self, parameter: Parameter) -> list[Tensor]:
        where = place(parameter, self._shape)
        try:
            stored = self._reader.read(where.key, where.index)
        except DcpError as error:
            raise WeightsError(str(error)) from error
        if parameter.kind is Kind.GATE_UP:
            stored = stored.unflatten(0, (2, -1))
        return unfuse(parameter, stored, self._shape)

    def _faults(self) -> list[str]:
        """Also keys of parameters that this model does not have: another model's checkpoint."""
        places = {where.key: where for where in (place(parameter, self._shape) for parameter in self._owner.values())}
        stored = self._reader.tensors
        faults = [f"tensor {key} is missing" for key in places if key not in stored]
        faults += [
            f"tensor {key} has shape {stored[key].sizes}, config.json asks for {where.sizes}"
            for key, where in places.items()
            if key in stored and stored[key].sizes != where.sizes
        ]
        model_keys = (key for key in stored if key.startswith(("embedding.", "decoder.", "output_layer.")))
        faults += [
            f"tensor {key} does not belong to a {self._shape.family} of this config"
            for key in sorted(model_keys)
            if key not in places
        ]
        return faults


def write_megatron(
    directory: Path,
    weights: WeightSource,
    shape: ModelShape,
    layout: TargetLayout,
    *,
    report: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Write the weights as `directory`/megatron, a file for each rank of `layout`; `report` hears of bytes written.

    One parameter is in memory at a time. `directory` must not hold a checkpoint yet.
    """
    path = directory / TENSORS
    writer = DcpWriter(path)
    try:
        for parameter in parameters(shape):
            report(_write_parameter(writer, parameter, weights, shape, layout))
        writer.finish()
    finally:
        writer.close()
    torch.save({}, path / "common.pt")
    (path / "metadata.json").write_text(json.dumps(FORMAT))


def _write_parameter(
    writer: DcpWriter, parameter: Parameter, weights: WeightSource, shape: ModelShape, layout: TargetLayout
) -> int:
    """Returns: the bytes of the parameter."""
    full = fuse(parameter, [weights.get(name) for name in parameter.hf_names], shape)
    if parameter.kind is Kind.GATE_UP:
        full = full.flatten(0, 1)
    where = place(parameter, shape)
    for piece in pieces(parameter, shape, layout):
        stage, rank = piece.rank
        box = zip(piece.offsets, piece.sizes, strict=True)
        values = full[tuple(slice(offset, offset + size) for offset, size in box)].contiguous()
        lead = (1,) * len(where.index)
        writer.add(
            f"__{stage}_{rank}.distcp",
            where.key,
            where.sizes,
            (*where.index, *piece.offsets),
            values.view(*lead, *values.shape),
        )
    return full.nbytes
