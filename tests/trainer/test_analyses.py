"""Analyses outlast the collection of their episodes, and every episode still gets its own skills."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from envs.base import Task
from megatron_opid import rollouts
from megatron_opid.analyses import Analyses, outlast_collection
from megatron_opid.collected import Annotations, join_annotations
from megatron_opid.config import load
from megatron_opid.metrics import read_metrics
from megatron_opid.rollouts import Rollout
from megatron_opid.skills.outcome import succeeded
from megatron_opid.skills.request import build_messages
from rollout.trajectory import HindsightSkills, Trajectory
from tests.skills.endpoint_server import Answer, Script, serve
from tests.trainer.conftest import SmallRun, run_module
from tests.trainer.served_run import FEW, played

APART = ["engine.placement=disaggregated", "engine.name=vllm"]


def episode(uid: str) -> Trajectory:
    return Trajectory(Task("e", 0, 0, "train"), uid, "group", "", "", (), True, 1.0)


def skill_of(request_text: str) -> str:
    return hashlib.sha256(request_text.encode()).hexdigest()[:16]


def own_skill(number: int, request: dict) -> Answer:
    """An answer that is of this episode alone."""
    skill = skill_of(request["messages"][1]["content"])
    return Answer(json.dumps({"summary": "s", "episode_skill": skill, "step_skills": []}))


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch):
    """Serves a script, as the run's environment names it."""
    monkeypatch.setenv("OPENAI_MODEL", "m")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-1234")

    class Served:
        def __init__(self, script: Script):
            self._serving = serve(script, ["m"])

        def __enter__(self):
            server = self._serving.__enter__()
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            return server

        def __exit__(self, *exception):
            self._serving.__exit__(*exception)

    return Served


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["skills.analyzer=openai"], True),
        (["skills.analyzer=rules"], False),
        (["skills.analyzer=policy"], False),
        (["skills.analyzer=openai", "algorithm.name=grpo"], False),
        (["skills.analyzer=openai", "rollout.one_step_off=true", "algorithm.correction=truncate", *APART], False),
        (["skills.analyzer=openai", "engine.urls=[http://h:8000]", *APART], True),
        (["skills.analyzer=openai", "engine.name=vllm", "engine.placement=colocated"], True),
        # A server that ran before may be the endpoint, and sleeps.
        (
            ["skills.analyzer=openai", "engine.urls=[http://h:8000]", "engine.name=vllm", "engine.placement=colocated"],
            False,
        ),
    ],
)
def test_which_analyses_outlast_their_collection(overrides: list[str], expected: bool):
    assert outlast_collection(load(["experiment=demo", *overrides])) == expected


async def test_a_defect_ends_the_collection_at_the_next_episode_and_names_its_own():
    async def defective(trajectory: Trajectory) -> HindsightSkills:
        raise KeyError("a defect")

    analyses = Analyses(defective)
    await analyses.begin(episode("first"))
    await asyncio.sleep(0)
    with pytest.raises(KeyError, match="a defect") as caught:
        await analyses.begin(episode("second"))
    assert caught.value.__notes__ == ["while annotating episode first"]


async def test_what_goes_on_is_told_and_can_be_ended():
    ended = []

    async def endless(trajectory: Trajectory) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(trajectory.uid)

    analyses = Analyses(endless)
    for uid in ("a", "b"):
        await analyses.begin(episode(uid))
    await asyncio.sleep(0)
    assert analyses.waiting() == ["analyzer: 2 analyses, the oldest for 0 s"]
    await analyses.cancel()
    assert sorted(ended) == ["a", "b"] and analyses.waiting() == []


def test_annotations_of_all_ranks_become_one():
    skills = HindsightSkills("s", "open it", {3: "left"})
    shares = [
        Annotations({"annotator_exposed_s": 1.0}, {"analyses": 2, "latency_mean_s": 1.0}, {"a": skills}),
        Annotations({"annotator_exposed_s": 3.0}, {"analyses": 1, "latency_mean_s": 3.0}, {"b": skills}),
    ]
    joined = join_annotations([Annotations.from_json(share.to_json()) for share in shares])
    assert joined.skills == {"a": skills, "b": skills}
    assert joined.metrics == {"annotator_exposed_s": 3.0}
    assert joined.analyzer_metrics == {"analyses": 3, "latency_mean_s": 2.0}


def test_a_collection_ends_before_its_analyses_and_gets_what_waiting_for_them_gives(
    small_run: SmallRun, tmp_path: Path, monkeypatch, endpoint
):
    may_answer = threading.Event()

    def script(number: int, request: dict) -> Answer:
        assert may_answer.wait(60)
        return own_skill(number, request)

    tasks = [Task("alfworld", index, 0, "train") for index in range(2)]
    with endpoint(script):
        config = load(small_run.overrides(tmp_path / "later", skills__analyzer="openai", env__max_steps=2))
        with Rollout(config, rank=0, num_ranks=1) as rollout:
            collected = rollout.collect(tasks, 0)
            assert all(trajectory.skills is None for trajectory in collected) and not rollout.analyzer_metrics
            assert any("analyses, the oldest" in line for line in rollout.waiting())
            may_answer.set()
            annotated = rollout.annotate(collected)
            assert rollout.analyzer_metrics["analyses"] == len(annotated) == len(collected)
            assert rollout.annotate(annotated) == annotated  # nothing more to wait for
        monkeypatch.setattr(rollouts, "outlast_collection", lambda config: False)
        config = load(small_run.overrides(tmp_path / "waited", skills__analyzer="openai", env__max_steps=2))
        with Rollout(config, rank=0, num_ranks=1) as rollout:
            assert rollout.collect(tasks, 0) == annotated
    assert [replace(trajectory, skills=None) for trajectory in annotated] == list(collected)


def test_every_episode_of_every_rank_gets_its_own_skill_after_the_first_scoring(
    small_run: SmallRun, tmp_path: Path, endpoint
):
    status = tmp_path / "watch" / "rank_0.json"
    has_scored = threading.Event()

    def script(number: int, request: dict) -> Answer:
        """Nothing before rank 0 was seen scoring: a loop that waits for the analyzer first would wait in vain."""
        deadline_s = time.monotonic() + 60
        while not has_scored.is_set():
            assert time.monotonic() < deadline_s
            if status.exists() and "score" in status.read_text():
                has_scored.set()
            time.sleep(0.002)
        return own_skill(number, request)

    with endpoint(script):
        finished = run_module("megatron_opid.train", small_run.overrides(tmp_path, **FEW, skills__analyzer="openai"))
    assert finished.returncode == 0, finished.stderr[-3000:]
    for trajectory in played(tmp_path):
        messages = build_messages(trajectory, succeeded(trajectory, 1.0), 5)
        assert trajectory.skills.episode == skill_of(messages[1]["content"])
    for line in read_metrics(tmp_path / "metrics.jsonl")[1:]:
        assert line["analyzer/analyses"] == 8 and line["teacher/scored_fraction"] == 1.0
        assert line["time/analyzer_s"] >= line["rollout/annotator_exposed_s"] > 0
