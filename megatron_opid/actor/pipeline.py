"""Running micro-batches through Megatron's pipeline schedule, with or without a backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.utils import get_model_config
from torch import Tensor

from megatron_opid.actor.head import HeadInput, HeadOutput
from megatron_opid.actor.packing import PackedTokens

FORWARD, BACKWARD = 0, 1  # tags of messages
NUM_DIMENSIONS = 3  # of activations: sequence, batch, hidden


@dataclass(frozen=True)
class MicroBatch:
    """Packed tokens and what the head makes of them."""

    tokens: PackedTokens
    request: HeadInput


class StageCommunicator(P2PCommunicator):
    """Sends activations as Megatron's own does, but tells the neighbour their shape from CPU to CPU (gloo).

    Megatron sends shapes from GPU to GPU and waits for the device at each one, so that no stage enqueues work ahead.
    """

    def __init__(self, pp_group: dist.ProcessGroup, config: TransformerConfig) -> None:
        super().__init__(pp_group, config)
        self._sent: list[tuple[dist.Work, Tensor]] = []  # by gloo, which drops a message whose work is let go

    def _communicate_shapes(
        self, tensor_send_next: Tensor | None, tensor_send_prev: Tensor | None, recv_prev: bool, recv_next: bool
    ) -> tuple[list[int], list[int]]:
        """Overrides Megatron-Core 0.16.1's. A tag is a direction: with two stages both neighbours are the same rank.

        Returns: the shapes [sequence, batch, hidden] that come from the previous and the next stage, zeros for none.
        """
        sends = (FORWARD, tensor_send_next, self.next_rank), (BACKWARD, tensor_send_prev, self.prev_rank)
        for tag, tensor, rank in sends:
            if tensor is not None:
                shape = torch.tensor(tensor.size())
                self._sent.append((dist.isend(shape, rank, self.pp_group, tag), shape))
        shapes = []
        for tag, expected, rank in (FORWARD, recv_prev, self.prev_rank), (BACKWARD, recv_next, self.next_rank):
            shape = torch.zeros(NUM_DIMENSIONS, dtype=torch.int64)
            if expected:
                dist.recv(shape, rank, self.pp_group, tag)
            shapes.append(shape.tolist())
        return shapes[0], shapes[1]

    def finish(self) -> None:
        """Wait until the neighbours have taken all shapes: they may be far behind."""
        for work, _ in self._sent:
            work.wait()


def run_micro_batches(
    chunks: Sequence[torch.nn.Module], micro_batches: Sequence[MicroBatch], *, forward_only: bool
) -> list[HeadOutput]:
    """Run all micro-batches in one schedule; unless `forward_only`, gradients are ready (reduced) afterwards.

    Returns: the head's output of each micro-batch in order, detached, on ranks of the last stage; elsewhere empty.
    """
    for chunk in chunks:
        chunk.train(not forward_only)
    iterators = [iter(micro_batches) for _ in chunks]
    groups = ProcessGroupCollection.use_mpu_process_groups(["tp", "cp", "pp", "embd", "pos_embd", "dp_cp"])
    communicator = StageCommunicator(groups.pp, get_model_config(chunks[0]))
    outputs = get_forward_backward_func()(
        forward_step_func=_forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=list(chunks) if len(chunks) > 1 else chunks[0],
        num_microbatches=len(micro_batches),
        # Ignored where lengths vary (every pipelined run); without a pipeline nothing is sent.
        seq_length=1,
        micro_batch_size=1,
        forward_only=forward_only,
        p2p_communicator=communicator,
        pg_collection=groups,
    )
    communicator.finish()
    return outputs


def _forward_step(iterator: Iterator[MicroBatch], chunk: torch.nn.Module) -> tuple[Tensor, partial]:
    micro_batch = next(iterator)
    output = chunk(
        micro_batch.tokens.input_ids,
        None,
        None,
        labels=micro_batch.request,
        packed_seq_params=micro_batch.tokens.sequences,
    )
    if isinstance(output, HeadOutput):
        return output.tensor, partial(_report, output)
    return output, partial(_report, None)


def _report(output: HeadOutput, tensor: Tensor) -> tuple[Tensor, Tensor, HeadOutput]:
    """Megatron's loss function: what is differentiated; number of tokens (unused: losses are sums); what is kept."""
    detached = HeadOutput(output.tensor.detach(), output.statistics)
    return tensor, torch.zeros((), dtype=torch.int, device=tensor.device), detached
