"""What a run writes about itself while it trains: config.yaml, metrics.jsonl, a progress line, and W&B if asked for.

The names of metrics that the report draws are listed in report/panels.py.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import yaml
from tqdm import tqdm

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.yaml"
PLACES = ("run.dir", "engine.urls")  # differ in every attempt of a Slurm job
RUNNING_MEAN_STEPS = 10
PLAIN_LINE_EVERY_S = 5.0  # where there is no terminal, at most one line in this time, validations apart
BEFORE_TRAINING = -1  # the step under which a validation of the untrained policy is logged

_SECRET_NAME = re.compile(r"(^|_)(APIKEY|KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)(_|$)", re.IGNORECASE)
_MIN_SECRET_CHARACTERS = 8  # shorter values (a debug "1", say) occur in a config by chance


class MetricsLogger:
    """Appends one JSON object per training step to `<run_dir>/metrics.jsonl`; only rank 0 writes or prints anything.

    Opening it at `start_step` k drops the lines of steps >= k that a killed run left behind, so no step counts twice;
    opening it at 0 starts the file anew.
    A value that is not finite is written as null and counted in `num_nonfinite`; `time/step_s` is the wall time since
    the previous call. Under W&B every attempt of a run is a W&B run of its own, in a group named like `run_dir`.

    Args:
        run_dir: the run's directory; made if it is not there.
        config: a mapping of plain values (`dataclasses.asdict` of the configuration), shown by W&B.
        wandb_mode: disabled | offline | online. offline needs no account.

    Raises:
        ValueError: `wandb_mode` is none of the three, or metrics.jsonl is damaged before its last line.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        config: Mapping[str, Any],
        num_steps: int,
        start_step: int = 0,
        rank: int = 0,
        wandb_mode: str = "disabled",
        wandb_project: str = "megatron-opid",
        stream: TextIO | None = None,
    ) -> None:
        if wandb_mode not in ("disabled", "offline", "online"):
            raise ValueError(f"run.wandb={wandb_mode!r}: set disabled, offline or online")
        self._active = rank == 0
        if not self._active:
            return
        run_dir = Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        kept = keep_steps_before(run_dir / METRICS_FILE, start_step if start_step > 0 else BEFORE_TRAINING)
        self._file = (run_dir / METRICS_FILE).open("a", encoding="utf-8")
        self._progress = Progress(num_steps, start_step, history=kept, stream=stream or sys.stderr)
        self._wandb = None
        if wandb_mode != "disabled":
            self._wandb = _start_wandb(run_dir, config, wandb_mode, wandb_project, start_step)
        self._previous_s = time.monotonic()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record step `step` (from 0) once its update is done; BEFORE_TRAINING records what was measured before any.

        Nested mappings become "outer/inner" names; values are numbers or None. W&B counts updates, that is step + 1.

        Raises:
            TypeError: a value is not a number; the message names it.
        """
        if not self._active:
            return
        now_s = time.monotonic()
        values = flatten(metrics) | {"time/step_s": now_s - self._previous_s}
        self._previous_s = now_s
        num_nonfinite = sum(isinstance(value, float) and not math.isfinite(value) for value in values.values())
        finite = {name: finite_or_none(value) for name, value in values.items()} | {"num_nonfinite": num_nonfinite}
        self._file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log({name: value for name, value in finite.items() if value is not None}, step=step + 1)
        self._progress.update(step, finite)

    def conclude(self, text: str) -> None:
        """End the progress line and print `text` below it."""
        if self._active:
            self._progress.conclude(text)

    def close(self) -> None:
        """End the progress line, W&B and the file."""
        if not self._active:
            return
        self._progress.close()
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Timer:
    """Seconds per named phase: `with timer("score"): ...`, then `take()` gives {"score_s": ...} and starts anew.

    `synchronize` is called at both ends of a phase; on a GPU pass torch.cuda.synchronize, else kernels still running
    are charged to the next phase. `on_phase` is told each phase that begins, and "after ..." when it ends.
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self.on_phase: Callable[[str], None] = lambda phase: None
        self._synchronize = synchronize
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start_s = self._now_s()
        self.on_phase(phase)
        try:
            yield
        finally:
            self._seconds[f"{phase}_s"] += self._now_s() - start_s
            self.on_phase(f"after {phase}")

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call; a phase entered twice has its sum."""
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken

    def _now_s(self) -> float:
        if self._synchronize is not None:
            self._synchronize()
        return time.perf_counter()


class Progress:
    """The live line: a tqdm bar on a terminal, now and then a plain line elsewhere."""

    def __init__(self, num_steps: int, start_step: int, *, history: list[dict[str, Any]], stream: TextIO) -> None:
        self._stream = stream
        self._start_step, self._num_steps = start_step, num_steps
        self._start_s = time.monotonic()
        self._printed_s = -PLAIN_LINE_EVERY_S
        rates = [line.get("rollout/success_rate") for line in history]
        self._rates = deque((rate for rate in rates if rate is not None), maxlen=RUNNING_MEAN_STEPS)
        self._bar = None
        if stream.isatty():
            bar = "{percentage:3.0f}%|{bar:12}| step {n_fmt}/{total_fmt} {rate_inv_fmt} ETA {remaining}{postfix}"
            self._bar = tqdm(
                total=num_steps, initial=start_step, file=stream, unit="step", bar_format=bar, dynamic_ncols=True
            )

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show step `step`, whose flat metrics these are."""
        if (rate := metrics.get("rollout/success_rate")) is not None:
            self._rates.append(rate)
        text = self._text(metrics)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step + 1 - self._bar.n)
            return
        now_s = time.monotonic()
        is_news = step + 1 in (self._start_step + 1, self._num_steps) or "validation/success_rate" in metrics
        if not is_news and now_s - self._printed_s < PLAIN_LINE_EVERY_S:
            return
        self._printed_s = now_s
        print(f"step {step + 1}/{self._num_steps}  {text}{self._pace(step, now_s)}", file=self._stream, flush=True)

    def conclude(self, text: str) -> None:
        """End the line and print `text` below it."""
        self.close()
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _pace(self, step: int, now_s: float) -> str:
        """Empty as long as no step was done."""
        num_done = step + 1 - self._start_step
        if num_done == 0:
            return ""
        seconds_per_step = (now_s - self._start_s) / num_done
        eta = tqdm.format_interval(seconds_per_step * (self._num_steps - step - 1))
        return f"  {seconds_per_step:.2f} s/step  ETA {eta}"

    def _text(self, metrics: Mapping[str, Any]) -> str:
        parts = []
        if self._rates:
            parts.append(f"success {sum(self._rates) / len(self._rates):.1%} (mean of {len(self._rates)})")
        if (rate := metrics.get("validation/success_rate")) is not None:
            parts.append(f"validation {rate:.1%}")
        for label, name in (("loss", "actor/loss"), ("kl", "actor/reference_kl"), ("entropy", "actor/entropy")):
            if (value := metrics.get(name)) is not None:
                parts.append(f"{label} {value:.4g}")
        return "  ".join(parts)


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float | int | None]:
    """{"time": {"score_s": 1.5}} -> {"time/score_s": 1.5}. 0-d arrays and tensors become Python numbers.

    Raises:
        TypeError: a value is neither a number, None nor a mapping.
    """
    flat: dict[str, float | int | None] = {}
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}/")
            continue
        if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
            value = value.item()
        if isinstance(value, bool):
            value = int(value)
        if value is not None and not isinstance(value, int | float):
            raise TypeError(f"metric {name!r} is {value!r}; metrics are numbers, None or mappings of these")
        flat[name] = value
    return flat


