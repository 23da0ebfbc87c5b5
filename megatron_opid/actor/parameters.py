"""This rank's parameters under global names: filled from and streamed as Hugging Face tensors, swapped as a set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_opid.actor.model import PolicyModel
from megatron_opid.weights.families import EMBEDDING, OUTPUT, Parameter, canonical_name, parameters
from megatron_opid.weights.hf import HfWeights
from megatron_opid.weights.hf_config import ModelShape
from megatron_opid.weights.shard import fuse, join_shards, take_shard, unfuse


@dataclass(frozen=True)
class RankParameters:
    """This rank's parameters by canonical name with global layer numbers, and the names of the HF tensors behind each.

    With a tied head on a pipeline, the last stage's copy of the embedding stands under `output_layer.weight`.
    """

    shape: ModelShape
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, shape: ModelShape, chunks: Sequence[PolicyModel]) -> RankParameters:
        tensors = {}
        for chunk in chunks:
            for name, parameter in chunk.named_parameters():
                tensors[_global_name(chunk, name)] = parameter
        return cls(shape, tensors)

    @torch.no_grad()
    def load(self, weights: HfWeights) -> None:
        """Copy this rank's slices out of the HF tensors, one parameter at a time."""
        rank = parallel_state.get_tensor_model_parallel_rank()
        size = parallel_state.get_tensor_model_parallel_world_size()
        specifications = {parameter.name: parameter for parameter in parameters(self.shape)}
        for name, tensor in self.tensors.items():
            source = specifications[EMBEDDING if name == OUTPUT and self.shape.tied_embeddings else name]
            full = fuse(source, [weights.get(hf_name) for hf_name in source.hf_names], self.shape)
            tensor.copy_(take_shard(source.kind, full, rank, size))

    @torch.no_grad()
    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """All HF tensors of the model, whole, on every rank, in the order of the HF file; a collective of all ranks.

        One parameter at a time is gathered over the tensor-parallel ranks of its stage and sent to the other stages.
        """
        for parameter, owner in self._owners():
            yield from zip(parameter.hf_names, self._gather(parameter, owner), strict=True)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of every parameter in host memory (pinned where a GPU reads it)."""
        return {name: _to_host(tensor) for name, tensor in self.tensors.items()}

    @contextmanager
    def exchanged(self, snapshot: dict[str, Tensor]) -> Iterator[None]:
        """Inside, the parameters hold the snapshot's values and the snapshot theirs: no second copy is kept."""
        self._exchange(snapshot)
        try:
            yield
        finally:
            self._exchange(snapshot)

    @torch.no_grad()
    def _exchange(self, snapshot: dict[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            current = tensor.clone()
            tensor.copy_(snapshot[name])
            snapshot[name].copy_(current)

    def _gather(self, parameter: Parameter, owner: int) -> list[Tensor]:
        group = parallel_state.get_pipeline_model_parallel_group()
        if group.rank() == owner:
            tensors = unfuse(parameter, self._join(parameter), self.shape)
        else:
            like = next(iter(self.tensors.values()))
            tensors = [like.new_empty(sizes) for sizes in parameter.hf_shapes]
        if group.size() > 1:
            for tensor in tensors:
                dist.broadcast(tensor, group=group, group_src=owner)
        return tensors

    def _join(self, parameter: Parameter) -> Tensor:
        group = parallel_state.get_tensor_model_parallel_group()
        shard = self.tensors[parameter.name].detach().contiguous()
        shards = [torch.empty_like(shard) for _ in range(group.size())]
        dist.all_gather(shards, shard, group=group)
        return join_shards(parameter.kind, shards)

    def _owners(self) -> list[tuple[Parameter, int]]:
        """Every parameter of the model and the pipeline rank that holds it."""
        specifications = list(parameters(self.shape))
        group = parallel_state.get_pipeline_model_parallel_group()
        device = next(iter(self.tensors.values())).device
        held = [group.rank() if parameter.name in self.tensors else -1 for parameter in specifications]
        owners = torch.tensor(held, device=device)
        dist.all_reduce(owners, op=dist.ReduceOp.MAX, group=group)
        return list(zip(specifications, owners.tolist(), strict=True))


def _global_name(chunk: PolicyModel, name: str) -> str:
    """`decoder.layers.<index in the chunk>.…` with the layer's number in the whole model."""
    name = canonical_name(name)
    if not name.startswith("decoder.layers."):
        return name
    _, _, index, rest = name.split(".", 3)
    return f"decoder.layers.{chunk.decoder.layers[int(index)].layer_number - 1}.{rest}"


def _to_host(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor.detach())
