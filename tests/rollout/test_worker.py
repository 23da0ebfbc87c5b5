"""Whole collections: real environments, real child processes, a real model."""

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from envs.base import Task
from rollout.engines.base import EngineError, Generation
from rollout.engines.local import LocalEngine
from rollout.prompt import encode_prompt
from rollout.token_check import TokenMismatch
from rollout.trajectory import HindsightSkills
from rollout.worker import RolloutWorker
from tests.rollout import toy_env
from tests.rollout.tiny import make_model, make_settings, make_tokenizer


def tasks(num: int, split: str = "train") -> list[Task]:
    return [Task("toy", index, 0, split) for index in range(num)]


def make_worker(engine=None, options=None, **changes) -> RolloutWorker:
    engine = engine or LocalEngine(make_model(), max_batch_sequences=8)
    return RolloutWorker(
        toy_env, options or {}, engine, make_tokenizer(), **{"run_seed": 1, "progress": False, **changes}
    )


def collect(worker: RolloutWorker, some_tasks=None, group_size=3, settings=None, training_step=5, **options):
    return worker.collect_sync(
        some_tasks or tasks(6), group_size, settings or make_settings(), training_step=training_step, **options
    )


def test_equal_seeds_give_equal_trajectories():
    def run(**changes):
        with make_worker(**changes) as worker:
            return collect(worker)

    first = run()
    assert first == run()  # ids and log-probs, bit for bit
    assert [t.steps[0].response_ids for t in first] != [t.steps[0].response_ids for t in run(run_seed=2)]


def test_seeds_depend_on_the_request_and_not_on_who_plays_beside_it():
    with make_worker() as worker:
        everything = {t.uid: t for t in collect(worker)}
        part = collect(worker, tasks(6)[2:4], group_size=2)
    assert len(part) == 4
    for trajectory in part:
        assert [s.response_ids for s in trajectory.steps] == [s.response_ids for s in everything[trajectory.uid].steps]


def test_group_members_share_the_task_and_differ_in_what_they_do():
    with make_worker() as worker:
        trajectories = collect(worker)
    assert [t.task.index for t in trajectories] == [i for i in range(6) for _ in range(3)]
    for start in range(0, 18, 3):
        members = trajectories[start : start + 3]
        assert len({t.group for t in members}) == len({t.goal for t in members}) == 1
        assert len({t.uid for t in members}) == 3
        assert len({t.steps[0].response_ids for t in members}) == 3
        assert len({t.steps[0].prompt_ids for t in members}) == 1
    assert len({t.group for t in trajectories}) == 6


def test_prompts_are_what_the_trajectory_says_they_were():
    settings, tokenizer = make_settings(), make_tokenizer()
    with make_worker() as worker:
        trajectories = collect(worker)
    for trajectory in trajectories:
        position = 0
        for index, step in enumerate(trajectory.steps):
            text = toy_env.render_prompt(trajectory.view(index, settings.history_length), style="full")
            assert step.prompt_ids == encode_prompt(tokenizer, text, settings.max_prompt_tokens)
            assert f"you are at {position}" == step.observation and step.observation in text
            assert (step.action, step.valid) == toy_env.project_action(step.response)
            position += {"left": -1, "right": 1}[step.action]
        assert trajectory.success == (position == trajectory.task.index % 3 + 1)
        assert trajectory.score == (10.0 if trajectory.success else 0.0)
        assert trajectory.success or len(trajectory.steps) == settings.max_steps
    assert {t.success for t in trajectories} == {True, False}


def position(trajectory) -> float:
    """Where the walk ended."""
    return float(sum({"left": -1, "right": 1}[step.action] for step in trajectory.steps))


def test_metrics_count_what_was_played():
    with make_worker() as worker:
        trajectories = collect(worker)
        metrics = worker.metrics
    steps = [step for t in trajectories for step in t.steps]
    assert metrics["num_episodes"] == 18 and metrics["num_steps"] == len(steps)
    assert metrics["success_rate"] == sum(t.success for t in trajectories) / 18
    for flag in (1, 2, 3):
        members = [t.success for t in trajectories if t.category == f"flag_{flag}"]
        assert metrics[f"success_rate/flag_{flag}"] == sum(members) / 6
    assert metrics["admissible_action_share"] == sum(s.action in s.admissible for s in steps) / len(steps)
    assert metrics["valid_action_share"] == sum(s.valid for s in steps) / len(steps)
    assert metrics["prompt_tokens"] == sum(len(s.prompt_ids) for s in steps)
    assert metrics["response_tokens"] == sum(len(s.response_ids) for s in steps)
    assert [t.numbers for t in trajectories] == [{"position": position(t)} for t in trajectories]
    assert metrics["environment/position"] == sum(position(t) for t in trajectories) / 18
    assert 0 < metrics["engine_busy_share"] <= 1
    assert metrics["num_failed_episodes"] == metrics["num_replays"] == 0


