"""Saving and resuming: model, optimizer, schedule, random generators and the trainer's own state.

The directory's layout is checkpoint_directory's; every function here is a collective of all ranks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.utils import unwrap_model

from megatron_opid.actor.checkpoint_directory import (
    DESCRIPTION,
    publish,
    read_description,
    refuse_other_model,
)
from megatron_opid.actor.optimizer import Optimizer, prepare_torch_adam_for_checkpoint


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint holds of the actor; `identity` is checkpoint_directory.identity."""

    identity: dict[str, Any]
    chunks: Sequence[torch.nn.Module]
    optimizer: Optimizer


def save_checkpoint(
    directory: Path, step: int, state: CheckpointState, trainer_state: dict[str, Any], keep: int
) -> Path:
    """Write `directory`/step_`step`, then delete all but the newest `keep`.

    `trainer_state` is any JSON value; it comes back from `load_checkpoint` as it was.
    """
    final, temporary = directory / f"step_{step}", directory / f"step_{step}.tmp"
    description = {
        "step": step,
        "identity": state.identity,
        "num_ranks": dist.get_world_size(),
        "trainer_state": trainer_state,
    }
    serialized = json.dumps(description, indent=1)
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "megatron").mkdir(parents=True)
    dist.barrier()
    prepare_torch_adam_for_checkpoint(state.optimizer.megatron)
    dist_checkpointing.save(_sharded_state(state, is_loading=False), str(temporary / "megatron"))
    torch.save(_generator_states(), temporary / f"generators_{dist.get_rank()}.pt")
    dist.barrier()
    if dist.get_rank() == 0:
        (temporary / DESCRIPTION).write_text(serialized)
        publish(temporary, final, keep)
    dist.barrier()
    return final


def load_checkpoint(path: Path, state: CheckpointState) -> dict[str, Any]:
    """Fill model, optimizer and schedule from checkpoint `path`, whatever layout wrote it; returns its trainer state.

    Generators continue where they stopped if as many ranks resume as saved; else they keep their seeds.
    Raises: CheckpointError if it is not complete or belongs to another model or kind of optimizer.
    """
    description = read_description(path)
    refuse_other_model(path, description["identity"], state.identity)
    prepare_torch_adam_for_checkpoint(state.optimizer.megatron)
    loaded = dist_checkpointing.load(_sharded_state(state, is_loading=True), str(path / "megatron"))
    for number, chunk in enumerate(unwrap_model(list(state.chunks))):
        chunk.load_state_dict(loaded[_chunk_key(state, number)])
    state.optimizer.megatron.load_state_dict(loaded["optimizer"])
    state.optimizer.schedule.num_steps = 0  # loading adds
    state.optimizer.schedule.load_state_dict(loaded["schedule"])
    if description["num_ranks"] == dist.get_world_size():
        _restore_generators(torch.load(path / f"generators_{dist.get_rank()}.pt", weights_only=True))
    return description["trainer_state"]


def _sharded_state(state: CheckpointState, *, is_loading: bool) -> dict[str, Any]:
    models = {
        _chunk_key(state, number): chunk.sharded_state_dict(metadata=_metadata(state))
        for number, chunk in enumerate(unwrap_model(list(state.chunks)))
    }
    optimizer = state.optimizer.megatron.sharded_state_dict(
        models["model"] if len(models) == 1 else models, is_loading=is_loading, metadata=_metadata(state)
    )
    return {**models, "optimizer": optimizer, "schedule": state.optimizer.schedule.state_dict()}


def _metadata(state: CheckpointState) -> dict[str, Any]:
    """How Megatron shards the optimizer's state; a fresh dict each time: Megatron writes a process group into it."""
    if not state.identity["distributed_optimizer"]:
        return {}
    return {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


def _chunk_key(state: CheckpointState, number: int) -> str:
    return "model" if len(state.chunks) == 1 else f"model{number}"


def _generator_states() -> dict[str, Any]:
    return {"torch": torch.get_rng_state(), "megatron": get_cuda_rng_tracker().get_states()}


def _restore_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    get_cuda_rng_tracker().set_states(states["megatron"])
