"""The Hugging Face tensors of an FSDP checkpoint: a torch.distributed.checkpoint directory, or a file per rank."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from megatron_opid.weights.dcp import METADATA, DcpError, DcpReader
from megatron_opid.weights.families import parameters
from megatron_opid.weights.hf import WeightsError
from megatron_opid.weights.hf_config import ModelShape
from tools.rank_files import RankFiles, has_rank_files, same_bits

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WRAPPERS = re.compile(r"\b(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
# transformers 5 holds a layer's experts in two tensors, whose names alternate in the order of the Hugging Face file.
MAX_KEPT_TENSORS = 2


@dataclass(frozen=True)
class _Place:
    """A Hugging Face tensor is the stored tensor `key` of `sizes`, or of its slice `expert` some rows."""

    key: str
    sizes: tuple[int, ...]
    expert: int | None = None
    first_row: int = 0
    end_row: int | None = None


class FsdpWeights:
    """Whole tensors by their Hugging Face names; a WeightSource.

    `prefix` stands before the model's names in the checkpoint (`model.` if {"model": state_dict} was saved); it is
    found where it is unique. Optimizer and other state is left alone.
    Raises: WeightsError naming every tensor that is missing, mis-shaped or not the model's.
    """

    def __init__(self, directory: Path, shape: ModelShape, prefix: str | None = None) -> None:
        self._reader = _open(directory)
        stored = {WRAPPERS.sub("", name): name for name in self._reader.tensors}
        if prefix is None:
            prefix = _find_prefix(directory, stored)
        own = (prefix + "model.", prefix + "lm_head.")
        self._stored = {name.removeprefix(prefix): key for name, key in stored.items() if name.startswith(own)}
        self._places = {
            name: _place(name, sizes, self._stored, shape)
            for parameter in parameters(shape)
            for name, sizes in zip(parameter.hf_names, parameter.hf_shapes, strict=True)
        }
        self._kept: dict[str, Tensor] = {}
        faults = self._faults(shape)
        if not faults and shape.tied_embeddings and HEAD in self._stored:
            faults = self._tie_faults()
        if faults:
            raise WeightsError(f"{directory}: " + "; ".join(faults))

    def get(self, name: str) -> Tensor:
        """The whole Hugging Face tensor, in the checkpoint's dtype."""
        place = self._places[name]
        tensor = self._read(place.key)
        if place.expert is not None:
            tensor = tensor[place.expert]
        return tensor[place.first_row : place.end_row]

    def _read(self, key: str) -> Tensor:
        if key not in self._kept:
            for older in list(self._kept)[: 1 - MAX_KEPT_TENSORS]:
                del self._kept[older]
            try:
                self._kept[key] = self._reader.read(self._stored[key])
            except DcpError as error:
                raise WeightsError(str(error)) from error
        return self._kept[key]

    def _faults(self, shape: ModelShape) -> list[str]:
        wanted = {place.key: place.sizes for place in self._places.values()}
        faults = [f"tensor {key} is missing" for key in wanted if key not in self._stored]
        for key, sizes in wanted.items():
            found = self._reader.tensors[self._stored[key]].sizes if key in self._stored else sizes
            if found != sizes:
                faults.append(f"tensor {key} has shape {found}, config.json asks for {sizes}")
        ignored = {HEAD} if shape.tied_embeddings else set()
        unexpected = sorted(set(self._stored) - set(wanted) - ignored)
        return faults + [f"tensor {key} does not belong to a {shape.family} of this config" for key in unexpected]

    def _tie_faults(self) -> list[str]:
        embedding, head = self._read(EMBEDDING), self._read(HEAD)
        if embedding.shape == head.shape and embedding.dtype == head.dtype and same_bits(embedding, head):
            return []
        return [f"config.json says tie_word_embeddings, but {HEAD} differs from {EMBEDDING}"]


def _open(directory: Path) -> DcpReader | RankFiles:
    if has_rank_files(directory):
        return RankFiles(directory)
    if not (directory / METADATA).is_file():
        raise WeightsError(
            f"{directory} holds neither {METADATA} (torch.distributed.checkpoint) nor model_world_size_N_rank_R.pt"
        )
    try:
        return DcpReader(directory)
    except DcpError as error:
        raise WeightsError(str(error)) from error


def _find_prefix(directory: Path, stored: dict[str, str]) -> str:
    found = sorted(name.removesuffix(EMBEDDING) for name in stored if name.endswith(EMBEDDING))
    if len(found) == 1:
        return found[0]
    if not found:
        raise WeightsError(f"{directory}: no tensor is named {EMBEDDING}, with or without something before it")
    raise WeightsError(f"{directory} holds several models, with the prefixes {found}; choose one with --prefix")


def _place(name: str, sizes: tuple[int, ...], stored: dict[str, str], shape: ModelShape) -> _Place:
    expert = EXPERT.fullmatch(name)
    if expert is None or name in stored:
        return _Place(name, sizes)
    layer, number, part = expert.groups()
    rows, columns = sizes
    if part == "down":
        return _Place(f"{layer}.down_proj", (shape.experts.num_experts, rows, columns), int(number))
    first = 0 if part == "gate" else rows
    sizes = (shape.experts.num_experts, 2 * rows, columns)
    return _Place(f"{layer}.gate_up_proj", sizes, int(number), first, first + rows)
