"""One optimizer update: a loss over packed samples through the pipeline, gradients, clipping, step, statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_opid.actor.head import HeadInput
from megatron_opid.actor.optimizer import Optimizer
from megatron_opid.actor.packing import Packer, pack
from megatron_opid.actor.parallel import is_last_stage, sum_over_replicas
from megatron_opid.actor.pipeline import MicroBatch, run_micro_batches
from megatron_opid.actor.samples import PolicySample, TokenSequence
from megatron_opid.algorithm.losses import (
    LossCoefficients,
    PolicyLoss,
    PolicyTerms,
    aggregation_weights,
    policy_loss,
)

Objective = Callable[[Tensor, Tensor | None, slice], PolicyLoss]


@dataclass(frozen=True)
class PolicyObjective:
    """The policy loss of one micro-batch, called by the head with chunks of its rows; keeps the new log-probs [T]."""

    terms: PolicyTerms
    coefficients: LossCoefficients
    logprobs: Tensor

    def __call__(self, logprobs: Tensor, entropy: Tensor | None, rows: slice) -> PolicyLoss:
        self.logprobs[rows] = logprobs.detach()
        if entropy is not None and not self.coefficients.entropy:
            entropy = entropy.detach()
        terms = {name: None if value is None else value[rows] for name, value in vars(self.terms).items()}
        return policy_loss(logprobs, entropy, PolicyTerms(**terms), self.coefficients)

    def max_ratio_deviation(self) -> Tensor:
        """max_t |π_new/π_old − 1|; 0 for no tokens."""
        deviation = (self.logprobs - self.terms.old_logprobs).expm1().abs()
        return deviation.max() if len(deviation) else deviation.new_zeros(())


@dataclass(frozen=True)
class CrossEntropy:
    """−Σ_t w_t · log p_t over one micro-batch; weights float32 [T]."""

    weights: Tensor

    def __call__(self, logprobs: Tensor, entropy: Tensor | None, rows: slice) -> PolicyLoss:
        total = -(self.weights[rows] * logprobs).sum()
        return PolicyLoss(total, {"cross_entropy": total.detach()})


def policy_terms(samples: Sequence[PolicySample], aggregation: str) -> list[PolicyTerms]:
    """Each sample's terms (CPU tensors), with aggregation weights over all the given samples.

    Raises: ValueError naming the term whose length is not its sample's, or that only some samples have.
    """
    lengths = torch.tensor([len(sample.sequence.response_ids) for sample in samples])
    weights = aggregation_weights(lengths, torch.ones(int(lengths.sum())), aggregation).split(lengths.tolist())
    return [_terms_of(sample, weight, samples[0]) for sample, weight in zip(samples, weights, strict=True)]


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

    def objective(indices: Sequence[int]) -> PolicyObjective:
        joined = _join_terms(terms, indices, packer.device)
        return PolicyObjective(joined, coefficients, torch.empty_like(joined.old_logprobs))

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
    objective: Callable[[Sequence[int]], Objective],
    *,
    with_entropy: bool,
) -> tuple[dict[str, float], list[Objective]]:
    """Forward and backward of this rank's share: loss and statistics summed over ranks, and this rank's objectives.

    Raises: FloatingPointError if the loss is not finite, before any weight has changed.
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


def _terms_of(sample: PolicySample, weights: Tensor, first: PolicySample) -> PolicyTerms:
    values: dict[str, Tensor | None] = {"weights": weights}
    for item in fields(PolicyTerms):
        if item.name == "weights":
            continue
        value = getattr(sample, item.name)
        if (value is None) != (getattr(first, item.name) is None):
            raise ValueError(f"PolicySample.{item.name} is given for some samples only; give it for all or for none")
        if value is not None and len(value) != len(weights):
            raise ValueError(f"PolicySample.{item.name} has {len(value)} values for {len(weights)} response tokens")
        values[item.name] = None if value is None else torch.as_tensor(np.asarray(value, dtype=np.float32))
    return PolicyTerms(**values)


def _join_terms(terms: Sequence[PolicyTerms], indices: Sequence[int], device: torch.device) -> PolicyTerms:
    """The terms of one micro-batch's samples, concatenated, on the device; no samples make empty tensors."""
    joined = {}
    for item in fields(PolicyTerms):
        present = getattr(terms[0], item.name) is not None
        parts = [torch.zeros(0), *(getattr(terms[index], item.name) for index in indices)] if present else None
        joined[item.name] = torch.cat(parts).to(device) if present else None
    return PolicyTerms(**joined)


def _statistic_names(objective: Objective, device: torch.device) -> list[str]:
    """The names of an objective's statistics, known on every rank: stages without a head see none of them computed."""
    nothing = torch.zeros(0, device=device)
    return ["loss", *objective(nothing, nothing, slice(0, 0)).statistics]


def _sum_statistics(sums: Sequence[dict[str, Tensor]], names: Sequence[str], device: torch.device) -> dict[str, float]:
    """Sums over this rank's micro-batches (none off the last stage) and over replicas."""
    totals = torch.zeros(len(names), dtype=torch.float64, device=device)
    for statistics in sums:
        totals += torch.stack([statistics[name].double() for name in names])
    return dict(zip(names, sum_over_replicas(totals).tolist(), strict=True))


def _max_ratio_deviation(objectives: Sequence[PolicyObjective], device: torch.device) -> float:
    """Over all tokens of all ranks; only the last stage has log-probs."""
    deviation = torch.zeros((), device=device)
    if is_last_stage():
        deviation = torch.stack([objective.max_ratio_deviation() for objective in objectives]).max()
    dist.all_reduce(deviation, op=dist.ReduceOp.MAX)
    return float(deviation)
