"""The training loop."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from envs.base import load as load_environment
from megatron_opid.actor.actor import Actor
from megatron_opid.batch import Batch, build_batch, split_updates
from megatron_opid.config import Config
from megatron_opid.learning import Learned, learn, needs_reference, score, with_skills
from megatron_opid.metrics import BEFORE_TRAINING
from megatron_opid.report.tokens import token_scores
from megatron_opid.rollouts import Rollout
from megatron_opid.run import Run
from megatron_opid.skills.routing import shuffle_skills
from megatron_opid.step_statistics import mismatch_statistics, refuse_mismatch, teacher_statistics
from megatron_opid.tasks import TaskSchedule, validation_tasks
from megatron_opid.watchdog import Watchdog


def train(config: Config) -> int:
    """One rank's part of a training run; returns its exit code."""
    tasks = _schedule(config)
    validation = validation_tasks(config.env.name, config.env.validation_split, *_validation_size(config))
    with (
        closing(_actor(config)) as actor,
        Rollout(config, rank=dist.get_rank(), num_ranks=dist.get_world_size()) as rollout,
        Run(config, actor, entry_point="train", rank=dist.get_rank(), kept=rollout) as run,
        closing(_watchdog(config, rollout)) as watchdog,
    ):
        run.timer.on_phase = watchdog.enter
        rollout.push(actor.export(), version=run.start_step)
        if run.validates_after(BEFORE_TRAINING):
            rollout.validate(validation)
            run.record(BEFORE_TRAINING, {"validation": rollout.metrics})
        for step in run.steps():
            with run.timer("rollout"):
                trajectories = rollout.collect(tasks.draw(step), step)
                if config.rollout.one_step_off and step + 1 < config.run.num_steps:
                    rollout.start(tasks.draw(step + 1), step + 1)
            with run.timer("score"):
                batch = build_batch(trajectories, config.algorithm.invalid_action_penalty)
                updates = split_updates(len(batch.samples), config.actor.updates_per_step, config.run.seed, step)
                scores = score(actor, batch, updates, config.algorithm) if rollout.annotates_later else None
            with run.timer("analyzer"):
                trajectories = rollout.annotate(trajectories)
                metrics = {"rollout": rollout.metrics, "analyzer": rollout.analyzer_metrics}
                if config.skills.shuffle:
                    trajectories = shuffle_skills(trajectories, config.run.seed + step)
            with run.timer("score"):
                batch = with_skills(batch, trajectories, rollout.tokenizer, step, config)
                scores = score(actor, batch, updates, config.algorithm, scores)
            with run.timer("update"):
                learned = learn(actor, batch, scores, updates, config.algorithm)
            metrics |= _statistics(batch, learned, step, config)
            with run.timer("rollout"):
                rollout.settle()
            with run.timer("weight_sync"):
                rollout.push(actor.export(), version=step + 1)
            if run.validates_after(step):
                with run.timer("validation"):
                    rollout.validate(validation)
                    metrics["validation"] = rollout.metrics
            run.record(step, metrics)
            if run.keeps_trajectories_of(step):
                run.keep(step, trajectories, token_scores(batch, learned.scores, learned.advantages, rollout.tokenizer))
        run.finish(rollout.tokenizer)
    return run.exit_code


def _statistics(batch: Batch, learned: Learned, step: int, config: Config) -> dict[str, dict[str, float]]:
    mismatch = mismatch_statistics(batch, learned.trainer_logprobs, step)
    refuse_mismatch(mismatch, config.algorithm.max_mismatch_k3)
    return {
        "actor": learned.statistics,
        "teacher": teacher_statistics(batch, learned.scores),
        "mismatch": mismatch,
    }


def _watchdog(config: Config, rollout: Rollout) -> Watchdog:
    return Watchdog(
        Path(config.run.dir) / "watch",
        dist.get_rank(),
        config.run.hang_report_s,
        rollout.waiting,
        num_ranks=dist.get_world_size(),
    )


def _actor(config: Config) -> Actor:
    updates = config.actor.updates_per_step
    return Actor(
        config.actor,
        replace(config.optimizer, warmup_steps=config.optimizer.warmup_steps * updates),
        num_training_steps=config.run.num_steps * updates,
        temperature=config.rollout.temperature,
        seed=config.run.seed,
        with_reference=needs_reference(config.algorithm),
        timeout_s=config.run.rank_timeout_s,
    )


def _schedule(config: Config) -> TaskSchedule:
    num_tasks = load_environment(config.env.name).num_tasks(config.env.train_split, config.env.package_options)
    return TaskSchedule(
        config.env.name, config.env.train_split, num_tasks, config.rollout.tasks_per_step, config.run.seed
    )


def _validation_size(config: Config) -> tuple[int, int]:
    num_tasks = load_environment(config.env.name).num_tasks(config.env.validation_split, config.env.package_options)
    return num_tasks, config.rollout.validation_tasks
