"""Several arms, each over several seeds: mean and spread of success, as a page or as a static picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_opid.metrics import METRICS_FILE, RUNNING_MEAN_STEPS, read_metrics, write_atomically
from megatron_opid.report.html import render_page
from megatron_opid.report.panels import Curve, Lines, Panel, Section, training_success, validation_success
from megatron_opid.report.statistics import mean_and_deviation, running_mean

_SPREAD = "Line: mean over seeds. Band: ± 1 standard deviation."


@dataclass(frozen=True)
class Arm:
    """One way of training: the metrics of its runs, one per seed."""

    name: str
    runs: tuple[Lines, ...]


def parse_arm(text: str) -> Arm:
    """Read the arm written as NAME=RUN_DIR[,RUN_DIR...].

    Raises:
        ValueError: no name, no directory, or a directory without metrics.
    """
    name, separator, directories = text.partition("=")
    if not (name and separator and directories):
        raise ValueError(f"--compare {text!r}: write NAME=RUN_DIR[,RUN_DIR...]")
    runs = []
    for directory in directories.split(","):
        lines = read_metrics(Path(directory) / METRICS_FILE)
        if not lines:
            raise ValueError(f"--compare {name}: {directory!r} has no {METRICS_FILE} with lines")
        runs.append(lines)
    return Arm(name, tuple(runs))


def write_comparison(arms: Sequence[Arm], out: Path) -> Path:
    """Write the comparison as .html (charts and a table), .svg or .png (charts only); returns `out`.

    Raises:
        ValueError: another ending, or nothing to draw.
    """
    panels = [panel for panel in _panels(arms) if panel.curves]
    if not panels:
        raise ValueError("--compare: none of the runs logged a success rate")
    if out.suffix == ".html":
        page = render_page(
            title=" vs ".join(arm.name for arm in arms),
            headline="",
            facts=[],
            chart_sections=[Section("Success", panels)],
            data={},
            table=summary_table(arms),
        )
        write_atomically(out, page)
    elif out.suffix in (".svg", ".png"):
        _draw_picture(panels, out)
    else:
        raise ValueError(f"--out {out}: end it in .html, .svg or .png")
    return out


def mean_curve(name: str, runs: Sequence[tuple[list[int], list[float]]], color: int) -> Curve:
    """Mean of several (x, y) series at those x that all of them have, with mean ± standard deviation as the band."""
    by_x = [dict(zip(x, y, strict=True)) for x, y in runs]
    shared = sorted(set.intersection(*(set(values) for values in by_x)))
    statistics = [mean_and_deviation([values[x] for values in by_x]) for x in shared]
    return Curve(
        name=f"{name} ({len(runs)} seed{'s' if len(runs) > 1 else ''})",
        x=shared,
        y=[mean for mean, _ in statistics],
        color=color,
        lower=[max(0.0, mean - deviation) for mean, deviation in statistics],
        upper=[min(1.0, mean + deviation) for mean, deviation in statistics],
    )


def summary_table(arms: Sequence[Arm]) -> list[list[str]]:
    """Header and one row per arm: first and last validation success and the gain, mean ± standard deviation."""
    rows = [["arm", "seeds", "validation before", "after", "gain, points"]]
    for arm in arms:
        rates = [rates for _, rates in map(validation_success, arm.runs) if len(rates) > 1]
        cells = ["–", "–", "–"]
        if len(rates) == len(arm.runs):
            gains = [100 * (run[-1] - run[0]) for run in rates]
            cells = [_percent([run[0] for run in rates]), _percent([run[-1] for run in rates]), _points(gains)]
        rows.append([arm.name, str(len(arm.runs)), *cells])
    return rows


def _panels(arms: Sequence[Arm]) -> list[Panel]:
    smoothed = f"Means of {RUNNING_MEAN_STEPS} steps. {_SPREAD}"
    return [
        Panel("Training success", "fraction", _curves(arms, _smooth_training), smoothed),
        Panel("Validation success", "fraction", _curves(arms, validation_success), _SPREAD),
    ]


def _curves(arms: Sequence[Arm], read: Callable[[Lines], tuple[list[int], list[float]]]) -> list[Curve]:
    curves = [mean_curve(arm.name, [read(run) for run in arm.runs], color) for color, arm in enumerate(arms)]
    return [curve for curve in curves if curve.x]


def _smooth_training(lines: Lines) -> tuple[list[int], list[float]]:
    x, y = training_success(lines)
    return x, running_mean(y, RUNNING_MEAN_STEPS)


def _draw_picture(panels: Sequence[Panel], out: Path) -> None:
    from matplotlib.figure import Figure  # only pictures need it; Figure alone keeps pyplot's global state out
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for curve in panel.curves:
            color = f"C{curve.color}"
            axes.plot(curve.x, curve.y, color=color, label=curve.name, marker="o" if len(curve.x) == 1 else None)
            axes.fill_between(curve.x, curve.lower, curve.upper, color=color, alpha=0.18, linewidth=0)
        axes.set(title=panel.title, xlabel="training steps", ylim=(0, 1))
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(out, dpi=144, facecolor="white", metadata={"Date": None} if out.suffix == ".svg" else None)


def _percent(rates: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(rates)
    return f"{100 * mean:.1f} ± {100 * deviation:.1f} %"


def _points(gains: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(gains)
    return f"{mean:+.1f} ± {deviation:.1f}"
