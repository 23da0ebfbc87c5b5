"""Which metrics the report draws, and how: each panel becomes one chart. This is the list of metric names to log.

Fractions are in [0, 1], log-probs in nats, durations in seconds. The x axis counts training steps done: a step's
episodes were played by the weights after `step` steps, a validation logged with step s measures those after s + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_opid.metrics import BEFORE_TRAINING, RUNNING_MEAN_STEPS
from megatron_opid.report.statistics import running_mean, wilson_interval

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Curve:
    """One line of a chart. `style`: line | thin | points | area. `lower` and `upper`, if given, bound a band."""

    name: str
    x: list[int]
    y: list[float]
    style: str = "line"
    color: int = 0  # index into the page's palette; curves of one colour belong together
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """One chart. `unit` labels the y axis; "fraction" is drawn from 0 to 100%, "small fraction" in % as needed."""

    title: str
    unit: str
    curves: list[Curve]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and its charts. `zero`: the titles of those that would show nothing but zeros, which are named only."""

    title: str
    panels: list[Panel]
    zero: list[str] = field(default_factory=list)


# (title, unit, {metric name: legend}) of the charts that draw metrics as they are
_PlainPanel = tuple[str, str, dict[str, str]]

_ACTOR: list[_PlainPanel] = [
    (
        "Loss",
        "nats per token",
        {"actor/loss": "total", "actor/policy_loss": "policy", "actor/distillation_loss": "distillation"},
    ),
    ("KL to the reference", "nats per token", {"actor/reference_kl": "kl"}),
    ("Entropy", "nats per token", {"actor/entropy": "entropy"}),
    ("Gradient norm, before clipping", "L2 norm", {"actor/grad_norm": "norm"}),
    ("Clipped tokens", "small fraction", {"actor/clip_fraction": "clipped", "actor/dual_clip_fraction": "dual clip"}),
    ("Learning rate", "rate", {"actor/learning_rate": "learning rate"}),
]
_EPISODES: list[_PlainPanel] = [
    (
        "Actions",
        "fraction",
        {"rollout/valid_action_share": "of the right form", "rollout/admissible_action_share": "possible in the game"},
    ),
    ("Responses cut at the token limit", "small fraction", {"rollout/cut_response_share": "cut"}),
    ("Episode length", "agent steps", {"rollout/steps_mean": "mean"}),
    ("Response length", "tokens per agent step", {"rollout/response_tokens_mean": "mean"}),
    ("Episodes lost to faults", "episodes per step", {"rollout/num_failed_episodes": "faults"}),
    ("Generation speed", "response tokens per second", {"rollout/response_tokens_per_s": "speed"}),
]
_TEACHER: list[_PlainPanel] = [
    (
        "Teacher delta: log-prob with skill − without",
        "nats per token",
        {"teacher/delta_mean": "mean", "teacher/delta_abs_mean": "mean of |delta|", "teacher/delta_std": "deviation"},
    ),
    (
        "Mean teacher delta by outcome",
        "nats per token",
        {"teacher/delta_mean_won": "won episodes", "teacher/delta_mean_lost": "lost episodes"},
    ),
    ("Tokens with a teacher term", "fraction", {"teacher/scored_fraction": "scored"}),
]
_MISMATCH: list[_PlainPanel] = [
    ("Mean |engine − trainer| log-prob, same tokens", "nats per token", {"mismatch/logprob_abs_mean": "mean"}),
    ("Largest |engine − trainer| log-prob", "nats", {"mismatch/logprob_abs_max": "largest"}),
    ("Tokens that differ much", "small fraction", {"mismatch/large_share": "share"}),
]
_ANALYZER: list[_PlainPanel] = [
    (
        "Analyses",
        "analyses per step",
        {
            "analyzer/analyses": "all",
            "analyzer/cache_hits": "from cache",
            "analyzer/failures": "failed",
        },
    ),
    (
        "Tokens",
        "tokens per step",
        {"analyzer/prompt_tokens": "prompt", "analyzer/completion_tokens": "completion"},
    ),
    (
        "Latency of one analysis",
        "seconds",
        {"analyzer/latency_mean_s": "mean", "analyzer/latency_p95_s": "95th percentile"},
    ),
]


def sections(lines: Lines) -> list[Section]:
    """The charts of one run from the lines of its metrics.jsonl; what was not logged is left out."""
    found = [
        Section("Learning", _learning(lines)),
        _plain_section(lines, "Optimisation", _ACTOR),
        _plain_section(lines, "Episodes", _EPISODES),
        _plain_section(lines, "Skill teacher", _TEACHER),
        _plain_section(lines, "Engine and trainer", _MISMATCH),
        _plain_section(lines, "Analyzer", _ANALYZER),
        Section("Time", _time(lines)),
    ]
    return [section for section in found if section.panels or section.zero]