def test_processes_play_the_same_episodes():
    with make_worker() as inline, make_worker(num_processes=2) as spawned:
        expected = collect(inline)
        actual = collect(spawned)
        assert len({e.pid for e in spawned.environments.processes} - {os.getpid()}) == 2
    for one, other in zip(expected, actual, strict=True):
        assert [(s.response_ids, s.observation, s.reward) for s in one.steps] == [
            (s.response_ids, s.observation, s.reward) for s in other.steps
        ]


@pytest.mark.parametrize(
    ("fault", "cause"), [("die", "exit code 7"), ("crash", "the line broke"), ("hang", "no answer")]
)
def test_a_fault_in_a_process_costs_a_replay_and_changes_no_episode(fault, cause, tmp_path, caplog):
    marker = tmp_path / "marker"
    timeout_s = 5.0 if fault == "hang" else 1000.0  # a death is noticed at once, not by the time limit
    changes = {"options": {"marker": str(marker)}, "num_processes": 2, "environment_timeout_s": timeout_s}
    with make_worker(**changes) as worker:
        expected = collect(worker, tasks(6, f"{fault}_once"))  # no marker: nothing happens
        assert worker.metrics["num_replays"] == 0
        marker.touch()
        actual = collect(worker, tasks(6, f"{fault}_once"))
        metrics = worker.metrics
        pids = [process.pid for process in worker.environments.processes]
    assert not marker.exists()
    assert [t.failure for t in actual] == [None] * 18
    assert [[s.response_ids for s in t.steps] for t in actual] == [[s.response_ids for s in t.steps] for t in expected]
    assert metrics["num_replays"] == metrics["num_failures/environment"] >= 1
    assert metrics["num_environment_restarts"] == (0 if fault == "crash" else 1)
    assert cause in caplog.text
    for pid in pids:  # closing the worker ended them
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_process_killed_from_outside_is_replaced():
    class Killing(LocalEngine):
        victim = None

        async def generate(self, *arguments, **options):
            if self.victim:
                os.kill(self.victim, signal.SIGKILL)
                self.victim = None
            return await super().generate(*arguments, **options)

    engine = Killing(make_model())
    with make_worker(engine, num_processes=2) as worker:
        engine.victim = worker.environments.processes[0].pid
        trajectories = collect(worker)
        assert all(t.failure is None for t in trajectories)
        assert worker.metrics["num_environment_restarts"] == 1
        assert worker.metrics["num_failures/environment"] == 9  # half of the 18 episodes lived there
        collect(worker)
        assert worker.metrics["num_environment_restarts"] == 0  # counted per collection


def test_a_stop_of_the_trainer_leaves_its_processes_their_step():
    """Slurm and terminals signal children as well; the trainer finishes a step first."""
    with make_worker(num_processes=1) as worker:
        collect(worker)
        pid = worker.environments.processes[0].pid
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(pid, number)
        collect(worker)
        assert worker.environments.processes[0].pid == pid
        assert worker.metrics["num_environment_restarts"] == 0


@pytest.mark.parametrize("num_processes", [0, 1])
def test_an_episode_that_fails_twice_is_kept_as_a_failure(num_processes):
    with make_worker(num_processes=num_processes) as worker:
        trajectories = collect(worker, [*tasks(3), *tasks(3, "crash")], group_size=1)
        metrics = worker.metrics
    broken = [t for t in trajectories if t.failure]
    assert {t.task.split for t in broken} == {"crash"} and broken
    assert all(t.failure == "environment: step: KeyError: 'the line broke'" and len(t.steps) == 1 for t in broken)
    assert metrics["num_failures/environment"] == 2 * len(broken) and metrics["num_replays"] == len(broken)
    assert metrics["num_episodes"] == 6 and metrics["num_failed_episodes"] == len(broken)


class Tampering(LocalEngine):
    """Passes every answer through `tamper`."""

    tamper = staticmethod(lambda generation: generation)

    async def generate(self, *arguments, **options) -> Generation:
        return self.tamper(await super().generate(*arguments, **options))


