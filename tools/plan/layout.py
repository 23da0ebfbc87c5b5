"""Which ranks work together, and how fast they can talk. Megatron's order: TP, CP, EP and DP inside, PP outermost."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_opid.config import ActorConfig
from tools.plan.constants import GPUS_PER_NODE, constant


@dataclass(frozen=True)
class Layout:
    """Sizes of the process groups of `num_gpus` ranks."""

    num_gpus: int
    tensor: int
    pipeline: int
    virtual_pipeline: int
    context: int
    expert: int
    expert_tensor: int
    sequence_parallel: bool

    @classmethod
    def of(cls, actor: ActorConfig, num_gpus: int) -> Layout:
        return cls(
            num_gpus,
            actor.tensor_parallel,
            actor.pipeline_parallel,
            actor.virtual_pipeline_parallel,
            actor.context_parallel,
            actor.expert_parallel,
            actor.expert_tensor_parallel,
            actor.sequence_parallel,
        )

    @property
    def data(self) -> int:
        """Replicas of the model that get different micro-batches."""
        return self.num_gpus // (self.tensor * self.context * self.pipeline)

    @property
    def gradient_ranks(self) -> int:
        """Ranks that hold the same dense weights: what the optimizer is sharded over."""
        return self.data * self.context

    @property
    def expert_gradient_ranks(self) -> int:
        """Ranks that hold the same experts."""
        return self.num_gpus // (self.expert * self.expert_tensor * self.pipeline)

    @property
    def num_nodes(self) -> int:
        return -(-self.num_gpus // GPUS_PER_NODE)

    def bandwidth(self, group_size: int, stride: int) -> float:
        """Bytes/s that a rank can send in a collective of `group_size` ranks that lie `stride` apart.

        Inside a node NVLink. Across nodes a ring enters and leaves each node once for all of its members, over the
        network cards of the members: members per node x one card, at most NVLink.
        """
        nvlink, nic = constant("nvlink_bytes_per_s"), constant("nic_bytes_per_s")
        if group_size * stride <= GPUS_PER_NODE:
            return nvlink
        members_per_node = max(1, GPUS_PER_NODE // stride)
        return min(nvlink, members_per_node * nic)
