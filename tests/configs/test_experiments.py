"""Every experiment composes; those of the published runs carry the published values."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from megatron_opid.config import CONFIG_DIR, Config, value_faults
from megatron_opid.config import load as compose
from tools.plan.__main__ import main as plan
from tools.plan.constants import GPUS_PER_NODE

PUBLISHED = json.loads((Path(__file__).parent.parent / "data" / "published_runs.json").read_text())
EXPERIMENTS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
MULTI_NODE = [name for name in EXPERIMENTS if name.endswith("nodes")]

# Published name -> what the configuration says about it, in published terms.
MAPPED = {
    "engine": lambda c: c.engine.name,
    "gpu_memory_utilization": lambda c: c.engine.gpu_memory_utilization,
    "rollout_tensor_parallel": lambda c: c.engine.tensor_parallel,
    "adv_estimator": lambda c: c.algorithm.name,
    "lr": lambda c: c.optimizer.learning_rate,
    "group_size": lambda c: c.rollout.group_size,
    "max_response_length": lambda c: c.rollout.max_response_tokens,
    "temperature": lambda c: c.rollout.temperature,
    "top_p": lambda c: c.rollout.top_p,
    "val_temperature": lambda c: c.rollout.validation_temperature,
    "use_kl_loss": lambda c: c.algorithm.kl_coefficient > 0,
    "opd_loss_coef": lambda c: c.algorithm.distillation_coefficient,
    "gamma": lambda c: c.algorithm.gamma,
    "use_invalid_action_penalty": lambda c: c.algorithm.invalid_action_penalty > 0,
    "enable_gradient_checkpointing": lambda c: c.actor.recompute == "full",
    "step_advantage_w": lambda c: c.algorithm.state_weight,
    "episode_skill_teacher_advantage_w": lambda c: c.algorithm.episode_skill_weight,
    "step_skill_teacher_advantage_w": lambda c: c.algorithm.step_skill_weight,
    "opd_start": lambda c: c.skills.start_after_steps,
    "opd_stop": lambda c: c.skills.stop_after_steps,
    "failed_only": lambda c: c.skills.failed_only,
    "failed_only_after": lambda c: c.skills.failed_only_after_steps,
    "failure_success_threshold": lambda c: c.skills.success_threshold,
    "analysis_backend": lambda c: c.skills.analyzer,
    "analysis_workers": lambda c: c.skills.concurrency,
    "analysis_max_completion_tokens": lambda c: c.skills.max_completion_tokens,
    "normalize_teacher_adv": lambda c: c.algorithm.normalize_teacher,
    "env_seed": lambda c: c.run.seed,
    "n_gpus_per_node": lambda c: c.run.num_processes,
    "clip_ratio": lambda c: c.algorithm.clip_low if c.algorithm.clip_low == c.algorithm.clip_high else None,
    "clip_ratio_c": lambda c: c.algorithm.dual_clip,
    "loss_agg_mode": lambda c: c.algorithm.aggregation,
    "grad_clip": lambda c: c.optimizer.gradient_clip,
    "weight_decay": lambda c: c.optimizer.weight_decay,
    "entropy_coeff": lambda c: c.algorithm.entropy_coefficient,
    "val_before_train": lambda c: c.run.validate_first,
    "lr_warmup_steps_ratio": lambda c: c.optimizer.warmup_steps / c.run.num_steps,
    "skill_teacher_mode": lambda c: c.skills.routing,
    "model": lambda c: c.actor.model,
    "train_batch_size": lambda c: c.rollout.tasks_per_step,
    "val_batch_size": lambda c: c.rollout.validation_tasks,
    "max_prompt_length": lambda c: c.rollout.max_prompt_tokens,
    "kl_loss_coef": lambda c: c.algorithm.kl_coefficient,
    "opid_mode": lambda c: c.algorithm.advantage_mode,
    "max_step_skills": lambda c: c.skills.max_step_skills,
    "env_name": lambda c: c.env.name,
    "history_length": lambda c: c.env.history_length,
    "max_steps": lambda c: c.env.max_steps,
    "invalid_action_penalty_coef": lambda c: c.algorithm.invalid_action_penalty,
    "total_steps": lambda c: c.run.num_steps,
    "save_freq": lambda c: c.run.save_every,
    "test_freq": lambda c: c.run.validate_every,
}
# No field holds these; configs/published/run.yaml says what becomes of each.
WITHOUT_FIELD = {
    "kl_loss_type",
    "use_remove_padding",
    "nnodes",
    "ppo_epochs",
    "ppo_mini_batch_size",
    "ppo_micro_batch_size",
    "log_prob_micro_batch_size",
}


@cache
def load(name: str) -> Config:
    """The composed experiment."""
    return compose([f"experiment={name}"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_composes_without_faults(name):
    assert value_faults(load(name)) == []


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.endswith("_sft")])
def test_a_cold_start_has_an_optimizer_of_its_own_and_its_experiments_prompts(name):
    cold_start, training = load(name), load(name.removesuffix("_sft"))
    assert cold_start.optimizer.learning_rate > training.optimizer.learning_rate
    assert cold_start.optimizer.schedule == "cosine"
    assert (cold_start.env, cold_start.actor, cold_start.rollout) == (training.env, training.actor, training.rollout)


def test_nine_runs_are_published():
    assert len(PUBLISHED["runs"]) == 9
    assert set(PUBLISHED["runs"]) <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", sorted(PUBLISHED["runs"]))
def test_carries_the_published_values(name):
    published = PUBLISHED["shared"] | PUBLISHED["runs"][name]
    assert set(published) == set(MAPPED) | WITHOUT_FIELD
    config = load(name)
    assert {key: MAPPED[key](config) for key in MAPPED} == {key: published[key] for key in MAPPED}


@pytest.mark.parametrize("name", sorted(PUBLISHED["runs"]))
def test_updates_hold_about_a_published_mini_batch(name):
    """With episodes of half to all of their steps, our fixed number of updates lies in the published range."""
    config, published = load(name), PUBLISHED["runs"][name]
    most_samples = config.rollout.tasks_per_step * config.rollout.group_size * config.env.max_steps
    most_updates = most_samples / published["ppo_mini_batch_size"]
    assert most_updates / 2 <= config.actor.updates_per_step <= most_updates


@pytest.mark.parametrize("name", MULTI_NODE)
@pytest.mark.parametrize("gpu_name", ["h100", "h200"])
def test_multi_node_layouts_fit_the_nodes_named(name, gpu_name, capsys):
    """The commands in the file's head: the plan's exits 0 when it fits, and the nodes add up to the name's."""
    text = (CONFIG_DIR / "experiment" / f"{name}.yaml").read_text()
    command = re.search(
        rf"slurm.launch experiment={name} (job=disaggregated )?nodes=(\d+)( engine_nodes=(\d+))?\n", text
    )
    trainer_nodes, engine_nodes = int(command[2]), int(command[4] or 0)
    config = load(name)
    assert bool(command[1]) == bool(engine_nodes) == (config.engine.placement == "disaggregated")
    assert trainer_nodes + engine_nodes == int(re.search(r"_(\d+)nodes$", name).group(1))
    assert config.engine.num_servers * config.engine.tensor_parallel == GPUS_PER_NODE
    gpus = [f"gpus={trainer_nodes * GPUS_PER_NODE}"]
    gpus += [f"engine_gpus={engine_nodes * GPUS_PER_NODE}"] if engine_nodes else []
    assert f"tools.plan experiment={name} {' '.join(gpus)}\n" in text
    assert plan([f"experiment={name}", *gpus, f"gpu={gpu_name}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []


@pytest.mark.parametrize("name", sorted(PUBLISHED["runs"]))
def test_published_runs_fit_one_node(name, capsys):
    assert plan([f"experiment={name}", "gpus=8", "gpu=h100"]) == 0
