"""Where checkpoints lie and which one a run may resume from. Imports no torch, so a run is checked before it starts.

`<directory>/step_N` holds checkpoint.json (below), generators_<rank>.pt, megatron/ (tensors, independent of the
parallel layout) and, where the trainer has more to keep than a few numbers, attachment.gz (text). It is written as
`step_N.tmp` and renamed when complete; then `<directory>/latest` names it. A process killed at any moment leaves the
last complete checkpoint.
"""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_opid.config import ActorConfig
from megatron_opid.weights.hf_config import ModelShape, parse_hf_config

LATEST = "latest"
DESCRIPTION = "checkpoint.json"
ATTACHMENT = "attachment.gz"


class CheckpointError(ValueError):
    """A checkpoint is not complete or belongs to another model; the message names what differs."""


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint below `directory`, or None."""
    pointer = directory / LATEST
    if not pointer.is_file():
        return None
    path = directory / pointer.read_text().strip()
    return path if path.exists() else _moved_aside(path)


def checkpoint_faults(directory: Path, actor: ActorConfig, hf_config: dict[str, Any]) -> list[str]:
    """Why a run of this model cannot resume from the newest checkpoint below `directory`; empty where it can."""
    path = latest_checkpoint(directory)
    if path is None:
        return []
    try:
        refuse_other_model(path, read_description(path)["identity"], identity(parse_hf_config(hf_config), actor))
    except CheckpointError as error:
        return [str(error)]
    return []


def identity(shape: ModelShape, actor: ActorConfig) -> dict[str, Any]:
    """What must be the same in a run that resumes: the model, and what decides the kind of optimizer state."""
    own = {"precision": actor.precision, "distributed_optimizer": actor.distributed_optimizer}
    if shape.experts is not None:
        # With expert parallelism Megatron gives the experts an optimizer of their own.
        own["expert_optimizer"] = actor.expert_parallel > 1
    return {**shape_identity(shape), **own}


def shape_identity(shape: ModelShape) -> dict[str, Any]:
    """The model itself, as JSON gives it back: what a checkpoint of weights alone must share."""
    return json.loads(json.dumps(asdict(shape)))


def read_description(path: Path) -> dict[str, Any]:
    """checkpoint.json: step, identity, num_ranks, trainer_state. Raises: CheckpointError if it is missing or torn."""
    try:
        return json.loads((path / DESCRIPTION).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is no complete checkpoint: {DESCRIPTION} is missing; use another") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path / DESCRIPTION} is torn ({error}); use another checkpoint") from error


def write_attachment(path: Path, text: str) -> None:
    """Put the trainer's text into the checkpoint directory `path`."""
    with gzip.open(path / ATTACHMENT, "wt", compresslevel=3, encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def read_attachment(path: Path) -> str:
    """What `write_attachment` wrote; empty where it did not. Raises: CheckpointError if it is torn."""
    try:
        with gzip.open(path / ATTACHMENT, "rt", encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except (OSError, EOFError) as error:
        raise CheckpointError(f"{path / ATTACHMENT} is torn ({error}); use another checkpoint") from error


def refuse_other_model(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises: CheckpointError naming every field that differs."""
    differing = [
        f"{name} is {saved.get(name)!r} there, {value!r} here"
        for name, value in wanted.items()
        if saved.get(name) != value
    ]
    if differing:
        raise CheckpointError(f"{path} was written by another run: {'; '.join(differing)}; set run.dir or actor.model")


def publish(temporary: Path, final: Path, keep: int) -> None:
    """Make a completely written checkpoint the newest, then delete all but the newest `keep`."""
    directory, aside = final.parent, _moved_aside(final)
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        final.rename(aside)  # until the next line is done, `latest_checkpoint` finds it there
    temporary.rename(final)
    pointer = directory / f"{LATEST}.tmp"
    pointer.write_text(final.name + "\n")
    pointer.replace(directory / LATEST)
    _delete_old(directory, keep)


def _delete_old(directory: Path, keep: int) -> None:
    """All but the `keep` checkpoints written last, and what killed processes left."""
    for leftover in [*directory.glob("step_*.tmp"), *directory.glob("step_*.old")]:
        # A writer that outlived its trainer may still be at work in it; then the next call removes the rest.
        shutil.rmtree(leftover, ignore_errors=True)
    complete = [path / DESCRIPTION for path in directory.glob("step_*") if path.name.removeprefix("step_").isdigit()]
    by_age = [path.parent for path in sorted(complete, key=lambda path: path.stat().st_mtime_ns)]
    for path in by_age[:-keep]:
        shutil.rmtree(path)


def _moved_aside(path: Path) -> Path:
    return path.with_name(path.name + ".old")
