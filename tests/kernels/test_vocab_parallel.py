"""TP 1, 2 and 4 over gloo in one launch: one answer, the same bits on every rank, padding wherever it falls."""

from dataclasses import replace

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from megatron_opid.algorithm.losses import LossCoefficients
from megatron_opid.kernels.linear_logprob import linear_logprob, linear_policy_loss
from megatron_opid.kernels.linear_logprob.vocab_parallel import VocabShard
from rollout.engines.launch import free_ports
from tests.kernels.problems import Problem, exact_gradients, exact_logprobs, random_problem, random_terms

WORLD = 4
COEFFICIENTS = LossCoefficients(kl=0.1, entropy=0.05)


def test_tensor_parallel_sizes_give_one_answer():
    mp.spawn(_rank, (*free_ports(1, "127.0.0.1"),), nprocs=WORLD)


def _rank(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    for size in (1, 2, 4):
        groups = [dist.new_group(list(range(first, first + size))) for first in range(0, WORLD, size)]
        group = groups[rank // size]
        # 40 valid columns of 64: with four ranks the third holds some padding, the fourth nothing else.
        for dtype in (torch.float64, torch.bfloat16):
            _check_values_and_gradients(random_problem(11, 8, 64, 40, dtype=dtype), group)
        one_owner = random_problem(5, 8, 64, 64, dtype=torch.float64)
        _check_values_and_gradients(replace(one_owner, targets=torch.full((5,), 63)), group)
        _check_no_rows(group)
    dist.destroy_process_group()


def _check_values_and_gradients(problem: Problem, group: dist.ProcessGroup) -> None:
    rank, size = group.rank(), group.size()
    terms = random_terms(problem)
    exact = (*exact_logprobs(problem, problem.hidden, problem.weight), *exact_gradients(problem, terms, COEFFICIENTS))
    options = {"tp_group": group, "chunk_tokens": 4, **problem.options}
    hidden = problem.hidden.clone().requires_grad_()
    shard = problem.weight.chunk(size)[rank].clone().requires_grad_()
    with torch.no_grad():
        logprob, entropy = linear_logprob(hidden, shard, problem.targets, with_entropy=True, **options)
    total, _ = linear_policy_loss(hidden, shard, problem.targets, terms, COEFFICIENTS, **options)
    d_hidden, d_shard = torch.autograd.grad(total, (hidden, shard))
    recomputed, _ = linear_logprob(hidden, shard, problem.targets, **options)
    (d_hidden_recomputed,) = torch.autograd.grad(recomputed.sum(), hidden)

    for same in (logprob, entropy, total, d_hidden, d_hidden_recomputed):
        _assert_same_bits(same.detach(), group)
    d_weight = exact[4].chunk(size)[rank]
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if problem.hidden.dtype == torch.float64 else {"rtol": 2e-2, "atol": 5e-3}
    for value, wanted in zip((logprob, entropy, total, d_hidden, d_shard), (*exact[:4], d_weight), strict=True):
        torch.testing.assert_close(value.double(), wanted, check_dtype=False, **tolerance)
    assert (logprob - exact[0]).abs().max() < 1e-4
    assert torch.equal(recomputed, logprob)


def _check_no_rows(group: dist.ProcessGroup) -> None:
    problem = random_problem(0, 8, 64, 40)
    shard = problem.weight.chunk(group.size())[group.rank()].clone().requires_grad_()
    hidden = problem.hidden.requires_grad_()
    options = {"tp_group": group, **problem.options}
    total, _ = linear_policy_loss(hidden, shard, problem.targets, random_terms(problem), COEFFICIENTS, **options)
    total.backward()
    assert total.item() == 0 and hidden.grad.shape == (0, 8) and torch.equal(shard.grad, torch.zeros_like(shard))


def _assert_same_bits(value: Tensor, group: dist.ProcessGroup) -> None:
    everyone = [torch.empty_like(value) for _ in range(group.size())]
    dist.all_gather(everyone, value.contiguous(), group=group)
    assert all(torch.equal(other, value) for other in everyone)


def test_shard_knows_its_valid_columns():
    class Group:
        def __init__(self, rank):
            self.rank, self.size = (lambda: rank), (lambda: 4)

    weight = torch.empty(16, 8)
    shards = [VocabShard.of(weight, 40, Group(rank)) for rank in range(4)]
    assert [(s.start, s.num_columns) for s in shards] == [(0, 16), (16, 16), (32, 8), (48, 0)]
    assert VocabShard.of(weight, None, None) == VocabShard(0, 16, None)
