from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_opid.skills.outcome import succeeded
from megatron_opid.skills.request import MAX_OBSERVATION_CHARACTERS, build_messages
from tests.skills.episodes import make_step, make_trajectory


def test_steps_are_numbered_from_zero_and_remarks_follow_validity():
    steps = (
        make_step("start", "go", admissible=["go", "stay"]),
        make_step("hall", "fly", admissible=["go", "stay"]),
        make_step("x" * 5000, "hm", valid=False),
    )
    system, user = build_messages(replace(make_trajectory(), steps=steps), success=False, max_step_skills=2)
    assert [system["role"], user["role"]] == ["system", "user"]
    text = user["content"]
    assert "Task: open the door" in text and "Outcome after 3 steps: FAILURE" in text
    assert "Step 0\nObservation: start\nAction: go\n" in text
    assert "Step 1\nObservation: hall\nAction: fly   (not possible here)\n" in text
    assert "Action: hm   (malformed answer)" in text
    assert text.count("x") < MAX_OBSERVATION_CHARACTERS + 10
    assert "at most 2 entries" in system["content"] and "what to avoid" in system["content"]


def test_success_asks_for_the_workflow():
    system, user = build_messages(make_trajectory(success=True), success=True, max_step_skills=0)
    assert "workflow" in system["content"] and "what to avoid" not in system["content"]
    assert "step_skills: always []." in system["content"]
    assert "SUCCESS" in user["content"]


@pytest.mark.parametrize(
    "success, score, threshold, expected",
    [
        (True, 10, 1.0, True),
        (False, 0, 1.0, False),
        (False, 6, 1.0, False),
        (False, 6, 0.5, True),
        (False, 4, 0.5, False),
    ],
)
def test_success_threshold_is_a_share_of_the_full_score(success: bool, score: float, threshold: float, expected: bool):
    assert succeeded(make_trajectory(success=success, score=score), threshold) is expected
