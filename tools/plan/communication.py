"""Bytes that one rank sends, and how long that takes: tensor, context, pipeline, expert and data parallelism."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_opid.config import ActorConfig
from tools.plan.constants import GPUS_PER_NODE, constant
from tools.plan.layout import Layout
from tools.plan.memory import GRADIENT_BYTES, WEIGHT_BYTES, StageParameters
from tools.plan.shape import Sizes


@dataclass(frozen=True)
class Traffic:
    """What one rank sends in some part of the step, and the seconds of it."""

    bytes: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes + other.bytes, self.seconds + other.seconds)

    def times(self, factor: float) -> Traffic:
        return Traffic(factor * self.bytes, factor * self.seconds)


def ring(whole_bytes: float, group_size: int, bytes_per_s: float) -> Traffic:
    """All-gather or reduce-scatter of `whole_bytes` over a ring: each rank sends (n - 1)/n of them."""
    if group_size == 1:
        return Traffic()
    sent = whole_bytes * (group_size - 1) / group_size
    return Traffic(sent, sent / bytes_per_s + constant("collective_latency_s"))


def tensor_traffic(sizes: Sizes, layout: Layout, tokens: float, *, backward: bool) -> Traffic:
    """Of one layer. Forward: two all-reduces of [tokens, H] in bf16, as four halves with sequence parallelism.

    Backward: the same, and with sequence parallelism two more all-gathers, of the weight gradients' inputs.
    """
    whole = 2 * tokens / layout.context * sizes.shape.hidden_size
    halves = 4 + (2 if backward and layout.sequence_parallel else 0)
    return ring(whole, layout.tensor, layout.bandwidth(layout.tensor, 1)).times(halves)


def context_traffic(sizes: Sizes, layout: Layout, tokens: float, *, backward: bool) -> Traffic:
    """Of one layer: keys and values once around the ring, their gradients as well in the backward."""
    whole = 2 * tokens * 2 * sizes.key / layout.tensor
    one = ring(whole, layout.context, layout.bandwidth(layout.context, layout.tensor))
    return one.times(2 if backward else 1)


def expert_traffic(sizes: Sizes, layout: Layout, tokens: float) -> Traffic:
    """Of one layer, each way through it: dispatch and combine, all-to-all over the expert-parallel ranks."""
    experts = sizes.shape.experts
    if experts is None or layout.expert == 1:
        return Traffic()
    rank_tokens = tokens / layout.context / (layout.tensor if layout.sequence_parallel else 1)
    sent = 2 * rank_tokens * experts.num_chosen * sizes.shape.hidden_size * (layout.expert - 1) / layout.expert
    # All-to-all crosses nodes for all pairs in different ones; each rank has one network card for them.
    in_node = min(layout.expert, GPUS_PER_NODE)
    across = sent * (1 - in_node / layout.expert)
    seconds = (sent - across) / constant("nvlink_bytes_per_s") + across / constant("nic_bytes_per_s")
    return Traffic(sent, seconds + constant("collective_latency_s")).times(2)


def pipeline_traffic(sizes: Sizes, layout: Layout, tokens: float) -> Traffic:
    """Of one micro-batch, one way: [tokens, H] in bf16 to the next stage, once for each virtual stage of a rank."""
    if layout.pipeline == 1:
        return Traffic()
    split = layout.context * (layout.tensor if layout.sequence_parallel else 1)
    sent = 2 * tokens * sizes.shape.hidden_size / split * layout.virtual_pipeline
    crosses_nodes = layout.num_gpus > GPUS_PER_NODE
    speed = constant("nic_bytes_per_s") if crosses_nodes else constant("nvlink_bytes_per_s")
    return Traffic(sent, sent / speed + layout.virtual_pipeline * constant("collective_latency_s"))


def gradient_traffic(held: StageParameters, layout: Layout, actor: ActorConfig) -> Traffic:
    """Of one update: gradients reduce-scattered in fp32, weights gathered; without sharding all-reduced instead."""
    gather_bytes = WEIGHT_BYTES[actor.precision] if actor.distributed_optimizer else GRADIENT_BYTES
    total = Traffic()
    groups = (
        (held.dense, layout.gradient_ranks, layout.tensor),
        (held.experts, layout.expert_gradient_ranks, layout.expert * layout.expert_tensor),
    )
    for elements, ranks, stride in groups:
        if elements:
            speed = layout.bandwidth(ranks, stride)
            total += ring(GRADIENT_BYTES * elements, ranks, speed) + ring(gather_bytes * elements, ranks, speed)
    return total


def export_traffic(sizes: Sizes, layout: Layout, num_tensors: int) -> Traffic:
    """The whole model streamed to every rank: gathered over tensor- and expert-parallel ranks, sent to all stages."""
    whole = 2 * sizes.parameters
    host = Traffic(0.0, num_tensors * constant("sync_tensor_s"))
    gathered = ring(whole, layout.tensor, layout.bandwidth(layout.tensor, 1))
    if sizes.is_mixture:
        gathered += ring(whole, layout.expert, layout.bandwidth(layout.expert, 1))
    stages = Traffic()
    if layout.pipeline > 1:
        speed = layout.bandwidth(layout.pipeline, layout.num_gpus // layout.pipeline)
        stages = Traffic(whole, whole / speed)
    return host + gathered + stages
