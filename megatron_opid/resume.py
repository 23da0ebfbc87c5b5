"""Whether a run directory holds the run that is being started: the same job on the same initial weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from megatron_opid.actor.checkpoint_directory import CheckpointError, latest_checkpoint, read_description
from megatron_opid.config import Config, resolve_model

SAMPLED_BYTES = 1 << 16


def job_identity(entry_point: str, config: Config) -> dict[str, str | int]:
    """What must be the same in a run that resumes; kept in its checkpoints beside what the actor keeps."""
    return {
        "entry_point": entry_point,
        "initial weights": weights_fingerprint(resolve_model(config.actor.weights or config.actor.model)),
        "algorithm.name": config.algorithm.name,
        "env.name": config.env.name,
        "run.seed": config.run.seed,
    }


def resume_faults(entry_point: str, config: Config) -> list[str]:
    """Why the run in `config.run.dir` cannot go on as this job; empty where it can, or where nothing is there yet."""
    path = latest_checkpoint(Path(config.run.dir) / "checkpoints")
    if path is None:
        return []
    try:
        state = read_description(path)["trainer_state"]
    except CheckpointError as error:
        return [str(error)]
    faults = [
        f"run.dir={config.run.dir!r} holds another run: its {name} is {state['job'].get(name)!r}, here {value!r}; "
        "set another run.dir"
        for name, value in job_identity(entry_point, config).items()
        if state["job"].get(name) != value
    ]
    if not faults and state["step"] > config.run.num_steps:
        faults.append(
            f"run.dir={config.run.dir!r} is at step {state['step']}, beyond run.num_steps={config.run.num_steps}; "
            "set more steps or another run.dir"
        )
    return faults


def weights_fingerprint(directory: Path) -> str:
    """A digest of the weight files' names, sizes, first and last bytes: tells models apart without reading all."""
    digest = hashlib.sha256()
    for path in sorted([*directory.glob("*.safetensors"), *directory.rglob("*.distcp")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLED_BYTES))
            file.seek(max(0, size - SAMPLED_BYTES))
            digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()[:16]
