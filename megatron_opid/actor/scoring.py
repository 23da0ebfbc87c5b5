"""Log-probs of many sequences in one pass without gradients, given whole to every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from megatron_opid.actor.head import HeadInput
from megatron_opid.actor.packing import Packer
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
            tokens = packer.pack([sequences[index] for index in indices])
            micro_batches.append(MicroBatch(tokens, HeadInput(tokens.rows, tokens.targets)))
            members.append(indices)
    with torch.no_grad():
        outputs = run_micro_batches(chunks, micro_batches, forward_only=True)
    lengths = {index: len(sequences[index].response_ids) for batch in batches for index in batch}
    responses = [micro_batch.tokens.responses for micro_batch in micro_batches]
    return gather_logprobs(lengths, members, responses, [output.tensor for output in outputs], packer.device)


def gather_logprobs(
    lengths: Mapping[int, int],
    members: Sequence[Sequence[int]],
    responses: Sequence[Tensor],
    logprobs: Sequence[Tensor],
    device: torch.device,
) -> dict[int, np.ndarray]:
    """Every sequence's log-probs float32 [num_response], on every rank, from those of this rank's micro-batches.

    Args: lengths: number of response tokens by sequence; members: the sequences of each micro-batch; responses: which
    of its response tokens this rank holds (PackedTokens.responses); logprobs: theirs, empty off the last stage.
    """
    ends = np.cumsum([0, *lengths.values()])
    places = {index: np.arange(*bounds) for index, *bounds in zip(lengths, ends, ends[1:], strict=False)}
    flat = torch.zeros(int(ends[-1]), device=device)
    for indices, chosen, values in zip(members, responses, logprobs, strict=False):  # none off the last stage
        if indices:
            place = torch.as_tensor(np.concatenate([places[index] for index in indices]), device=device)
            flat[place[chosen]] = values
    gathered = sum_over_replicas(flat).cpu().numpy()
    return {index: gathered[place[0] : place[-1] + 1] for index, place in places.items()}
