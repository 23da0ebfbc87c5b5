from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from megatron_opid.config import SkillsConfig
from megatron_opid.skills.routing import StepRoute, is_scheduled, route, shuffle_skills
from rollout.trajectory import HindsightSkills
from tests.skills.episodes import make_trajectory

SKILLS = HindsightSkills("s", "E", {1: "S"})
NONE = StepRoute()


@pytest.mark.parametrize(
    "routing, episode_weight, step_weight, expected",
    [
        ("step_priority", 1.0, 1.0, [StepRoute("E"), StepRoute("", "S"), StepRoute("E")]),
        ("step_priority", 0.0, 1.0, [NONE, StepRoute("", "S"), NONE]),
        ("step_priority", 1.0, 0.0, [StepRoute("E"), NONE, StepRoute("E")]),
        ("step_priority", 0.0, 0.0, [NONE] * 3),
        ("additive", 1.0, 1.0, [StepRoute("E"), StepRoute("E", "S"), StepRoute("E")]),
        ("additive", 0.0, 1.0, [NONE, StepRoute("", "S"), NONE]),
        ("additive", 1.0, 0.0, [StepRoute("E")] * 3),
        ("additive", 0.0, 0.0, [NONE] * 3),
    ],
)
def test_routes(routing: str, episode_weight: float, step_weight: float, expected: list[StepRoute]):
    config = SkillsConfig(routing=routing)
    routes = route(make_trajectory(skills=SKILLS), 0, config, episode_weight, step_weight)
    assert routes == tuple(expected)


def test_no_skills_no_route():
    assert route(make_trajectory(), 0, SkillsConfig(), 1.0, 1.0) == (NONE,) * 3


def test_schedules_exhaustively():
    bounds = (None, 0, 1, 2)
    cases = itertools.product(range(4), bounds, bounds, (False, True), bounds, (False, True))
    for step, start, stop, failed_only, failed_only_after, success in cases:
        config = SkillsConfig(
            start_after_steps=start,
            stop_after_steps=stop,
            failed_only=failed_only,
            failed_only_after_steps=failed_only_after,
        )
        active = range(start if start is not None else 0, stop if stop is not None else 99)
        only_failed_steps = range(0 if failed_only else failed_only_after if failed_only_after is not None else 99, 99)
        expected = step in active and not (success and step in only_failed_steps)
        trajectory = make_trajectory(success=success, skills=SKILLS)
        assert is_scheduled(trajectory, step, config) is expected, config
        assert (route(trajectory, step, config, 1.0, 1.0) != (NONE,) * 3) is expected


def test_failed_only_follows_the_success_threshold():
    partial = make_trajectory(score=6.0, skills=SKILLS)
    assert is_scheduled(partial, 0, SkillsConfig(failed_only=True))
    assert not is_scheduled(partial, 0, SkillsConfig(failed_only=True, success_threshold=0.5))


def test_broken_and_empty_episodes_are_never_scheduled():
    assert not is_scheduled(make_trajectory(failure="crash"), 0, SkillsConfig())
    assert not is_scheduled(make_trajectory(0), 0, SkillsConfig())


def skilled(uid: int, num_steps: int):
    steps = {index: f"S{uid}" for index in range(num_steps)}
    return make_trajectory(num_steps, uid=str(uid), skills=HindsightSkills(f"{uid}", f"E{uid}", steps))


@pytest.mark.parametrize("seed", range(20))
def test_shuffle_is_a_derangement_of_the_skilled(seed: int):
    batch = [skilled(0, 2), make_trajectory(uid="x"), skilled(1, 5), skilled(2, 1), skilled(3, 4)]
    shuffled = shuffle_skills(batch, seed)
    assert shuffled == shuffle_skills(batch, seed)
    assert shuffled[1] == batch[1]
    assert {t.skills.episode for t in shuffled if t.skills} == {"E0", "E1", "E2", "E3"}
    for before, after in zip(batch, shuffled, strict=True):
        assert (before.uid, before.steps) == (after.uid, after.steps)
        if after.skills:
            assert after.skills.episode != before.skills.episode
            giver = next(t for t in batch if t.skills and t.skills.episode == after.skills.episode)
            assert list(after.skills.steps) == list(range(min(len(giver.steps), len(after.steps))))


@pytest.mark.parametrize("sizes", [(4, 4, 4), (1, 3, 2), (5, 1, 4)])
def test_shuffled_skills_come_from_another_game(sizes: tuple[int, ...]):
    batch = [
        replace(skilled(10 * group + member, 2), group=f"g{group}")
        for group, size in enumerate(sizes)
        for member in range(size)
    ]
    owner = {t.skills.episode: t.group for t in batch}
    for seed in range(5):
        shuffled = shuffle_skills(batch, seed)
        assert all(owner[t.skills.episode] != t.group for t in shuffled)
        assert {t.skills.episode for t in shuffled} == set(owner)


def test_shuffle_depends_on_the_seed_and_keeps_a_lone_skill():
    batch = [skilled(uid, 2) for uid in range(6)]
    assert len({tuple(t.skills.episode for t in shuffle_skills(batch, seed)) for seed in range(10)}) > 5
    assert shuffle_skills(batch[:1], 0) == batch[:1]
    assert shuffle_skills([], 0) == []
