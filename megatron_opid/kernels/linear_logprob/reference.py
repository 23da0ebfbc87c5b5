"""The plain torch back end: any device and dtype, and the reference that the tests hold the kernels against."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_opid.kernels.linear_logprob.vocab_parallel import RowStatistics


class TorchBackend:
    """Logits, row statistics and gradients of one chunk of rows, in float32 (float64 for float64 inputs)."""

    def __init__(self, weight: Tensor):
        self.weight = weight.to(accumulation_dtype(weight))

    def forward(
        self, hidden: Tensor, targets: Tensor, inverse_temperature: Tensor, with_entropy: bool, keep: bool
    ) -> tuple[Tensor, Tensor]:
        """The logits, scaled, [C, V], and their partial statistics [C, 3 or 4] (see vocab_parallel.combine).

        Args: hidden [C, H]; targets int64 [C], counted from the shard's first column, foreign ones out of range;
        inverse_temperature [C]; keep: whether `logits_gradient` follows, which a back end may need to know.
        """
        logits = hidden.to(self.weight.dtype) @ self.weight.t()
        logits *= inverse_temperature[:, None]
        columns = ["max", "sum", "target"] + ["moment"] * with_entropy
        if logits.shape[1] == 0:
            nothing = {"max": -torch.inf, "sum": 0.0, "target": -torch.inf, "moment": 0.0}
            return logits, logits.new_tensor([nothing[c] for c in columns]).expand(len(logits), -1).contiguous()
        maximum = logits.amax(1)
        shifted = logits - maximum[:, None]
        exponentials = shifted.exp()
        owned = (targets >= 0) & (targets < logits.shape[1])
        target_logits = logits.gather(1, _in_range(targets, logits)[:, None])[:, 0]
        partials = [maximum, exponentials.sum(1), torch.where(owned, target_logits, -torch.inf)]
        if with_entropy:
            partials.append((exponentials * shifted).sum(1))
        return logits, torch.stack(partials, 1)

    def logits_gradient(
        self,
        logits: Tensor,
        targets: Tensor,
        inverse_temperature: Tensor,
        rows: RowStatistics,
        d_logprob: Tensor,
        d_entropy: Tensor | None,
    ) -> Tensor:
        """The gradient of the unscaled logits [C, V], in place of `logits`.

        With p the softmax, g = d_logprob and e = d_entropy [C]:
        dz_j = (g·(1[j = y] − p_j) − e·p_j·(log p_j + H)) / temperature.
        """
        owned = (targets >= 0) & (targets < logits.shape[1])
        # 1 − p_y from the log-prob: where p_y is near 1 the subtraction would cancel.
        at_target = -d_logprob * torch.expm1(rows.logprob)
        log_probs = logits.sub_(rows.logsumexp[:, None])
        if d_entropy is None:
            gradient = log_probs.exp_().mul_(-d_logprob[:, None])
        else:
            factor = (log_probs + rows.entropy[:, None]).mul_(-d_entropy[:, None]).sub_(d_logprob[:, None])
            gradient = log_probs.exp_().mul_(factor)
            at_target = at_target - d_entropy * rows.logprob.exp() * (rows.logprob + rows.entropy)
        if gradient.shape[1]:
            index = _in_range(targets, gradient)[:, None]
            gradient.scatter_(1, index, torch.where(owned[:, None], at_target[:, None], gradient.gather(1, index)))
        return gradient.mul_(inverse_temperature[:, None])

    def hidden_gradient(self, d_logits: Tensor, out: Tensor) -> None:
        """out = d logits · weight, d hidden [C, H]: this shard's part of the sum over shards."""
        out.copy_(d_logits @ self.weight)

    def weight_gradient(self, d_logits: Tensor, hidden: Tensor, out: Tensor, beta: int) -> None:
        """out = beta · out + d logitsᵀ · hidden, d weight [V, H]; with beta 0 what `out` held is not read."""
        out.addmm_(d_logits.t(), hidden.to(d_logits.dtype), beta=beta)


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """What statistics and sums are kept in: float64 for float64 inputs (gradient checks), else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _in_range(targets: Tensor, logits: Tensor) -> Tensor:
    return targets.clamp(0, logits.shape[1] - 1)
