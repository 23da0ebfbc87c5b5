"""The package as the rollout uses it, and what holds for any action an agent may write."""

from __future__ import annotations

from copy import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs import snapshot
from envs.base import Task, load
from envs.webshop.expert import Expert
from envs.webshop.nouns import has_spacy
from tools.demonstrations import play

WORDS = ("dress", "loafers", "red", "8", "large", "<r>", "", " ", "ö", "]", "[", "search", "buy now", "\n", "a" * 300)


@pytest.fixture(scope="module")
def package():
    return load("webshop")


@pytest.fixture(scope="module")
def environment(package, options):
    return package.make_environment(options)


def test_tasks(package, environment, options):
    count = package.num_tasks("train", options)
    assert package.num_tasks("validation", options) == 100 and count > 300
    starts = [environment.reset(Task("webshop", index, 0, "train")) for index in range(30)]
    assert environment.reset(Task("webshop", 7, 99, "train")) == starts[7]  # the seed has no effect
    assert {start.category for start in starts} <= {"fashion", "beauty", "grocery", "electronics", "garden"}
    for start in starts:
        assert start.observation.text == f"WebShop [SEP] Instruction: [SEP] {start.goal} [SEP] Search"
        assert start.observation.admissible == ("search[<your query>]",)
    for task in (Task("webshop", count, 0, "train"), Task("webshop", -1, 0, "train")):
        with pytest.raises(ValueError, match=f"0 to {count - 1}"):
            environment.reset(task)
    with pytest.raises(ValueError, match="'valid_seen' is not a split"):
        package.num_tasks("valid_seen", options)


def test_an_episode_is_won_by_the_full_reward_only(package, environment):
    tasks = [Task("webshop", index, 0, "validation") for index in range(25)]
    played = [play(environment, task, Expert(0), 15) for task in tasks]
    assert sum(t.success for t in played) > 20
    for trajectory in played:
        assert trajectory.score == (10.0 if trajectory.success else 0.0)
        environment.reset(trajectory.task)
        outcomes = [environment.step(step.action) for step in trajectory.steps]
        last = outcomes[-1]
        assert [o.done for o in outcomes[:-1]] == [False] * (len(outcomes) - 1)
        assert [o.info["task_score"] for o in outcomes[:-1]] == [0.0] * (len(outcomes) - 1)
        assert last.won == (last.info["task_score"] == 1.0) and last.reward == 10.0 * last.won
        assert last.info["title_score_approximate"] == float(not has_spacy())
        after = environment.step("search[dress]")
        assert (after.observation, after.done, after.won, after.reward) == (last.observation, True, last.won, 0.0)


def test_partial_scores_reach_the_outcome(environment):
    partial = []
    for index in range(20):
        environment.reset(Task("webshop", index, 0, "train"))
        first = environment.step("search[dress]").observation.admissible[2]
        environment.step(first)
        outcome = environment.step("click[buy now]")
        assert outcome.done and outcome.reward == 10.0 * outcome.won
        partial.append(outcome.info["task_score"])
    assert all(0 <= score <= 1 for score in partial) and any(0 < score < 1 for score in partial)


def actions():
    """Anything, texts of the right form, and clicks on what the page shows (an index into its clickables)."""
    words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
    formed = st.builds("{}[{}]".format, st.sampled_from(("search", "click", "Search", "", "buy")), words)
    return st.one_of(st.text(max_size=40), formed, st.integers(0, 30), st.integers(0, 30))


def state(session) -> dict:
    """All that a session holds, its own containers copied."""
    return {name: copy(value) if isinstance(value, dict | list) else value for name, value in vars(session).items()}


def run(environment, index: int, script) -> list:
    """The outcomes of a script; what the shop does not understand must change nothing."""
    start = environment.reset(Task("webshop", index, 0, "train"))
    observation, outcomes = start.observation, []
    for entry in script:
        offered = observation.admissible
        action = offered[entry % len(offered)] if isinstance(entry, int) and offered else str(entry)
        session = environment._session
        before = state(session)
        if not session.act(action):
            assert state(session) == before
        outcome = environment.step("nothing at all")
        assert outcome.observation.text and outcome.reward == 0.0
        observation = outcome.observation
        outcomes.append(outcome)
    return outcomes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.integers(0, 300), script=st.lists(actions(), max_size=12))
def test_any_actions(environment, package, options, index, script):
    first = run(environment, index, script)
    assert first == run(environment, index, script)
    assert first == run(package.make_environment(options), index, script)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.integers(0, 300), other=st.integers(0, 300), script=st.lists(actions(), max_size=10))
def test_an_episode_is_its_task_and_its_actions(environment, package, options, index, other, script):
    task, chosen = Task("webshop", index, 0, "train"), []
    observation = environment.reset(task).observation
    for entry in script:
        offered = observation.admissible
        chosen.append(offered[entry % len(offered)] if isinstance(entry, int) and offered else str(entry))
        observation = environment.step(chosen[-1]).observation
    start, outcomes = snapshot.play(environment, task, chosen)
    assert outcomes[-1].observation == observation if chosen else start.observation == observation
    second = package.make_environment(options)
    second.reset(Task("webshop", other, 0, "train"))
    assert snapshot.restore(second, snapshot.save(task, chosen, start, outcomes)) == (start, outcomes)


@settings(max_examples=60, deadline=None)
@given(response=st.text(max_size=80))
def test_any_response_is_projected(response):
    action, valid = load("webshop").project_action(response)
    assert isinstance(action, str) and isinstance(valid, bool)
