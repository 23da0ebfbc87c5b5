"""The heads that tools/bench_linear_logprob.py compares: ours, the bare products, and other projects' published ops.

Anything not installed is reported by name, not passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_opid.algorithm.losses import LossCoefficients, PolicyTerms
from megatron_opid.kernels.linear_logprob import linear_cross_entropy, linear_logprob, linear_policy_loss

BARE_CHUNK_TOKENS = (4096, 8192)


@dataclass(frozen=True)
class Case:
    """hidden [T, H] and weight [V, H] in bf16 (requiring gradients), targets [T], the loss's terms."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    terms: PolicyTerms
    coefficients: LossCoefficients

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        return self.hidden, self.weight

    def loss_of(self, logprobs: Tensor) -> Tensor:
        return -(self.terms.weights * logprobs).sum()


Gradients = Callable[[Case], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Peer:
    """A head to measure; None where it cannot do a thing.

    score: log-probs [T] without gradient; train: d hidden and d weight of the loss it is timed on, which for some is
    less than ours (a plain cross entropy: `note` says); gradients: those of Case.loss_of, to be checked.
    """

    name: str
    score: Callable[[Case], Tensor] | None
    train: Gradients
    gradients: Gradients | None
    note: str


def ours(backend: str, entropy: float) -> Peer:
    def score(case: Case) -> Tensor:
        with torch.no_grad():
            return linear_logprob(*case.inputs, case.targets, with_entropy=entropy > 0, backend=backend)[0]

    def train(case: Case) -> tuple[Tensor, Tensor]:
        coefficients = LossCoefficients(kl=case.coefficients.kl, entropy=entropy)
        total, _ = linear_policy_loss(
            *case.inputs, case.targets, case.terms, coefficients, with_entropy=entropy > 0, backend=backend
        )
        return torch.autograd.grad(total, case.inputs)

    def gradients(case: Case) -> tuple[Tensor, Tensor]:
        total, _ = linear_cross_entropy(*case.inputs, case.targets, case.terms.weights, backend=backend)
        return torch.autograd.grad(total, case.inputs)

    if entropy:
        return Peer(f"ours-{backend}+entropy", score, train, None, "policy loss, dual clip, k3 KL, entropy bonus")
    return Peer(f"ours-{backend}", score, train, gradients, "policy loss, dual clip, k3 KL")


def bare_products(chunk_tokens: int) -> Peer:
    """The speed of light: bf16 products by cuBLAS, chunk by chunk, with no arithmetic between them."""
    buffers: dict[str, Tensor] = {}

    def out(name: str, *shape: int) -> Tensor:
        if name not in buffers or buffers[name].shape != shape:
            buffers[name] = torch.empty(*shape, dtype=torch.bfloat16, device="cuda")
        return buffers[name]

    def run(case: Case, gradients: bool) -> tuple[Tensor, Tensor] | Tensor:
        hidden, weight = (x.detach() for x in case.inputs)
        logits = out("logits", chunk_tokens, len(weight))
        d_hidden, d_weight = out("d_hidden", chunk_tokens, hidden.shape[1]), out("d_weight", *weight.shape)
        for start in range(0, len(hidden), chunk_tokens):
            rows = hidden[start : start + chunk_tokens]
            torch.mm(rows, weight.t(), out=logits)
            if gradients:
                torch.mm(logits, weight, out=d_hidden)
                torch.mm(logits.t(), rows, out=d_weight)
        return (d_hidden, d_weight) if gradients else logits

    name = f"bare-cublas-{chunk_tokens}"
    return Peer(name, lambda case: run(case, False), lambda case: run(case, True), None, "products only")


def differentiable(name: str, logprobs: Callable[[Case], Tensor], note: str) -> Peer:
    """A peer that is a differentiable function to log-probs [T]."""

    def score(case: Case) -> Tensor:
        with torch.no_grad():
            return logprobs(case)

    def train(case: Case) -> tuple[Tensor, Tensor]:
        return torch.autograd.grad(case.loss_of(logprobs(case)), case.inputs)

    return Peer(name, score, train, train, note)


def torch_logprobs(case: Case) -> Tensor:
    logits = (case.hidden @ case.weight.t()).float()
    return logits.log_softmax(-1).gather(1, case.targets[:, None])[:, 0]


def torch_peers() -> list[Peer]:
    compiled = torch.compile(
        lambda hidden, weight, targets: (hidden @ weight.t()).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    )
    return [
        differentiable("torch", torch_logprobs, "bf16 logits, float32 log_softmax, all rows at once"),
        differentiable("torch-compiled", lambda c: compiled(*c.inputs, c.targets), "the same under torch.compile"),
    ]


def liger_peers() -> list[Peer]:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    def cross_entropy(case: Case, **options) -> tuple[Tensor, Tensor]:
        out = LigerFusedLinearCrossEntropyFunction.apply(
            *case.inputs, case.targets, None, None, -100, 0.0, 0.0, "sum", None, False, *options.values()
        )
        return torch.autograd.grad(out[0] if isinstance(out, tuple) else out, case.inputs)

    def large_chunks(case: Case) -> tuple[Tensor, Tensor]:
        options = {"accum": torch.float32, "scaling": False, "accuracy": False, "predicted": False}
        return cross_entropy(case, **options, impl=None, mode=None, chunk_mem_const=8)

    def grpo(case: Case) -> tuple[Tensor, Tensor]:
        sequences = len(case.hidden) // 512
        loss = LigerFusedLinearGRPOLoss(beta=case.coefficients.kl, use_ref_model=True, loss_type="bnpo", compiled=True)
        reference, old = (x.view(sequences, -1) for x in (case.terms.reference_logprobs, case.terms.old_logprobs))
        out = loss(
            case.hidden.view(sequences, 512, -1),
            case.weight,
            case.targets.view(sequences, 512),
            torch.ones_like(old),
            case.terms.advantages.view(sequences, 512)[:, 0],
            ref_per_token_logps=reference,
            old_per_token_logps=old,
        )
        return torch.autograd.grad(out[0] if isinstance(out, tuple) else out, case.inputs)

    def mean_of(summed: Gradients) -> Gradients:
        return lambda case: tuple(gradient / len(case.hidden) for gradient in summed(case))

    defaults = "0.8.5 FusedLinearCrossEntropy, defaults; one scalar coefficient"
    tuned = "the same, chunk_mem_const=8, float32 accumulation"
    return [
        Peer("liger-ce", None, cross_entropy, mean_of(cross_entropy), defaults),
        Peer("liger-ce-tuned", None, large_chunks, mean_of(large_chunks), tuned),
        Peer("liger-grpo", None, grpo, None, "0.8.5 FusedLinearGRPOLoss, compiled, 512-token sequences"),
    ]


def cut_cross_entropy_peers() -> list[Peer]:
    import cut_cross_entropy

    def logprobs(case: Case, **options) -> Tensor:
        return -cut_cross_entropy.linear_cross_entropy(*case.inputs, case.targets, reduction="none", **options)

    return [
        differentiable("cce", logprobs, "25.1.1, gradient filter at its default"),
        differentiable("cce-unfiltered", lambda c: logprobs(c, filter_eps=None), "25.1.1, filter_eps=None"),
    ]


def megatron_peers() -> list[Peer]:
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

    if not dist.is_initialized():
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)

    def logprobs(case: Case) -> Tensor:
        logits = (case.hidden @ case.weight.t())[:, None]
        return -fused_vocab_parallel_cross_entropy(logits, case.targets[:, None], dist.group.WORLD)[:, 0]

    return [differentiable("megatron", logprobs, "core 0.16.1 fused_vocab_parallel_cross_entropy, all rows at once")]


def all_peers() -> tuple[list[Peer], dict[str, str]]:
    """Every peer that imports here, and why the others do not."""
    peers = [ours("cuda", 0.0), ours("cuda", 0.001), ours("triton", 0.0)]
    peers += [bare_products(chunk) for chunk in BARE_CHUNK_TOKENS] + torch_peers()
    missing = {}
    for make in (liger_peers, cut_cross_entropy_peers, megatron_peers):
        try:
            peers += make()
        except ImportError as error:
            missing[make.__name__] = str(error)
    return peers, missing