def series(lines: Lines, name: str, *, shift: int = 0) -> tuple[list[int], list[float]]:
    """(steps + shift, values) of one metric, where it was logged and finite."""
    pairs = [(line["step"] + shift, line[name]) for line in lines if line.get(name) is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


def every_series(lines: Lines) -> dict[str, tuple[list[int], list[float]]]:
    """(steps done, values) of each metric, by name."""
    return {name: series(lines, name, shift=int(name.startswith("validation/"))) for name in metric_names(lines)}


def training_success(lines: Lines) -> tuple[list[int], list[float]]:
    """(steps done, success rate of the training episodes)."""
    return series(lines, "rollout/success_rate")


def validation_success(lines: Lines) -> tuple[list[int], list[float]]:
    """(steps done, success rate of the validation episodes)."""
    return series(lines, "validation/success_rate", shift=1)


def num_played(line: Mapping[str, Any]) -> int:
    """Validation episodes behind the line's success rate: those that no fault ended; 0 where it was not logged."""
    return int((line.get("validation/num_episodes") or 0) - (line.get("validation/num_failed_episodes") or 0))


def metric_names(lines: Lines) -> list[str]:
    """Every metric that any line has, sorted."""
    return sorted({name for line in lines for name in line} - {"step"})


def _learning(lines: Lines) -> list[Panel]:
    x, y = training_success(lines)
    training = [
        Curve("each step", x, y, "thin"),
        Curve(f"mean of {RUNNING_MEAN_STEPS} steps", x, running_mean(y, RUNNING_MEAN_STEPS)),
    ]
    panels = [
        Panel("Training success", "fraction", training),
        Panel("Validation success", "fraction", [_validation_curve(lines)], "Band: 95% Wilson interval."),
        Panel(
            "Training success by task type",
            "fraction",
            _by_category(lines, "rollout/success_rate/", smooth=True),
            f"Means of {RUNNING_MEAN_STEPS} steps.",
        ),
        Panel(
            "Validation success by task type",
            "fraction",
            _by_category(lines, "validation/success_rate/", smooth=False),
        ),
    ]
    return [panel for panel in panels if any(curve.y for curve in panel.curves)]


def _validation_curve(lines: Lines) -> Curve:
    x, y = validation_success(lines)
    counts = [num_played(line) for line in lines if line.get("validation/success_rate") is not None]
    if not all(counts):
        return Curve("validation", x, y, "points")
    bounds = [wilson_interval(rate, count) for rate, count in zip(y, counts, strict=True)]
    return Curve(
        "validation", x, y, "points", lower=[lower for lower, _ in bounds], upper=[upper for _, upper in bounds]
    )


def _by_category(lines: Lines, prefix: str, *, smooth: bool) -> list[Curve]:
    curves = []
    for color, name in enumerate(name for name in metric_names(lines) if name.startswith(prefix)):
        x, y = series(lines, name, shift=0 if smooth else 1)
        shown = running_mean(y, RUNNING_MEAN_STEPS) if smooth else y
        curves.append(Curve(name.removeprefix(prefix), x, shown, "line" if smooth else "points", color))
    return curves


def _plain_section(lines: Lines, heading: str, specifications: list[_PlainPanel]) -> Section:
    panels, zero = [], []
    for title, unit, legends in specifications:
        curves = [
            Curve(legend, *series(lines, name), color=color) for color, (name, legend) in enumerate(legends.items())
        ]
        drawn = [curve for curve in curves if curve.y]
        if any(any(curve.y) for curve in drawn):
            panels.append(Panel(title, unit, drawn))
        elif drawn:
            zero.append(title)
    return Section(heading, panels, zero)


def _time(lines: Lines) -> list[Panel]:
    """Phases stacked on each other; `other` is what is left of the step's wall time."""
    phases = [name for name in metric_names(lines) if name.startswith("time/") and name != "time/step_s"]
    training = [line for line in lines if line["step"] > BEFORE_TRAINING]
    timed = [line for line in training if any(line.get(name) is not None for name in phases)]
    if not timed:
        return []
    x = [line["step"] for line in timed]
    curves = [
        Curve(phase_label(name), x, [line.get(name) or 0.0 for line in timed], "area", color)
        for color, name in enumerate(phases)
    ]
    other = [max(0.0, (line.get("time/step_s") or 0.0) - sum(line.get(n) or 0.0 for n in phases)) for line in timed]
    curves.append(Curve("other", x, other, "area", len(phases)))
    return [Panel("Time per phase", "seconds per step", curves, "Stacked; the top edge is the wall time of the step.")]


def phase_label(name: str) -> str:
    """ "time/score_s" -> "score"."""
    return name.removeprefix("time/").removesuffix("_s").replace("_", " ")
