"""Saving and resuming: model, optimizer, schedule, random generators and the trainer's own state.

The directory's layout is checkpoint_directory's; every function here is a collective of all ranks.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.utils import unwrap_model

from megatron_opid.actor.checkpoint_directory import (
    DESCRIPTION,
    publish,
    read_description,
    refuse_other_model,
    write_attachment,
)
from megatron_opid.actor.optimizer import Optimizer, own_settings, prepare_torch_adam_for_checkpoint
from megatron_opid.actor.optimizer_state import (
    load_in_pieces,
    put_parameter_states,
    take_parameter_states,
    without_memory,
)
from megatron_opid.exchange import all_gather_text
from rollout.end_with_parent import end_with_parent


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint holds of the actor; `identity` is checkpoint_directory.identity."""

    identity: dict[str, Any]
    chunks: Sequence[torch.nn.Module]
    optimizer: Optimizer


class CheckpointWriter:
    """Writes checkpoints, at once or while training goes on. Every method is a collective of all ranks.

    One checkpoint is under way at a time. It is published, and so found by a run that resumes, only when every rank has
    written its part; a process killed before leaves the last one that was.
    """

    def __init__(self) -> None:
        self._queue = AsyncCallsQueue()

    def save(
        self,
        directory: Path,
        step: int,
        state: CheckpointState,
        trainer_state: dict[str, Any],
        *,
        attachment: str = "",
        keep: int,
        waits: bool,
    ) -> Path:
        """Write `directory`/step_`step`, then delete all but the newest `keep`.

        `trainer_state` is any JSON value; it comes back from `load_checkpoint` as it was. `attachment` is text of any
        length, the same on all ranks, for checkpoint_directory.read_attachment. Unless it `waits`, the
        weights are copied, the call returns, and `finish` publishes the checkpoint.
        """
        self.finish(waits=True)
        final = directory / f"step_{step}"
        description = {
            "step": step,
            "identity": state.identity,
            "num_ranks": dist.get_world_size(),
            "trainer_state": trainer_state,
        }
        serialized = json.dumps(description, indent=1)
        temporary = _make_temporary(final)
        prepare_torch_adam_for_checkpoint(state.optimizer.megatron)
        if attachment and dist.get_rank() == 0:
            write_attachment(temporary, attachment)
        torch.save(_generator_states(), temporary / f"generators_{dist.get_rank()}.pt")
        sharded = _sharded_state(state, is_loading=False)
        states = take_parameter_states(state.optimizer.megatron, sharded["optimizer"])
        put_parameter_states(state.optimizer.megatron, sharded["optimizer"], states)
        request = dist_checkpointing.save(sharded, str(temporary / "megatron"), async_sharded_save=True)
        request.add_finalize_fn(partial(_publish, temporary, final, serialized, keep))
        if waits:
            request.execute_sync()
        else:
            self._queue.schedule_async_request(request)
        return final

    def finish(self, *, waits: bool) -> None:
        """Publish what is written completely; with `waits`, also what is still being written."""
        self._queue.maybe_finalize_async_calls(blocking=waits)


def load_checkpoint(path: Path, state: CheckpointState) -> dict[str, Any]:
    """Fill model, optimizer and schedule from checkpoint `path`, whatever layout wrote it; returns its trainer state.

    Generators continue where they stopped if as many ranks resume as saved; else they keep their seeds.
    Raises: CheckpointError if it is not complete or belongs to another model or kind of optimizer.
    """
    description = read_description(path)
    refuse_other_model(path, description["identity"], state.identity)
    optimizer = state.optimizer.megatron
    prepare_torch_adam_for_checkpoint(optimizer)
    with without_memory(optimizer):
        sharded = _sharded_state(state, is_loading=True)
    states = take_parameter_states(optimizer, sharded["optimizer"])
    loaded = dist_checkpointing.load(sharded, str(path / "megatron"))
    for number, chunk in enumerate(unwrap_model(list(state.chunks))):
        chunk.load_state_dict(loaded[_chunk_key(state, number)])
    with own_settings(optimizer):
        optimizer.load_state_dict(loaded["optimizer"])
    load_in_pieces(optimizer, states, path / "megatron")
    state.optimizer.schedule.num_steps = 0  # loading adds
    state.optimizer.schedule.load_state_dict(loaded["schedule"])
    if description["num_ranks"] == dist.get_world_size():
        _restore_generators(torch.load(path / f"generators_{dist.get_rank()}.pt", weights_only=True))
    return description["trainer_state"]


def _results_queue() -> Any:
    """As Megatron-Core 0.16.1 makes it, but in a process that ends with this one: Megatron's, of 270 MB, outlives a
    trainer that is killed."""
    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        manager.start(end_with_parent, (os.getpid(),))
        filesystem_async._results_queue = manager.Queue()
    return filesystem_async._results_queue


filesystem_async._get_write_results_queue = _results_queue


def _make_temporary(final: Path) -> Path:
    """A directory of its own for each attempt, known to all ranks: the writer processes of a trainer that was killed
    may go on for a while, and must not write into the checkpoint of the run that took its place."""
    name = ""
    if dist.get_rank() == 0:
        final.parent.mkdir(parents=True, exist_ok=True)
        name = str(final.with_name(f"{final.name}.{uuid.uuid4().hex}.tmp"))  # tempfile's would be for us alone to read
        (Path(name) / "megatron").mkdir(parents=True)
    return Path(all_gather_text(name)[0])


def _publish(temporary: Path, final: Path, description: str, keep: int) -> None:
    if dist.get_rank() == 0:
        (temporary / DESCRIPTION).write_text(description)
        publish(temporary, final, keep)
    dist.barrier()


def _sharded_state(state: CheckpointState, *, is_loading: bool) -> dict[str, Any]:
    models = {
        _chunk_key(state, number): chunk.sharded_state_dict(metadata=_metadata(state))
        for number, chunk in enumerate(unwrap_model(list(state.chunks)))
    }
    sharded = state.optimizer.megatron.sharded_state_dict(
        models["model"] if len(models) == 1 else models, is_loading=is_loading, metadata=_metadata(state)
    )
    return {**models, "optimizer": sharded, "schedule": state.optimizer.schedule.state_dict()}


def _metadata(state: CheckpointState) -> dict[str, Any]:
    """How Megatron shards the optimizer's state; a fresh dict each time: Megatron writes a process group into it."""
    if not state.identity["distributed_optimizer"]:
        return {}
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "chained_optim_avoid_prefix": True,
        # Gathered in host memory, on one rank of each replica. By default it is gathered on the GPU, in fp32 and on
        # every rank: 30 GiB more than a 4B model on one GPU holds in training. The gather runs over gloo into that one
        # rank in the saving step itself, also with async_checkpoints: about 84 GB for an 8B at DP 8, whose time is not
        # measured yet.
        "distrib_optim_fully_reshardable_mem_efficient": True,
    }


def _chunk_key(state: CheckpointState, number: int) -> str:
    return "model" if len(state.chunks) == 1 else f"model{number}"


def _generator_states() -> dict[str, Any]:
    return {"torch": torch.get_rng_state(), "megatron": get_cuda_rng_tracker().get_states()}


def _restore_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    get_cuda_rng_tracker().set_states(states["megatron"])
