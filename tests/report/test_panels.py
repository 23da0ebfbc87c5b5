"""Metrics to charts."""

from __future__ import annotations

from megatron_opid.metrics import read_metrics
from megatron_opid.report.panels import every_series, sections, validation_success
from megatron_opid.report.statistics import wilson_interval
from megatron_opid.report.summary import duration_text, success_sentence
from tests.report.synthetic_run import write_synthetic_run


def _panels(lines) -> dict:
    return {panel.title: panel for section in sections(lines) for panel in section.panels}


def test_every_chart_is_drawn_from_a_full_run(tmp_path):
    lines = read_metrics(write_synthetic_run(tmp_path, num_steps=10) / "metrics.jsonl")
    titles = [section.title for section in sections(lines)]
    assert titles == [
        "Learning",
        "Optimisation",
        "Episodes",
        "Skill teacher",
        "Engine and trainer",
        "Analyzer",
        "Time",
    ]
    assert all(len(curve.x) == len(curve.y) > 0 for panel in _panels(lines).values() for curve in panel.curves)


def test_k3_is_the_name_of_engine_against_trainer_alone(tmp_path):
    panels = _panels(read_metrics(write_synthetic_run(tmp_path, num_steps=2) / "metrics.jsonl"))
    assert [curve.name for curve in panels["KL to the reference"].curves] == ["kl"]


def test_nothing_logged_nothing_drawn():
    assert sections([]) == []
    assert success_sentence([]) == "No success rate was logged"


def test_validation_counts_steps_and_has_its_interval():
    lines = [
        {
            "step": -1,
            "validation/success_rate": 0.25,
            "validation/num_episodes": 42,
            "validation/num_failed_episodes": 2,
        },
        {"step": 9, "rollout/success_rate": 0.5, "validation/success_rate": 0.5, "validation/num_episodes": 40},
    ]
    assert validation_success(lines) == ([0, 10], [0.25, 0.5])
    (curve,) = _panels(lines)["Validation success"].curves
    assert list(zip(curve.lower, curve.upper, strict=True)) == [wilson_interval(0.25, 40), wilson_interval(0.5, 40)]
    assert every_series(lines)["validation/num_episodes"] == ([0, 10], [42, 40])
    assert every_series(lines)["rollout/success_rate"] == ([9], [0.5])
    assert success_sentence(lines) == (
        "Validation success 25.0% (95% CI 14–40%) → 50.0% (95% CI 35–65%) after 10 steps"
    )


def test_what_is_zero_at_every_step_is_named_and_not_drawn():
    lines = [
        {"step": step, "rollout/num_failed_episodes": 0, "rollout/steps_mean": 9.0, "mismatch/large_share": 0.0}
        for step in range(3)
    ]
    episodes, mismatch = sections(lines)
    assert [panel.title for panel in episodes.panels] == ["Episode length"]
    assert episodes.zero == ["Episodes lost to faults"]
    assert (mismatch.panels, mismatch.zero) == ([], ["Tokens that differ much"])
    lines[1]["rollout/num_failed_episodes"] = 1
    assert sections(lines)[0].zero == []


def test_null_values_leave_a_gap_instead_of_a_zero():
    lines = [{"step": 0, "actor/loss": 1.0}, {"step": 1, "actor/loss": None}, {"step": 2, "actor/loss": 3.0}]
    (curve,) = _panels(lines)["Loss"].curves
    assert (curve.x, curve.y) == ([0, 2], [1.0, 3.0])


def test_time_stack_adds_up_to_the_wall_time():
    lines = [{"step": 0, "time/rollout_s": 2.0, "time/update_s": 1.0, "time/step_s": 3.5}]
    curves = _panels(lines)["Time per phase"].curves
    assert [(curve.name, curve.y) for curve in curves] == [("rollout", [2.0]), ("update", [1.0]), ("other", [0.5])]


def test_duration_text():
    assert [duration_text(s) for s in (8.12, 728, 7380)] == ["8.1 s", "12 min 08 s", "2 h 03 min"]
