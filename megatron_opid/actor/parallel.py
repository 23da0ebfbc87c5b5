"""Process groups: torch.distributed, Megatron's groups from ActorConfig, seeds, the end."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from megatron_opid.actor import cpu
from megatron_opid.config import ActorConfig
from megatron_opid.rendezvous import join_world


def resolve_device(name: str) -> torch.device:
    """`auto` is this process's GPU where there is one, else the CPU."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def device_context(device: torch.device) -> AbstractContextManager:
    """Megatron-Core's code runs inside this."""
    return cpu.CudaAsCpu() if device.type == "cpu" else nullcontext()


def initialize(actor: ActorConfig, device: torch.device, *, seed: int, timeout_s: float) -> bool:
    """Start torch.distributed, unless it runs already, and build Megatron's process groups; seed every generator.

    `timeout_s` bounds every collective.
    Returns: whether torch.distributed was started here, for `destroy` to end it.
    """
    if actor.deterministic:
        _compute_deterministically()
    if device.type == "cpu":
        cpu.install_stand_ins()
    else:
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=timeout_s)
    starts_world = not dist.is_initialized()
    if starts_world:
        join_world("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl", timeout=timeout)
    with device_context(device):
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=actor.tensor_parallel,
            pipeline_model_parallel_size=actor.pipeline_parallel,
            virtual_pipeline_model_parallel_size=(
                actor.virtual_pipeline_parallel if actor.virtual_pipeline_parallel > 1 else None
            ),
            context_parallel_size=actor.context_parallel,
            expert_model_parallel_size=actor.expert_parallel,
            expert_tensor_parallel_size=actor.expert_tensor_parallel,
            distributed_timeout_minutes=max(1, round(timeout_s / 60)),
        )
        model_parallel_cuda_manual_seed(seed)
    if actor.pipeline_parallel > 1:
        _connect_stages(device)
    torch.manual_seed(seed)
    return starts_world


def _connect_stages(device: torch.device) -> None:
    """Have the pipeline's group form its communicator now: the first message would need every stage for that, and with
    three stages the last one waits for the second while that one waits for it."""
    dist.all_reduce(torch.zeros(1, device=device), group=parallel_state.get_pipeline_model_parallel_group())


def _compute_deterministically() -> None:
    """For the rest of the process; before the GPU's libraries start, which read the environment once."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS: no choice of algorithm by free memory
    os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"  # Transformer Engine's attention backward
    os.environ["NCCL_ALGO"] = "Ring"  # sums in one order, whatever the message's size
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and nothing reads what it did not write


def destroy(*, ends_world: bool) -> None:
    """Give Megatron's process groups back, for another layout to be built; `ends_world`: torch.distributed, too."""
    parallel_state.destroy_model_parallel()
    if ends_world:
        dist.destroy_process_group()


def is_last_stage() -> bool:
    """Whether this rank's last model chunk holds the LM head."""
    return parallel_state.is_pipeline_last_stage(ignore_virtual=True)


def speaks_for_replica() -> bool:
    """One rank per data-parallel replica reports its results: tensor rank 0 of the last stage."""
    return is_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0


def sum_over_replicas(values: torch.Tensor) -> torch.Tensor:
    """Sum over the replicas' `values`, on every rank, in place. Exact where at most one replica's entry is not zero."""
    if not speaks_for_replica():
        values.zero_()
    dist.all_reduce(values)
    return values
