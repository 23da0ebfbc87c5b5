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
    chunks: Sequence[torch.nn.Module],
    packer: Packer,
    sequences: Sequence[TokenSequence],
    batches: Sequence[Sequence[int]],
) -> dict[int, np.ndarray]:
    """Log-probs float32 [num_response] of the sequences that `batches` name by index, in one pass.

    Each batch is packed for itself. Every rank gives the same arguments and gets all results.
    """
    micro_batches, members = [], []
    for batch in batches:
        for places in packer.own_part([sequences[index] for index in batch]):
            indices = [batch[place] for place in places]
            tokens = pack([sequences[index] for index in indices], alignment=packer.alignment, device=packer.device)
            micro_batches.append(MicroBatch(tokens, HeadInput(tokens.rows, tokens.targets)))
            members.append(indices)
    with torch.no_grad():
        outputs = run_micro_batches(chunks, micro_batches, forward_only=True)

    slices = _slices(sequences, [index for batch in batches for index in batch])
    flat = torch.zeros(sum(place.stop - place.start for place in slices.values()), device=packer.device)
    for output, indices in zip(outputs, members, strict=False):  # no outputs off the last stage
        lengths = [len(sequences[index].response_ids) for index in indices]
        for index, logprobs in zip(indices, output.tensor.split(lengths), strict=True):
            flat[slices[index]] = logprobs
    gathered = sum_over_replicas(flat).cpu().numpy()
    return {index: gathered[place] for index, place in slices.items()}


def _slices(sequences: Sequence[TokenSequence], indices: Sequence[int]) -> dict[int, slice]:
    """Where each sequence's response tokens lie in the flat result."""
    ends = np.cumsum([0, *(len(sequences[index].response_ids) for index in indices)]).tolist()
    return {index: slice(*bounds) for index, *bounds in zip(indices, ends, ends[1:], strict=False)}
