"""A run directory as a trainer leaves it, made of seeded noise, with text that tries to break out of the page."""

from __future__ import annotations

import random
from pathlib import Path

from envs.base import Task
from megatron_opid.config import Config
from megatron_opid.metrics import BEFORE_TRAINING, MetricsLogger, save_config
from megatron_opid.report.records import (
    TokenScores,
    token_scores_path,
    trajectories_path,
    write_token_scores,
)
from rollout.record import write_trajectories
from rollout.trajectory import HindsightSkills, Step, Trajectory

HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<!-- <script> {{ 7 * 7 }} {% raw %} \u2028 \u0000 \ud83d",
    "javascript:window.hacked=1 \" ' ` & &lt;",
)
CATEGORIES = ("pick_and_place", "look_at_in_light", "clean_then_place", "heat_then_place")
WORDS = ["I", " should", " take", " the", " apple", " 1", " from", " count", "ertop", " 2", ",", " then", " go", "\n"]


def write_synthetic_run(run_dir: Path, *, num_steps: int = 40, num_episodes: int = 8, hostile: bool = True) -> Path:
    """Metrics of `num_steps` steps and, every tenth step, `num_episodes` trajectories with token scores."""
    draw = random.Random(0)
    config = save_config(run_dir, Config())
    with MetricsLogger(run_dir, config=config, num_steps=num_steps, stream=(run_dir / "progress.txt").open("w")) as log:
        log.log(BEFORE_TRAINING, {"validation": _validation(draw, 0.2)})
        for step in range(num_steps):
            metrics = _metrics(draw, step / num_steps)
            if step % 5 == 4:
                metrics["validation"] = _validation(draw, 0.2 + 0.5 * step / num_steps)
            log.log(step, metrics)
            if step % 10 == 9:
                _write_episodes(run_dir, step, draw, num_episodes, hostile)
    return run_dir


def _validation(draw: random.Random, rate: float) -> dict:
    num_won = sum(draw.random() < rate for _ in range(128))
    by_category = {name: min(1.0, max(0.0, draw.gauss(rate, 0.08))) for name in CATEGORIES}
    success = {"success_rate": num_won / 128, **{f"success_rate/{name}": rate for name, rate in by_category.items()}}
    return success | {"num_episodes": 130, "num_failed_episodes": 2}


def _metrics(draw: random.Random, progress: float) -> dict:
    def near(value: float, spread: float = 0.1) -> float:
        return value * draw.gauss(1, spread)

    rate = min(1.0, max(0.0, draw.gauss(0.2 + 0.5 * progress, 0.06)))
    by_category = {name: min(1.0, max(0.0, draw.gauss(rate, 0.1))) for name in CATEGORIES}
    return {
        "rollout": {
            "success_rate": rate,
            **{f"success_rate/{name}": rate for name, rate in by_category.items()},
            "num_episodes": 128,
            "num_failed_episodes": int(draw.random() < 0.1),
            "valid_action_share": min(1.0, 0.8 + 0.2 * progress),
            "cut_response_share": near(0.02 * (1 - progress)),
            "steps_mean": near(20 - 6 * progress),
            "response_tokens_mean": near(60),
            "response_tokens_per_s": near(2400),
        },
        "actor": {
            "loss": draw.gauss(0.0, 0.01),
            "policy_loss": draw.gauss(0.0, 0.01),
            "reference_kl": near(0.02 * progress + 1e-4),
            "entropy": near(1.2 - 0.5 * progress, 0.03),
            "grad_norm": near(0.7, 0.2),
            "clip_fraction": near(0.004, 0.3),
            "learning_rate": 1e-6,
        },
        "teacher": {"delta_mean": draw.gauss(0.01, 0.005), "delta_abs_mean": near(0.12), "delta_std": near(0.3)},
        "mismatch": {"logprob_abs_mean": near(0.006), "logprob_abs_max": near(0.3, 0.3)},
        "analyzer": {
            "analyses": 128,
            "cache_hits": draw.randrange(20),
            "failures": draw.randrange(3),
            "prompt_tokens": near(180_000, 0.05),
            "completion_tokens": near(21_000, 0.05),
            "latency_mean_s": near(2.5),
            "latency_p95_s": near(6),
        },
        "time": {"rollout_s": near(31), "score_s": near(6), "update_s": near(14), "weight_sync_s": near(1.2)},
    }


def _write_episodes(run_dir: Path, step: int, draw: random.Random, num_episodes: int, hostile: bool) -> None:
    trajectories = [_trajectory(draw, step, number, hostile) for number in range(num_episodes)]
    write_trajectories(trajectories_path(run_dir, step), trajectories)
    scores = [
        score
        for trajectory in trajectories
        for index in range(len(trajectory.steps))
        if index != 1 and (score := _scores(draw, trajectory, index))
    ]
    write_token_scores(token_scores_path(run_dir, step), scores)


def _trajectory(draw: random.Random, step: int, number: int, hostile: bool) -> Trajectory:
    category = CATEGORIES[number % len(CATEGORIES)]
    success = draw.random() < 0.5
    bad = HOSTILE[number % len(HOSTILE)] if hostile else ""
    skills = HindsightSkills(
        summary=f"The agent searched the counters. {bad}",
        episode=f"Look where the object usually is, take it, then go to the receptacle. {bad}",
        steps={2: f"Open the fridge before you look for the apple. {bad}"},
    )
    return Trajectory(
        task=Task("alfworld", number // 2, 0, "train"),
        uid=f"{step}-{number}",
        group=f"{step}-{number // 2}",
        goal=f"put a clean apple in the fridge {bad}",
        category=category,
        steps=tuple(_step(draw, index, bad) for index in range(draw.randrange(4, 12))),
        success=success,
        score=10.0 * success,
        failure="environment process died" if number == 5 else None,
        skills=None if number == 3 else skills,
    )


def _step(draw: random.Random, index: int, bad: str) -> Step:
    tokens = _tokens(draw, bad)
    return Step(
        observation=f"You arrive at countertop 2. On it you see an apple 1 and a knife 3. {bad}",
        admissible=("go to fridge 1", "take apple 1 from countertop 2", "look", *([bad] if bad else [])),
        prompt_ids=tuple(range(200 + 40 * index)),
        response_ids=tuple(range(len(tokens))),
        response_logprobs=tuple(-draw.random() for _ in tokens),
        response="".join(tokens),
        action=f"take apple 1 from countertop 2{bad}",
        valid=draw.random() < 0.85,
        reward=0.0,
        weight_version=3,
    )


def _tokens(draw: random.Random, bad: str) -> tuple[str, ...]:
    thought = [draw.choice(WORDS) for _ in range(30)]
    return ("<think>", *thought, *([bad] if bad else []), "</think>", "<action>", "take apple 1", "</action>")


def _scores(draw: random.Random, trajectory: Trajectory, index: int) -> TokenScores | None:
    skills = trajectory.skills
    if skills is None:
        return None
    tokens = _tokens(draw, "") if len(trajectory.steps[index].response_ids) == 35 else _tokens(draw, HOSTILE[0])
    old = [-draw.expovariate(1.0) for _ in tokens]
    teacher = [min(0.0, value + draw.gauss(0.05, 0.5)) for value in old]
    return TokenScores(
        uid=trajectory.uid,
        index=index,
        level="step" if index in skills.steps else "episode",
        skill=skills.steps.get(index, skills.episode),
        token_texts=tokens,
        old_logprobs=tuple(old),
        teacher_logprobs=tuple(teacher),
        advantages=tuple(0.5 + 0.001 * (b - a) for a, b in zip(old, teacher, strict=True)),
    )
