"""A model's files on the node's own disk: `python -m slurm.stage MODEL SCRATCH` copies them once a node, prints where.

Hundreds of ranks that read the same files over the network at once are slow; one copy a node is not. The copy is named
after the files' sizes and times, appears whole or not at all, and serves every later job on the node.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time
from pathlib import Path

BLOCK_BYTES = 64 << 20
PROGRESS_EVERY_S = 5.0


class StageError(OSError):
    """The model cannot be copied; the message says what to set."""


def stage(model: Path, scratch: Path) -> Path:
    """Where the node's copy of the directory `model` lies below `scratch`; made if it is not there yet.

    Raises:
        StageError: `model` is no directory, or `scratch` has not the room.
    """
    if not model.is_dir():
        raise StageError(f"{model} is no directory; set actor.model or MODELS_ROOT")
    files = sorted(path for path in model.iterdir() if path.is_file())
    target = scratch / f"megatron_opid_{os.getuid()}" / "models" / f"{model.name}-{_identity(model, files)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another job on this node may be copying it
        if not target.is_dir():
            _copy(files, target)
    return target


def _copy(files: list[Path], target: Path) -> None:
    num_bytes = sum(path.stat().st_size for path in files)
    free_bytes = shutil.disk_usage(target.parent).free
    if num_bytes > free_bytes:
        raise StageError(
            f"{target.parent} has {free_bytes / 1e9:.1f} GB free, the model needs {num_bytes / 1e9:.1f}; "
            "set LOCAL_SCRATCH to a larger disk, or STAGE_MODELS=0"
        )
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    done_bytes, started_s = 0, time.monotonic()
    printed_s = started_s
    for path in files:
        with path.open("rb") as source, (partial / path.name).open("wb") as copy:
            while block := source.read(BLOCK_BYTES):
                copy.write(block)
                done_bytes += len(block)
                now_s = time.monotonic()
                if now_s - printed_s > PROGRESS_EVERY_S:
                    printed_s = now_s
                    _report(f"{done_bytes / 1e9:.1f} of {num_bytes / 1e9:.1f} GB", done_bytes, now_s - started_s)
    partial.rename(target)
    _report(f"staged {target}", done_bytes, time.monotonic() - started_s)


def _report(what: str, done_bytes: int, seconds: float) -> None:
    rate = done_bytes / 1e9 / max(seconds, 1e-9)
    print(f"{os.uname().nodename}: {what}, {rate:.2f} GB/s", file=sys.stderr, flush=True)


def _identity(model: Path, files: list[Path]) -> str:
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((str(model.resolve()), stats)).encode()).hexdigest()[:12]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 2:
        print(f"usage: python -m slurm.stage MODEL SCRATCH; got {arguments}", file=sys.stderr)
        return 2
    try:
        print(stage(Path(arguments[0]), Path(arguments[1])))
    except StageError as error:
        print(f"slurm.stage: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
