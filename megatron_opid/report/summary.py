"""The few facts at the head of a report."""

from __future__ import annotations

from megatron_opid.metrics import RUNNING_MEAN_STEPS
from megatron_opid.report.panels import Lines, num_played, series, training_success, validation_success
from megatron_opid.report.records import RunRecord
from megatron_opid.report.statistics import wilson_interval


def success_sentence(lines: Lines) -> str:
    """Validation success before and after, with 95% intervals; training success where nothing was validated."""
    steps, _ = validation_success(lines)
    if steps:
        first, last = _validation_text(lines, 0), _validation_text(lines, -1)
        if len(steps) == 1:
            return f"Validation success {last} after {steps[0]} steps"
        return f"Validation success {first} → {last} after {steps[-1]} steps"
    _, rates = training_success(lines)
    if rates:
        last = rates[-RUNNING_MEAN_STEPS:]
        return f"Training success {sum(last) / len(last):.1%} (mean of the last {len(last)} steps)"
    return "No success rate was logged"


def run_facts(run: RunRecord) -> list[tuple[str, str]]:
    """(name, value) pairs: what was trained, on what, for how long."""
    facts = [
        (label, str(run.config[section][key]))
        for label, section, key in (
            ("Algorithm", "algorithm", "name"),
            ("Environment", "env", "name"),
            ("Model", "actor", "model"),
            ("Analyzer", "skills", "analyzer"),
            ("Seed", "run", "seed"),
        )
        if run.config.get(section, {}).get(key) not in (None, "")
    ]
    facts.append(("Training steps", str(len(training_success(run.metrics)[0]))))
    _, episodes = series(run.metrics, "rollout/num_episodes")
    if episodes:
        facts.append(("Training episodes", f"{sum(episodes):,.0f}"))
    _, seconds = series(run.metrics, "time/step_s")
    facts.append(("Duration", duration_text(sum(seconds))))
    _, nonfinite = series(run.metrics, "num_nonfinite")
    if sum(nonfinite):
        facts.append(("Values not finite", f"{sum(nonfinite):.0f}"))
    return facts


def duration_text(seconds: float) -> str:
    """ "2 h 03 min", "12 min 08 s" or "8.1 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _validation_text(lines: Lines, position: int) -> str:
    line = [line for line in lines if line.get("validation/success_rate") is not None][position]
    rate, count = line["validation/success_rate"], num_played(line)
    if not count:
        return f"{rate:.1%}"
    lower, upper = wilson_interval(rate, count)
    return f"{rate:.1%} (95% CI {100 * lower:.0f}–{100 * upper:.0f}%)"
