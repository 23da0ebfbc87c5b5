"""Running micro-batches through Megatron's pipeline schedule, with or without a backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_opid.actor.head import HeadInput, HeadOutput
from megatron_opid.actor.packing import PackedTokens


@dataclass(frozen=True)
class MicroBatch:
    """Packed tokens and what the head makes of them."""

    tokens: PackedTokens
    request: HeadInput


def run_micro_batches(
    chunks: Sequence[torch.nn.Module], micro_batches: Sequence[MicroBatch], *, forward_only: bool
) -> list[HeadOutput]:
    """Run all micro-batches in one schedule; unless `forward_only`, gradients are ready (reduced) afterwards.

    Returns: the head's output of each micro-batch in order, detached, on ranks of the last stage; elsewhere empty.
    """
    for chunk in chunks:
        chunk.train(not forward_only)
    iterators = [iter(micro_batches) for _ in chunks]
    return get_forward_backward_func()(
        forward_step_func=_forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=list(chunks) if len(chunks) > 1 else chunks[0],
        num_microbatches=len(micro_batches),
        # Ignored where lengths vary (every pipelined run); without a pipeline nothing is sent.
        seq_length=1,
        micro_batch_size=1,
        forward_only=forward_only,
    )


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