def test_an_engine_that_raises_fails_its_episode_only():
    class Flaky(LocalEngine):
        async def generate(self, prompt_ids, sampling, *, session):
            if session.endswith("/1"):
                raise EngineError("no route to host")
            return await super().generate(prompt_ids, sampling, session=session)

    with make_worker(Flaky(make_model())) as worker:
        trajectories = collect(worker)
        assert worker.metrics["num_failures/engine"] == 12
    for trajectory in trajectories:
        assert trajectory.failure == ("engine: no route to host" if trajectory.uid.endswith("/1") else None)


def test_an_aborted_request_is_a_failure():
    engine = Tampering(make_model())
    engine.tamper = lambda generation: replace(generation, finish_reason="abort")
    with make_worker(engine) as worker:
        trajectories = collect(worker)  # all fail, which is for the caller to judge: other ranks may have had more luck
        assert worker.metrics["num_failed_episodes"] == 18
    assert [t.failure for t in trajectories] == ["engine: the request was aborted"] * 18


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda g: {"token_ids": (*g.token_ids[:-1], 264)}, "264 is outside the vocabulary"),
        (lambda g: {"logprobs": g.logprobs[:-1]}, "log-probs"),
        (lambda g: {"logprobs": (float("nan"), *g.logprobs[1:])}, "not finite"),
        (lambda g: {"token_ids": (2, *g.token_ids), "logprobs": (0.0, *g.logprobs)}, "stop token 2 at position 0"),
        (lambda g: {"finish_reason": "stop" if g.finish_reason == "length" else "length"}, "finish reason"),
        (lambda g: {"token_ids": (), "logprobs": ()}, "0 response ids"),
    ],
)
def test_tampered_answers_stop_the_run_and_name_the_sample(changes, message):
    engine = Tampering(make_model())
    engine.tamper = lambda generation: replace(generation, **changes(generation))
    with (
        make_worker(engine) as worker,
        pytest.raises(TokenMismatch, match=rf"episode 5/train/\d\.\d+/\d step 0: .*{message}"),
    ):
        collect(worker)


def test_a_slow_annotator_hides_behind_the_other_episodes():
    active, most_active, num_overlapped = 0, 0, 0

    class Watched(LocalEngine):
        async def generate(self, *arguments, **options):
            nonlocal num_overlapped
            num_overlapped += active > 0
            return await super().generate(*arguments, **options)

    async def slow(trajectory):
        nonlocal active, most_active
        active += 1
        most_active = max(most_active, active)
        await asyncio.sleep(0.2)
        active -= 1
        return HindsightSkills("", trajectory.uid, {0: "go"})

    with make_worker(Watched(make_model()), max_concurrent_episodes=2) as worker:
        trajectories = collect(worker, annotator=slow)
    assert all(t.skills == HindsightSkills("", t.uid, {0: "go"}) for t in trajectories)
    assert most_active > 2 and num_overlapped > 10  # neither slots nor the engine wait for annotations
    assert 0.1 < worker.metrics["annotator_exposed_s"] < worker.metrics["seconds"]  # the last episode's is waited for


def test_an_annotator_that_raises_stops_the_collection_and_names_the_episode():
    async def raises(trajectory):
        if trajectory.task.index == 2:
            raise KeyError("a defect")
        return HindsightSkills("", "x")

    with make_worker() as worker, pytest.raises(KeyError, match="a defect") as caught:
        collect(worker, tasks(4), group_size=1, annotator=raises)
    assert caught.value.__notes__ == ["while annotating episode 5/train/2.0/0"]


def test_a_failed_episode_is_not_annotated():
    async def annotate(trajectory):
        return HindsightSkills("", "x")

    with make_worker() as worker:
        trajectories = collect(worker, [*tasks(4), *tasks(4, "crash")], annotator=annotate)
    assert {t.failure is None for t in trajectories} == {True, False}
    assert all((t.skills is None) == (t.failure is not None) for t in trajectories)


def test_a_task_given_twice_is_refused():
    with make_worker() as worker, pytest.raises(ValueError, match="twice"):
        collect(worker, tasks(1) * 2)


def test_progress_is_drawn_when_told(capsys, monkeypatch):
    with make_worker(progress=True) as worker:
        collect(worker, label="step 4")  # over sooner than a log is to have a line
        monkeypatch.setattr("rollout.worker.LINE_EVERY_S", 0.0)
        collect(worker, label="step 5")
        lines = capsys.readouterr().err.splitlines()
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        collect(worker, label="step 6")
    assert len(lines) == 18 and lines[-1].startswith("step 5: 18/18 episodes, success ")
    assert "step 6: 100%" in (text := capsys.readouterr().err) and "success" in text and "18/18" in text
