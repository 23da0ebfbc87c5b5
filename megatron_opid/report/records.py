"""The files of a run that the report reads, and the functions that write them.

trajectories/step_000010.jsonl           one trajectory per line (rollout.trajectory.to_json)
trajectories/step_000010.tokens.jsonl    one TokenScores per line
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_opid.metrics import CONFIG_FILE, METRICS_FILE, finite_or_none, read_metrics, write_atomically
from rollout.trajectory import Trajectory, from_json

TRAJECTORIES_DIR = "trajectories"
_SIGNIFICANT_DIGITS = 6


@dataclass(frozen=True)
class TokenScores:
    """How one skill changed the log-probs of one response: agent step `index` of trajectory `uid`.

    `level` is "episode" or "step", `skill` the text added to the prompt. Per response token: its text, log π_old
    without the skill, the teacher's log-prob with it (natural log), and the advantage that it was trained with.

    Raises:
        ValueError: the per-token tuples differ in length, or `level` is unknown.
    """

    uid: str
    index: int
    level: str
    skill: str
    token_texts: tuple[str, ...]
    old_logprobs: tuple[float, ...]
    teacher_logprobs: tuple[float, ...]
    advantages: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.level not in ("episode", "step"):
            raise ValueError(f"token scores of {self.uid} step {self.index}: level={self.level!r}, not episode or step")
        lengths = {
            name: len(getattr(self, name)) for name in ("token_texts", "old_logprobs", "teacher_logprobs", "advantages")
        }
        if len(set(lengths.values())) != 1:
            raise ValueError(f"token scores of {self.uid} step {self.index}: lengths differ: {lengths}")


@dataclass(frozen=True)
class SavedStep:
    """The trajectories of one training step, and the token scores of those steps that were scored."""

    step: int
    trajectories: tuple[Trajectory, ...]
    scores: dict[tuple[str, int], tuple[TokenScores, ...]]  # by (uid, agent step)


@dataclass(frozen=True)
class RunRecord:
    """What a run directory says of its run; parts not there are empty. `config_text` is the YAML as written."""

    name: str
    config_text: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    saved_steps: tuple[SavedStep, ...]


def trajectories_path(run_dir: str | Path, step: int) -> Path:
    """Where the trajectories of training step `step` are kept."""
    return Path(run_dir) / TRAJECTORIES_DIR / f"step_{step:06d}.jsonl"


def token_scores_path(run_dir: str | Path, step: int) -> Path:
    """Where the token scores of training step `step` are kept."""
    return Path(run_dir) / TRAJECTORIES_DIR / f"step_{step:06d}.tokens.jsonl"


def write_token_scores(path: Path, records: Iterable[TokenScores]) -> None:
    """Write one record per line, atomically; numbers keep 6 significant digits, those not finite become null."""
    write_atomically(path, "".join(_token_scores_line(record) + "\n" for record in records))


def read_run(run_dir: str | Path) -> RunRecord:
    """Read a run directory.

    Raises:
        ValueError: the directory has no metrics.jsonl, or a file in it is damaged.
    """
    run_dir = Path(run_dir)
    if not (run_dir / METRICS_FILE).is_file():
        raise ValueError(f"{run_dir} is not a run directory: it has no {METRICS_FILE}")
    config_path = run_dir / CONFIG_FILE
    config_text = config_path.read_text(encoding="utf-8") if config_path.exists() else ""
    paths = sorted((run_dir / TRAJECTORIES_DIR).glob("step_*.jsonl"))
    steps = [int(match[1]) for path in paths if (match := re.fullmatch(r"step_(\d+)\.jsonl", path.name))]
    return RunRecord(
        name=run_dir.resolve().name,
        config_text=config_text,
        config=yaml.safe_load(config_text) or {},
        metrics=read_metrics(run_dir / METRICS_FILE),
        saved_steps=tuple(_read_step(run_dir, step) for step in steps),
    )


def _read_step(run_dir: Path, step: int) -> SavedStep:
    trajectories = tuple(from_json(line) for line in _lines(trajectories_path(run_dir, step)))
    scores: dict[tuple[str, int], tuple[TokenScores, ...]] = {}
    for line in _lines(token_scores_path(run_dir, step)):
        record = TokenScores(**json.loads(line))
        key = (record.uid, record.index)
        scores[key] = (*scores.get(key, ()), record)
    return SavedStep(step, trajectories, scores)


def _lines(path: Path) -> list[str]:
    # split on "\n" only: str.splitlines also breaks at U+2028 and its like, which JSON leaves unescaped in strings
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line] if path.exists() else []


def _token_scores_line(record: TokenScores) -> str:
    data = asdict(record)
    for name in ("old_logprobs", "teacher_logprobs", "advantages"):
        data[name] = [finite_or_none(float(f"{value:.{_SIGNIFICANT_DIGITS}g}")) for value in data[name]]
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
