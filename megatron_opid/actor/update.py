"""One optimizer update: a loss over packed samples through the pipeline, gradients, clipping, step, statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_opid.actor.head import HeadInput
from megatron_opid.actor.objectives import RecordedPolicyObjective, join_terms, policy_terms
from megatron_opid.actor.optimizer import Optimizer
from megatron_opid.actor.packing import Packer, pack
from megatron_opid.actor.parallel import is_last_stage, sum_over_replicas
from megatron_opid.actor.pipeline import MicroBatch, run_micro_batches
from megatron_opid.actor.samples import PolicySample, TokenSequence
from megatron_opid.algorithm.losses import LossCoefficients
from megatron_opid.kernels.linear_logprob import CrossEntropy, TokenLoss


def policy_update(
    chunks: Sequence[torch.nn.Module],
    optimizer: Optimizer,
    packer: Packer,
    samples: Sequence[PolicySample],
    coefficients: LossCoefficients,
    aggregation: str,
) -> dict[str, float]:
    """One update of the policy loss over all samples. Statistics are weighted means over the whole update's tokens."""
    terms = policy_terms(samples, aggregation)

    def objective(indices: Sequence[int]) -> RecordedPolicyObjective:
        joined = join_terms(terms, indices, packer.device)
        return RecordedPolicyObjective(joined, coefficients, torch.empty_like(joined.old_logprobs))

    sequences = [sample.sequence for sample in samples]
    statistics, objectives = _accumulate_gradients(chunks, optimizer, packer, sequences, objective, with_entropy=True)
    statistics["max_ratio_deviation"] = _max_ratio_deviation(objectives, packer.device)
    return statistics | _step(optimizer)


def sft_update(
    chunks: Sequence[torch.nn.Module], optimizer: Optimizer, packer: Packer, sequences: Sequence[TokenSequence]
) -> dict[str, float]:
    """One update of the mean next-token cross-entropy over all response tokens, through the same head."""
    num_tokens = sum(len(sequence.response_ids) for sequence in sequences)

    def objective(indices: Sequence[int]) -> CrossEntropy:
        rows = sum(len(sequences[index].response_ids) for index in indices)
        return CrossEntropy(torch.full((rows,), 1 / num_tokens, device=packer.device))

    statistics, _ = _accumulate_gradients(chunks, optimizer, packer, sequences, objective, with_entropy=False)
    return statistics | _step(optimizer)


def _accumulate_gradients(
    chunks: Sequence[torch.nn.Module],
    optimizer: Optimizer,
    packer: Packer,
    sequences: Sequence[TokenSequence],
    objective: Callable[[Sequence[int]], TokenLoss],
    *,
    with_entropy: bool,
) -> tuple[dict[str, float], list[TokenLoss]]:
    """Forward and backward of this rank's share: loss and statistics summed over ranks, and this rank's objectives.

    Raises: FloatingPointError on every rank if the loss is not finite.
    """
    micro_batches = []
    for indices in packer.own_part(sequences):
        tokens = pack([sequences[index] for index in indices], alignment=packer.alignment, device=packer.device)
        request = HeadInput(tokens.rows, tokens.targets, objective(indices), with_entropy)
        micro_batches.append(MicroBatch(tokens, request))
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.megatron.zero_grad()
    outputs = run_micro_batches(chunks, micro_batches, forward_only=False)
    sums = [{"loss": output.tensor, **output.statistics} for output in outputs]
    statistics = _sum_statistics(sums, _statistic_names(objective(()), packer.device), packer.device)
    if not math.isfinite(statistics["loss"]):
        raise FloatingPointError(f"the loss is {statistics['loss']}; the weights are unchanged ({statistics})")
    return statistics, [micro_batch.request.loss for micro_batch in micro_batches]


def _step(optimizer: Optimizer) -> dict[str, float]:
    grad_norm, learning_rate = optimizer.step()
    return {"grad_norm": grad_norm, "learning_rate": learning_rate}


def _statistic_names(objective: TokenLoss, device: torch.device) -> list[str]:
    """The names of an objective's statistics, known on every rank: stages without a head see none of them computed."""
    nothing = torch.zeros(0, device=device)
    return ["loss", *objective(nothing, nothing, slice(0, 0)).statistics]


def _sum_statistics(sums: Sequence[dict[str, Tensor]], names: Sequence[str], device: torch.device) -> dict[str, float]:
    """Sums over this rank's micro-batches (none off the last stage) and over replicas."""
    totals = torch.zeros(len(names), dtype=torch.float64, device=device)
    for statistics in sums:
        totals += torch.stack([statistics[name].double() for name in names])
    return dict(zip(names, sum_over_replicas(totals).tolist(), strict=True))


def _max_ratio_deviation(objectives: Sequence[RecordedPolicyObjective], device: torch.device) -> float:
    """Over all tokens of all ranks; only the last stage has log-probs."""
    deviation = torch.zeros((), device=device)
    if is_last_stage():
        deviation = torch.stack([objective.max_ratio_deviation() for objective in objectives]).max()
    dist.all_reduce(deviation, op=dist.ReduceOp.MAX)
    return float(deviation)