def finite_or_none(value: float | int | None) -> float | int | None:
    """`value`, or None for NaN and infinities, which JSON has no token for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in file order. A last line cut short by a kill is left out; no file gives [].

    Raises:
        ValueError: a line before the last is not JSON.
    """
    path = Path(path)
    if not path.exists():
        return []
    *whole, _torn = path.read_text(encoding="utf-8").split("\n")
    lines = []
    for number, text in enumerate(whole, start=1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number} is not JSON ({error}); repair or remove that line") from error
    return lines


def keep_steps_before(path: Path, start_step: int) -> list[dict[str, Any]]:
    """Rewrite a metrics.jsonl, atomically, to its lines of steps < `start_step`; returns them."""
    kept = [line for line in read_metrics(path) if line["step"] < start_step]
    write_atomically(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept))
    return kept


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a kill at any moment leaves the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # a model may write half of a surrogate pair; \udXXX is then both encodable and the right JSON escape
    with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def save_config(run_dir: str | Path, config: Any, start_step: int = 0) -> dict[str, Any]:
    """Write a configuration dataclass to `<run_dir>/config.yaml`; returns the mapping written, for `MetricsLogger`.

    Where a string holds the value of an environment variable that is named like a secret (an interpolated API key),
    `$NAME` is written in place of that value. A run that resumes with other settings says which, and keeps those that
    the `start_step` steps before were made by in `config_until_step_<start_step>.yaml`.
    """
    path = Path(run_dir) / CONFIG_FILE
    mapping = _without_secrets(asdict(config))
    text = yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True)
    if start_step and path.is_file() and (changes := _changes(before := path.read_text(), text)):
        write_atomically(path.with_name(f"config_until_step_{start_step}.yaml"), before)
        print(f"resuming at step {start_step} with other settings: {', '.join(changes)}", file=sys.stderr, flush=True)
    write_atomically(path, text)
    return mapping


def _changes(before: str, after: str) -> list[str]:
    """What YAML `after` sets otherwise than `before`, but for PLACES, as `section.key=new (was old)`."""
    old, new = (dict(_settings(yaml.safe_load(text), "")) for text in (before, after))
    changed = [key for key in new if old.get(key) != new[key] and key not in PLACES]
    return [f"{key}={new[key]!r} (was {old.get(key)!r})" for key in changed]


def _settings(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(item) for item in value]
    if isinstance(value, str):
        for name, secret in os.environ.items():
            if _SECRET_NAME.search(name) and len(secret) >= _MIN_SECRET_CHARACTERS:
                value = value.replace(secret, f"${name}")
    return value


def _start_wandb(run_dir: Path, config: Mapping[str, Any], mode: str, project: str, start_step: int) -> Any:
    import wandb  # slow to import, and not needed when disabled

    # W&B's own logs would go to the home directory; no setting of wandb.Settings moves them
    os.environ.setdefault("WANDB_CACHE_DIR", str(run_dir / "wandb" / "cache"))
    return wandb.init(
        project=project,
        group=run_dir.resolve().name,
        name=f"{run_dir.resolve().name}-from-step-{start_step}",
        dir=str(run_dir),
        config=_without_secrets(config),
        mode=mode,
        # the "meta" record holds command-line arguments and SLURM_* environment variables
        settings=wandb.Settings(console="off", save_code=False, disable_git=True, silent=True, x_disable_meta=True),
    )
