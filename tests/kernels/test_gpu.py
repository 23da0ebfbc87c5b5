"""The GPU back ends on a GPU: accuracy at the vocabulary of Qwen3, bits that do not depend on the batch, two GPUs."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_opid.algorithm.losses import LossCoefficients, PolicyLoss
from megatron_opid.kernels.linear_logprob import linear_logprob, linear_policy_loss, linear_token_loss
from rollout.engines.launch import free_ports
from tests.kernels.problems import (
    Problem,
    exact_gradients,
    exact_logprobs,
    random_problem,
    random_terms,
    relative_error,
)

BACKENDS = ["triton", "cuda"]
COEFFICIENTS = LossCoefficients(kl=0.1, entropy=0.05)


def qwen_head(rows: int, logit_std: float = 2.5, *, columns: int = 152064, valid: int = 151936) -> Problem:
    return random_problem(
        rows, 1024, columns, valid, dtype=torch.bfloat16, logit_std=logit_std, device="cuda", seed=rows
    )


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("logit_std", [0.5, 2.5, 6.0], ids=["flat", "usual", "peaked"])  # over a temperature of 0.5-1.5
def test_logprob_entropy_and_difference_of_two_contexts(backend, logit_std):
    first = qwen_head(301, logit_std)
    second = dataclasses.replace(first, hidden=(first.hidden.float() * 1.03).bfloat16())
    scores, exact = [], []
    for problem in (first, second):
        logprob, entropy = linear_logprob(
            problem.hidden, problem.weight, problem.targets, with_entropy=True, backend=backend, **problem.options
        )
        scores.append(logprob)
        exact.append(exact_logprobs(problem, problem.hidden, problem.weight))
        assert (logprob - exact[-1][0]).abs().max() < 1e-4
        assert (entropy - exact[-1][1]).abs().max() < 1e-4
    assert ((scores[1] - scores[0]) - (exact[1][0] - exact[0][0])).abs().max() < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("rows", "hidden", "columns", "valid"),
    [(1, 128, 512, 512), (777, 512, 8192, 8191), (129, 64, 320, 257), (300, 256, 1024, 5), (500, 2048, 32768, 32700)],
)
def test_gradients(backend, rows, hidden, columns, valid):
    problem = random_problem(rows, hidden, columns, valid, dtype=torch.bfloat16, device="cuda")
    problem.targets[-1] = valid - 1
    terms = random_terms(problem)
    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    total, _ = linear_policy_loss(
        *inputs, problem.targets, terms, COEFFICIENTS, backend=backend, chunk_tokens=256, **problem.options
    )
    _, *exact = exact_gradients(problem, terms, COEFFICIENTS)
    for value, wanted in zip(torch.autograd.grad(total, inputs), exact, strict=True):
        assert relative_error(value, wanted) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_give_zero_gradients(backend):
    problem = random_problem(0, 64, 512, 500, dtype=torch.bfloat16, device="cuda")
    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    total, _ = linear_policy_loss(
        *inputs, problem.targets, random_terms(problem), COEFFICIENTS, backend=backend, **problem.options
    )
    _, d_weight = torch.autograd.grad(total, inputs)
    assert total.item() == 0 and torch.equal(d_weight, torch.zeros_like(problem.weight))


@pytest.mark.gpu
def test_a_row_has_the_same_bits_in_any_batch():
    """So the first update's ratio is exactly 1 however scoring and training pack their rows."""
    problem = qwen_head(3000)
    whole, _ = linear_logprob(problem.hidden, problem.weight, problem.targets, num_valid_columns=problem.valid)
    parts, start = [], 0
    for rows in (1, 127, 872, 2000):
        part = slice(start, start := start + rows)
        args = (problem.hidden[part], problem.weight, problem.targets[part])
        parts.append(linear_logprob(*args, num_valid_columns=problem.valid, chunk_tokens=700)[0])
    assert torch.equal(torch.cat(parts), whole)

    seen = []

    def loss(logprobs, entropy, rows):
        seen.append(logprobs.detach())
        return PolicyLoss(logprobs.sum(), {})

    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    linear_token_loss(
        *inputs, problem.targets, loss, num_valid_columns=problem.valid, chunk_tokens=1024, with_entropy=True
    )
    assert torch.equal(torch.cat(seen), whole)


@pytest.mark.multi_gpu
def test_two_gpus_agree_with_one_and_with_each_other():
    mp.spawn(_rank, args=(*free_ports(1, "127.0.0.1"),), nprocs=2)


def _rank(rank: int, port: int) -> None:
    torch.cuda.set_device(rank)
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=2)
    problem = qwen_head(1500)
    whole = linear_logprob(problem.hidden, problem.weight, problem.targets, with_entropy=True, **problem.options)
    terms = random_terms(problem)
    weights = (problem.weight, problem.weight.chunk(2)[rank])
    results = []
    for weight, group in zip(weights, (None, dist.group.WORLD), strict=True):
        inputs = (problem.hidden.clone().requires_grad_(), weight.clone().requires_grad_())
        options = {"tp_group": group, "chunk_tokens": 1024, **problem.options}
        scores = linear_logprob(*(x.detach() for x in inputs), problem.targets, with_entropy=True, **options)
        total, _ = linear_policy_loss(*inputs, problem.targets, terms, COEFFICIENTS, **options)
        results.append((*scores, total.detach(), *torch.autograd.grad(total, inputs)))
    (*alone, d_weight), (*split, d_shard) = results
    torch.testing.assert_close(torch.stack(split[:2]), torch.stack(whole), rtol=0, atol=2e-5)
    assert relative_error(split[3], alone[3]) < 5e-3
    assert relative_error(d_shard, d_weight.chunk(2)[rank]) < 5e-3
    for value in split:
        everyone = [torch.empty_like(value) for _ in range(2)]
        dist.all_gather(everyone, value.contiguous())
        assert torch.equal(everyone[0], everyone[1])
    dist.destroy_process_group()
