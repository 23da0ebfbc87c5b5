"""Memory is bounded by one chunk of logits: counted, storage by storage, on a CPU."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_opid.algorithm.losses import LossCoefficients
from megatron_opid.kernels.linear_logprob import linear_logprob, linear_policy_loss
from tests.kernels.problems import Problem, random_problem, random_terms

HIDDEN, COLUMNS, CHUNK = 8, 4096, 16
LOGITS_BYTES = CHUNK * COLUMNS * 4


class PeakStorage(TorchDispatchMode):
    """Bytes of all storages made under this mode that are alive at once."""

    def __init__(self):
        super().__init__()
        self.alive: dict[StorageWeakRef, int] = {}
        self.peak_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive[StorageWeakRef(storage)] = storage.nbytes()
        self.alive = {ref: size for ref, size in self.alive.items() if not ref.expired()}
        self.peak_bytes = max(self.peak_bytes, sum(self.alive.values()))
        return out


def test_peak_counter_sees_what_is_alive_at_once():
    with PeakStorage() as counter:
        for _ in range(3):
            torch.ones(1000).add(1)
    assert counter.peak_bytes == 8000


def _peak_of_training(problem: Problem) -> int:
    terms = random_terms(problem)
    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    with PeakStorage() as counter:
        total, _ = linear_policy_loss(
            *inputs, problem.targets, terms, LossCoefficients(entropy=0.1), chunk_tokens=CHUNK, **problem.options
        )
        total.backward()
    return counter.peak_bytes


def test_training_holds_one_chunk_of_logits_whatever_the_number_of_rows():
    few, many = (_peak_of_training(random_problem(rows, HIDDEN, COLUMNS, COLUMNS)) for rows in (32, 512))
    gradients_bytes = 4 * COLUMNS * HIDDEN * 4
    assert few < 4 * LOGITS_BYTES + gradients_bytes
    assert many - few < 512 * (4 * HIDDEN + 200)  # d hidden and per-token vectors: no term in rows × columns
    assert 4 * (many - few) < 512 * COLUMNS * 4  # all rows' logits would be four times that and more


def test_scoring_holds_one_chunk_of_logits():
    problem = random_problem(512, HIDDEN, COLUMNS, COLUMNS)
    with PeakStorage() as counter:
        linear_logprob(problem.hidden, problem.weight, problem.targets, chunk_tokens=CHUNK, **problem.options)
    assert counter.peak_bytes < 4 * LOGITS_BYTES


def test_saved_for_backward_are_the_two_gradients_and_nothing_in_rows_times_columns():
    problem = random_problem(512, HIDDEN, COLUMNS, COLUMNS)
    terms = random_terms(problem)
    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    saved = []

    def pack(tensor):
        saved.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        linear_policy_loss(*inputs, problem.targets, terms, LossCoefficients(), chunk_tokens=CHUNK, **problem.options)
        one_pass, saved = saved, []
        linear_logprob(*inputs, problem.targets, chunk_tokens=CHUNK, **problem.options)
    of_d_hidden, of_d_weight = 512 * HIDDEN * 4, COLUMNS * HIDDEN * 4
    # Slices of [T] vectors, in each chunk's own small graph and gone when the chunk is, pass through the hook as well.
    assert sorted(size for size in one_pass if size > 512 * 4) == sorted([of_d_hidden, of_d_weight])
    assert sorted(saved) == sorted([512 * 8, of_d_hidden, of_d_weight])  # recomputation: targets, hidden, weight
