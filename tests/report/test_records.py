"""Files of a run: what is written is read again, exactly, whatever the text."""

from __future__ import annotations

import json

import pytest

from megatron_opid.report.records import (
    TokenScores,
    read_run,
    token_scores_path,
    trajectories_path,
    write_token_scores,
)
from tests.report.synthetic_run import write_synthetic_run


def _scores(**changes) -> TokenScores:
    fields = {
        "uid": "a",
        "index": 0,
        "level": "step",
        "skill": "look first\u2028then </script>",
        "token_texts": ("x\u2028", "\n"),
        "old_logprobs": (-1.25, -0.5),
        "teacher_logprobs": (-1.0, -0.75),
        "advantages": (0.123456789, -2e-9),
    }
    return TokenScores(**(fields | changes))


def test_a_run_is_read_as_it_was_written(tmp_path):
    write_synthetic_run(tmp_path, num_steps=20, num_episodes=4)
    run = read_run(tmp_path)
    assert [saved.step for saved in run.saved_steps] == [9, 19]
    assert [line["step"] for line in run.metrics] == list(range(-1, 20))
    assert run.config["algorithm"]["name"] == "opid"
    for saved in run.saved_steps:
        assert [trajectory.uid for trajectory in saved.trajectories] == [f"{saved.step}-{i}" for i in range(4)]
        # trajectory 3 has no skills, and agent step 1 of the others was left unscored
        expected = {(t.uid, i) for t in saved.trajectories[:3] for i in range(len(t.steps)) if i != 1}
        assert set(saved.scores) == expected


def test_token_scores_round_to_six_digits_and_keep_strict_json(tmp_path):
    path = token_scores_path(tmp_path, 3)
    assert path == trajectories_path(tmp_path, 3).with_name("step_000003.tokens.jsonl")
    write_token_scores(path, [_scores(), _scores(teacher_logprobs=(float("nan"), float("-inf")))])
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in path.read_text().split("\n")[:2])
    assert first["advantages"] == [0.123457, -2e-9]
    assert first["token_texts"] == ["x\u2028", "\n"]
    assert second["teacher_logprobs"] == [None, None]


def test_half_a_surrogate_pair_survives(tmp_path):
    path = token_scores_path(tmp_path, 0)
    write_token_scores(path, [_scores(skill="\ud83d")])
    assert json.loads(path.read_text())["skill"] == "\ud83d"


@pytest.mark.parametrize("changes", [{"level": "global"}, {"advantages": (1.0,)}])
def test_impossible_scores_are_refused(changes):
    with pytest.raises(ValueError, match="token scores of a step 0"):
        _scores(**changes)


def test_a_directory_without_metrics_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="no metrics.jsonl"):
        read_run(tmp_path)
