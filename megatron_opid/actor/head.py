"""The LM head as the model calls it: log-probs of response tokens, or a loss over them, never logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from megatron.core.tensor_parallel import ColumnParallelLinear, gather_from_sequence_parallel_region
from torch import Tensor

from megatron_opid.kernels.linear_logprob import TokenLoss, linear_logprob, linear_token_loss


@dataclass(frozen=True)
class HeadInput:
    """What the head computes of a micro-batch.

    rows int64 [T]: the positions that predict a response token; targets int64 [T]: those tokens; loss: applied to their
    log-probs (None: the log-probs themselves are wanted).
    """

    rows: Tensor
    targets: Tensor
    loss: TokenLoss | None = None
    with_entropy: bool = False


@dataclass(frozen=True)
class HeadOutput:
    """`tensor`: the loss (scalar, differentiable) or the log-probs [T]; `statistics`: the loss's sums over rows."""

    tensor: Tensor
    statistics: dict[str, Tensor]


@dataclass(frozen=True)
class HeadSettings:
    """Constants of a head. num_valid_columns: the vocabulary without padding; backend: of kernels.linear_logprob."""

    temperature: float
    num_valid_columns: int
    backend: str


class PolicyHead(ColumnParallelLinear):
    """Megatron's output layer with another forward; being called as a module, it fires the parameter-gather hooks."""

    settings: HeadSettings

    def forward(self, hidden: Tensor, weight: Tensor | None, request: HeadInput) -> HeadOutput:
        """hidden [t, 1, H], or [t/tp, 1, H] under sequence parallelism; weight [V/tp, H]: the embedding's, if tied."""
        weight = self.weight if weight is None else weight
        if self.sequence_parallel:
            # The kernel's backward has summed d hidden over the ranks already: each takes its slice of it.
            hidden = gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=False, group=self.tp_group
            )
        hidden = hidden[:, 0].index_select(0, request.rows)
        options = {
            "temperature": self.settings.temperature,
            "num_valid_columns": self.settings.num_valid_columns,
            "tp_group": _group_or_none(self.tp_group),
            "with_entropy": request.with_entropy,
            "backend": self.settings.backend,
        }
        if request.loss is None:
            logprobs, _ = linear_logprob(hidden, weight, request.targets, **options)
            return HeadOutput(logprobs, {})
        loss, statistics = linear_token_loss(
            hidden, weight, request.targets, request.loss, accumulate_main_grad=True, **options
        )
        return HeadOutput(loss, statistics)


def _group_or_none(group: dist.ProcessGroup) -> dist.ProcessGroup | None:
    return group if group.size() > 1 else None
