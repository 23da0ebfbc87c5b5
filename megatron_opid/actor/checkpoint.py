"""Checkpoints: model, optimizer, schedule, random generators and the trainer's own state, in one directory per step.

`<directory>/step_N` is written as `step_N.tmp` and renamed when complete; `<directory>/latest` names the newest. A
process killed at any moment leaves the last complete checkpoint. Tensors are independent of the parallel layout.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.utils import unwrap_model

from megatron_opid.actor.optimizer import Optimizer, prepare_torch_adam_for_checkpoint
from megatron_opid.weights.hf_config import ModelShape

LATEST = "latest"
DESCRIPTION = "checkpoint.json"


class CheckpointError(ValueError):
    """There is no checkpoint, or it belongs to another model; the message names what differs."""


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint holds of the actor."""

    shape: ModelShape
    precision: str
    distributed_optimizer: bool
    chunks: Sequence[torch.nn.Module]
    optimizer: Optimizer


def save_checkpoint(
    directory: Path, step: int, state: CheckpointState, trainer_state: dict[str, Any], keep: int
) -> Path:
    """Write `directory`/step_`step` (a collective of all ranks), then delete all but the newest `keep`.

    `trainer_state` is any JSON value; it comes back from `load_checkpoint` as it was.
    """
    final = directory / f"step_{step}"
    temporary = directory / f"step_{step}.tmp"
    description = json.dumps({"step": step, "identity": _identity(state), "trainer_state": trainer_state}, indent=1)
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "megatron").mkdir(parents=True)
    dist.barrier()
    prepare_torch_adam_for_checkpoint(state.optimizer.megatron)
    dist_checkpointing.save(_sharded_state(state, is_loading=False), str(temporary / "megatron"))
    torch.save(_generator_states(), temporary / f"generators_{dist.get_rank()}.pt")
    dist.barrier()
    if dist.get_rank() == 0:
        (temporary / DESCRIPTION).write_text(description)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _point_to(directory, final.name)
        _delete_old(directory, keep)
    dist.barrier()
    return final


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint below `directory`, or None."""
    pointer = directory / LATEST
    return directory / pointer.read_text().strip() if pointer.is_file() else None


def load_checkpoint(path: Path, state: CheckpointState) -> dict[str, Any]:
    """Fill model, optimizer and schedule from checkpoint `path`, whatever layout wrote it; returns its trainer state.

    Generators continue where they stopped if as many ranks resume as saved; else they keep their seeds.
    Raises: CheckpointError if it is not complete or belongs to another model or kind of optimizer.
    """
    description = _read_description(path)
    _refuse_other_model(path, description["identity"], _identity(state))
    prepare_torch_adam_for_checkpoint(state.optimizer.megatron)
    loaded = dist_checkpointing.load(_sharded_state(state, is_loading=True), str(path / "megatron"))
    for number, chunk in enumerate(unwrap_model(list(state.chunks))):
        chunk.load_state_dict(loaded[_chunk_key(state, number)])
    state.optimizer.megatron.load_state_dict(loaded["optimizer"])
    state.optimizer.schedule.num_steps = 0
    state.optimizer.schedule.load_state_dict(loaded["schedule"])
    if description["identity"]["num_ranks"] == dist.get_world_size():
        _restore_generators(torch.load(path / f"generators_{dist.get_rank()}.pt", weights_only=True))
    return description["trainer_state"]


def _sharded_state(state: CheckpointState, *, is_loading: bool) -> dict[str, Any]:
    # A fresh dict each time: Megatron writes a process group into it.
    metadata: dict[str, Any] = {"chained_optim_avoid_prefix": True}
    if state.distributed_optimizer:
        metadata["distrib_optim_sharding_type"] = "fully_reshardable"
    models = {
        _chunk_key(state, number): chunk.sharded_state_dict(metadata=metadata)
        for number, chunk in enumerate(unwrap_model(list(state.chunks)))
    }
    for_optimizer = models["model"] if len(models) == 1 else models
    optimizer = state.optimizer.megatron.sharded_state_dict(for_optimizer, is_loading=is_loading, metadata=metadata)
    return {**models, "optimizer": optimizer, "schedule": state.optimizer.schedule.state_dict()}


def _chunk_key(state: CheckpointState, number: int) -> str:
    return "model" if len(state.chunks) == 1 else f"model{number}"


def _identity(state: CheckpointState) -> dict[str, Any]:
    return {
        **asdict(state.shape),
        "precision": state.precision,
        "distributed_optimizer": state.distributed_optimizer,
        "num_ranks": dist.get_world_size(),
    }


def _read_description(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / DESCRIPTION).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is no complete checkpoint: {DESCRIPTION} is missing; use another") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path / DESCRIPTION} is torn ({error}); use another checkpoint") from error


def _refuse_other_model(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [
        f"{name} is {saved.get(name)!r} there, {value!r} here"
        for name, value in wanted.items()
        if name != "num_ranks" and saved.get(name) != value
    ]
    if differing:
        raise CheckpointError(f"{path} was written by another run: {'; '.join(differing)}; set run.dir or actor.model")


def _point_to(directory: Path, name: str) -> None:
    pointer = directory / f"{LATEST}.tmp"
    pointer.write_text(name + "\n")
    pointer.replace(directory / LATEST)


def _delete_old(directory: Path, keep: int) -> None:
    """All but the newest `keep` complete checkpoints, and what killed processes left of incomplete ones."""
    for leftover in directory.glob("step_*.tmp"):
        shutil.rmtree(leftover)
    complete = sorted(directory.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    for path in complete[:-keep]:
        shutil.rmtree(path)


def _generator_states() -> dict[str, Any]:
    return {"torch": torch.get_rng_state(), "megatron": get_cuda_rng_tracker().get_states()}


def _restore_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    get_cuda_rng_tracker().set_states(states["megatron"])
