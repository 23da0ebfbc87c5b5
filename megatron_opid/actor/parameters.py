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
from megatron_opid.weights.families import EMBEDDING, EXPERTS, OUTPUT, Parameter, canonical_name, parameters
from megatron_opid.weights.hf_config import ModelShape
from megatron_opid.weights.megatron import WeightSource
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
                tensors[_global_name(shape, chunk, name)] = parameter
        return cls(shape, tensors)

    @torch.no_grad()
    def load(self, weights: WeightSource) -> None:
        """Copy this rank's slices out of the HF tensors, one parameter at a time."""
        specifications = {parameter.name: parameter for parameter in parameters(self.shape)}
        for name, tensor in self.tensors.items():
            source = specifications[EMBEDDING if name == OUTPUT and self.shape.tied_embeddings else name]
            full = fuse(source, [weights.get(hf_name) for hf_name in source.hf_names], self.shape)
            group = _tensor_group(source)
            tensor.copy_(take_shard(source.kind, full, group.rank(), group.size()))

    @torch.no_grad()
    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """All HF tensors of the model, whole, on every rank, in the order of the HF file; a collective of all ranks.

        One parameter at a time is gathered over the tensor-parallel ranks that hold it, sent to the other
        expert-parallel ranks of its stage if it is an expert's, then to the other stages.
        """
        for parameter, stage in self._stages():
            yield from zip(parameter.hf_names, self._gather(parameter, stage), strict=True)

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
        pairs = [(tensor, snapshot[name]) for name, tensor in self.tensors.items()]
        if pairs[0][0].is_cuda:
            _exchange_with_pinned_memory(pairs)
            return
        for tensor, host in pairs:
            current = tensor.clone()
            tensor.copy_(host)
            host.copy_(current)

    def _gather(self, parameter: Parameter, stage: int) -> list[Tensor]:
        pipeline = parallel_state.get_pipeline_model_parallel_group()
        tensors = self._gather_in_stage(parameter) if pipeline.rank() == stage else None
        return self._broadcast(parameter, tensors, pipeline, stage)

    def _gather_in_stage(self, parameter: Parameter) -> list[Tensor]:
        if parameter.expert is None:
            return self._join(parameter)
        group = parallel_state.get_expert_model_parallel_group()
        owner = parameter.expert // _num_local_experts(self.shape)
        tensors = self._join(parameter) if group.rank() == owner else None
        return self._broadcast(parameter, tensors, group, owner)

    def _join(self, parameter: Parameter) -> list[Tensor]:
        group = _tensor_group(parameter)
        shard = self.tensors[parameter.name].detach().contiguous()
        shards = [shard]
        if group.size() > 1:
            shards = [torch.empty_like(shard) for _ in range(group.size())]
            dist.all_gather(shards, shard, group=group)
        return unfuse(parameter, join_shards(parameter.kind, shards), self.shape)

    def _broadcast(
        self, parameter: Parameter, tensors: list[Tensor] | None, group: dist.ProcessGroup, source: int
    ) -> list[Tensor]:
        """The HF tensors of rank `source` of `group`, on all of its ranks."""
        if tensors is None:
            like = next(iter(self.tensors.values()))
            tensors = [like.new_empty(sizes) for sizes in parameter.hf_shapes]
        if group.size() > 1:
            for tensor in tensors:
                dist.broadcast(tensor, group=group, group_src=source)
        return tensors

    def _stages(self) -> list[tuple[Parameter, int]]:
        """Every parameter of the model and the pipeline rank whose stage holds it."""
        specifications = list(parameters(self.shape))
        group = parallel_state.get_pipeline_model_parallel_group()
        device = next(iter(self.tensors.values())).device
        held = {_block(name) for name in self.tensors}
        stages = torch.tensor(
            [group.rank() if _block(parameter.name) in held else -1 for parameter in specifications], device=device
        )
        dist.all_reduce(stages, op=dist.ReduceOp.MAX, group=group)
        return list(zip(specifications, stages.tolist(), strict=True))


def _block(name: str) -> str:
    """What a pipeline stage holds as a whole: `decoder.layers.<number>`, or a parameter outside of the layers."""
    return ".".join(name.split(".")[:3])


def _tensor_group(parameter: Parameter) -> dist.ProcessGroup:
    """The ranks that hold a slice each of this parameter."""
    if parameter.expert is None:
        return parallel_state.get_tensor_model_parallel_group()
    return parallel_state.get_expert_tensor_parallel_group()


def _num_local_experts(shape: ModelShape) -> int:
    return shape.experts.num_experts // parallel_state.get_expert_model_parallel_world_size()


def _global_name(shape: ModelShape, chunk: PolicyModel, name: str) -> str:
    """The parameter's name with the numbers of its layer and its expert in the whole model."""
    name = canonical_name(name)
    if not name.startswith("decoder.layers."):
        return name
    _, _, index, rest = name.split(".", 3)
    if rest.startswith(EXPERTS):
        expert, _, rest = rest.removeprefix(EXPERTS).partition(".")
        first = parallel_state.get_expert_model_parallel_rank() * _num_local_experts(shape)
        rest = f"{EXPERTS}{first + int(expert)}.{rest}"
    return f"decoder.layers.{chunk.decoder.layers[int(index)].layer_number - 1}.{rest}"


def _exchange_with_pinned_memory(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copies out run beside copies in: the two directions have an engine each."""
    incoming, outgoing = torch.cuda.current_stream(), torch.cuda.Stream()
    for tensor, host in pairs:
        current = tensor.clone()
        tensor.copy_(host, non_blocking=True)
        outgoing.wait_stream(incoming)  # `host` is read before it is overwritten
        with torch.cuda.stream(outgoing):
            host.copy_(current, non_blocking=True)
        current.record_stream(outgoing)
    outgoing.synchronize()  # the host may read the snapshot from here on


def _to_host(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor.detach())
