"""One optimizer update: a loss over packed samples through the pipeline, gradients, clipping, step, statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_opid.actor.head import HeadInput
from megatron_opid.actor.objectives import (
    OnPolicyObjective,
    OnPolicyTerms,
    RecordedPolicyObjective,
    join_terms,
    sample_terms,
)
from megatron_opid.actor.optimizer import Optimizer
from megatron_opid.actor.packing import Packer
from megatron_opid.actor.parallel import is_last_stage, sum_over_replicas
from megatron_opid.actor.pipeline import MicroBatch, run_micro_batches
from megatron_opid.actor.samples import OnPolicySample, PolicySample, TokenSequence
from megatron_opid.actor.scoring import gather_logprobs
from megatron_opid.algorithm.losses import LossCoefficients
from megatron_opid.algorithm.old_policy import OldPolicyRules
from megatron_opid.kernels.linear_logprob import CrossEntropy, TokenLoss


@dataclass(frozen=True)
class PolicyUpdate:
    """What one update was: the log-probs, float32 [num_response] per sample, are those before it."""

    statistics: dict[str, float]
    logprobs: list[np.ndarray]


def policy_update(
    chunks: Sequence[torch.nn.Module],
    optimizer: Optimizer,
    packer: Packer,
    samples: Sequence[PolicySample] | Sequence[OnPolicySample],
    coefficients: LossCoefficients,
    rules: OldPolicyRules,
    aggregation: str,
) -> PolicyUpdate:
    """One update of the policy loss over all samples. Statistics are weighted means over the whole update's tokens.

    `rules` make the terms of OnPolicySamples; those of PolicySamples are made already.
    """
    terms = sample_terms(samples, aggregation)

    def objective(indices: Sequence[int], responses: Tensor) -> RecordedPolicyObjective | OnPolicyObjective:
        joined = join_terms(terms, indices, responses)
        logprobs = torch.empty_like(joined.weights)
        if isinstance(joined, OnPolicyTerms):
            return OnPolicyObjective(joined, coefficients, rules, logprobs)
        return RecordedPolicyObjective(joined, coefficients, logprobs)

    sequences = [sample.sequence for sample in samples]
    statistics, micro_batches, members = _accumulate_gradients(
        chunks, optimizer, packer, sequences, objective, with_entropy=True
    )
    objectives = [micro_batch.request.loss for micro_batch in micro_batches]
    statistics["max_ratio_deviation"] = _max_ratio_deviation(objectives, packer.device)
    logprobs = gather_logprobs(
        {index: len(sequence.response_ids) for index, sequence in enumerate(sequences)},
        members,
        [micro_batch.tokens.responses for micro_batch in micro_batches],
        [objective.logprobs for objective in objectives] if is_last_stage() else [],
        packer.device,
    )
    return PolicyUpdate(statistics | _step(optimizer), list(logprobs.values()))


def sft_update(
    chunks: Sequence[torch.nn.Module], optimizer: Optimizer, packer: Packer, sequences: Sequence[TokenSequence]
) -> dict[str, float]:
    """One update of the mean next-token cross-entropy over all response tokens, through the same head."""
    num_tokens = sum(len(sequence.response_ids) for sequence in sequences)

    def objective(indices: Sequence[int], responses: Tensor) -> CrossEntropy:
        return CrossEntropy(torch.full((len(responses),), 1 / num_tokens, device=packer.device))

    statistics, _, _ = _accumulate_gradients(chunks, optimizer, packer, sequences, objective, with_entropy=False)
    return statistics | _step(optimizer)


def _accumulate_gradients(
    chunks: Sequence[torch.nn.Module],
    optimizer: Optimizer,
    packer: Packer,
    sequences: Sequence[TokenSequence],
    objective: Callable[[Sequence[int], Tensor], TokenLoss],
    *,
    with_entropy: bool,
) -> tuple[dict[str, float], list[MicroBatch], list[tuple[int, ...]]]:
    """Forward and backward of this rank's share: loss and statistics summed over ranks, this rank's micro-batches and
    the indices of their sequences. `objective` is made of those indices and of PackedTokens.responses.

    Raises: FloatingPointError on every rank if the loss is not finite.
    """
    micro_batches, members = [], packer.own_part(sequences)
    for indices in members:
        tokens = packer.pack([sequences[index] for index in indices])
        request = HeadInput(tokens.rows, tokens.targets, objective(indices, tokens.responses), with_entropy)
        micro_batches.append(MicroBatch(tokens, request))
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.megatron.zero_grad()
    outputs = run_micro_batches(chunks, micro_batches, forward_only=False)
    sums = [{"loss": output.tensor, **output.statistics} for output in outputs]
    nothing = objective((), torch.zeros(0, dtype=torch.int64, device=packer.device))
    statistics = _sum_statistics(sums, _statistic_names(nothing, packer.device), packer.device)
    if not math.isfinite(statistics["loss"]):
        raise FloatingPointError(f"the loss is {statistics['loss']}; the weights are unchanged ({statistics})")
    return statistics, micro_batches, members


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


def _max_ratio_deviation(
    objectives: Sequence[RecordedPolicyObjective | OnPolicyObjective], device: torch.device
) -> float:
    """Over all tokens of all ranks; only the last stage has log-probs."""
    deviation = torch.zeros((), device=device)
    if is_last_stage():
        deviation = torch.stack([objective.max_ratio_deviation() for objective in objectives]).max()
    dist.all_reduce(deviation, op=dist.ReduceOp.MAX)
    return float(deviation)
