"""Log-probs of many sequences in one pass without gradients, given whole to every rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megatron_opid.actor.head import HeadInput
from megatron_opid.actor.packing import Packer, pack
from megatron_opid.actor.parallel import sum_over_replicas
from megatron_opid.actor.pipeline import MicroBatch, run_micro_batches
from megatron_opid.actor.samples import TokenSequence


def score_batches(
    chunks: Sequence[torch.nn.Module], packer: Packer, batches: Sequence[Sequence[TokenSequence]]
) -> list[list[np.ndarray]]:
    """Log-probs float32 [num_response] of every sequence of every batch; batches are packed apart and run in one pass.

    Every rank gives the same batches and gets all results.
    """
    micro_batches, members = [], []
    for number, batch in enumerate(batches):
        for indices in packer.own_part(batch):
            tokens = pack([batch[index] for index in indices], alignment=packer.alignment, device=packer.device)
            micro_batches.append(MicroBatch(tokens, HeadInput(tokens.rows, tokens.targets)))
            members.append([(number, index) for index in indices])
    with torch.no_grad():
        outputs = run_micro_batches(chunks, micro_batches, forward_only=True)

    lengths = [[len(sequence.response_ids) for sequence in batch] for batch in batches]
    total = sum(map(sum, lengths))
    flat = torch.zeros(total, dtype=torch.float32, device=packer.device)
    starts = _starts(lengths)
    for output, keys in zip(outputs, members, strict=False):  # no outputs off the last stage
        sizes = [lengths[number][index] for number, index in keys]
        for (number, index), logprobs in zip(keys, output.tensor.split(sizes), strict=True):
            flat[starts[number][index] : starts[number][index] + len(logprobs)] = logprobs
    gathered = sum_over_replicas(flat).cpu().numpy()
    return [
        [gathered[start : start + length] for start, length in zip(starts[number], lengths[number], strict=True)]
        for number in range(len(batches))
    ]


def _starts(lengths: Sequence[Sequence[int]]) -> list[list[int]]:
    """Where each sequence's tokens begin in the flat result."""
    starts, position = [], 0
    for batch in lengths:
        starts.append([])
        for length in batch:
            starts[-1].append(position)
            position += length
    return starts
