"""The configuration: frozen dataclasses, filled from configs/ by Hydra, checked once before anything heavy is imported.

`load` composes, converts and checks; every fault found is reported in one ConfigError, each with its value and what to set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

CONFIG_DIR = Path(__file__).parent.parent / "configs"


class ConfigError(ValueError):
    """The configuration cannot run. The message lists every fault; entry points print it and exit with code 2."""


@dataclass(frozen=True)
class EnvConfig:
    """Which games are played. `engine` chooses between implementations where an environment has several."""

    name: str = "alfworld"
    engine: str = "native"
    data: str = ""
    train_split: str = "train"
    validation_split: str = "valid_seen"
    max_steps: int = 30
    history_length: int = 5
    prompt_style: str = "full"  # full | compact
    num_processes: int = 0  # 0: environments run in the worker's own process


@dataclass(frozen=True)
class RolloutConfig:
    """How episodes are sampled. One training step plays `tasks_per_step` tasks, `group_size` episodes each."""

    tasks_per_step: int = 16
    group_size: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_prompt_tokens: int = 2048
    max_response_tokens: int = 512
    validation_tasks: int = 128
    validation_temperature: float = 0.4


@dataclass(frozen=True)
class EngineConfig:
    """What samples. `local` runs transformers in the worker's process; `urls` names the servers of the others."""

    name: str = "local"  # local | vllm | sglang
    urls: tuple[str, ...] = ()
    max_batch_sequences: int = 64
    verify_every: int = 10  # weight-sync digests are compared on the first sync and every N syncs


@dataclass(frozen=True)
class SkillsConfig:
    """The analyzer and when its skills are used. Schedules count training steps from 0; null means no bound."""

    analyzer: str = "openai"  # openai | policy | rules | none
    max_step_skills: int = 5
    success_threshold: float = 1.0
    routing: str = "step_priority"  # step_priority | additive
    start_after_steps: int | None = None
    stop_after_steps: int | None = None
    failed_only: bool = False
    failed_only_after_steps: int | None = None
    shuffle: bool = False  # control experiment: skills are permuted over the batch's trajectories
    concurrency: int = 128
    timeout_s: float = 120.0
    max_completion_tokens: int = 4096
    cache_dir: str = ""


@dataclass(frozen=True)
class AlgorithmConfig:
    """The advantage and the loss; see megatron_opid/algorithm for the equations."""

    name: str = "opid"  # grpo | gigpo | opid
    advantage_mode: str = "mean_norm"  # mean_norm | mean_std_norm
    gamma: float = 0.95
    state_weight: float = 0.0
    episode_skill_weight: float = 0.001
    step_skill_weight: float = 0.001
    teacher: str = "policy"  # policy | reference
    normalize_teacher: bool = False
    teacher_clip: float | None = None
    invalid_action_penalty: float = 0.1
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0
    kl_coefficient: float = 0.01
    entropy_coefficient: float = 0.001
    aggregation: str = "token-mean"  # token-mean | seq-mean-token-sum | seq-mean-token-mean
    distillation_coefficient: float = 0.0
    distillation_weight: str = "delta"  # delta | importance
    distillation_clip: float | None = None
    correction: str = "none"  # none | truncate | mask: engine vs trainer log-probs
    correction_low: float = 0.5
    correction_high: float = 2.0


@dataclass(frozen=True)
class ActorConfig:
    """The Megatron model's layout and batch sizes. `model` is a Hugging Face directory, relative to MODELS_ROOT if not absolute."""

    model: str = ""
    device: str = "auto"  # auto | cpu | cuda
    precision: str = "bf16"  # fp32 | bf16
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    virtual_pipeline_parallel: int = 1
    context_parallel: int = 1
    expert_parallel: int = 1
    sequence_parallel: bool = False
    tokens_per_micro_batch: int = 16384
    updates_per_step: int = 1  # the step's samples are split into this many optimizer updates
    recompute: str = "none"  # none | selective | full
    distributed_optimizer: bool = True
    overlap_communication: bool = False
    head: str = "auto"  # auto | torch | triton: the back end of kernels/linear_logprob
    deterministic: bool = True


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW."""

    learning_rate: float = 1e-6
    min_learning_rate: float = 0.0
    schedule: str = "constant"  # constant | cosine
    warmup_steps: int = 0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    gradient_clip: float = 1.0


@dataclass(frozen=True)
class SftConfig:
    """The cold start: next-token loss on the response tokens of demonstrations (JSONL of trajectories)."""

    demonstrations: str = ""
    num_steps: int = 1000
    samples_per_step: int = 48
    skill_fraction: float = 0.5  # share of the samples whose prompt carries a skill


@dataclass(frozen=True)
class RunConfig:
    """One run = one directory; nothing is written outside it."""

    dir: str = "runs/default"
    seed: int = 0
    num_steps: int = 160
    save_every: int = 10
    keep_checkpoints: int = 2
    validate_every: int = 5
    validate_first: bool = True
    save_trajectories_every: int = 5
    wandb: str = "disabled"  # disabled | offline | online
    wandb_project: str = "megatron-opid"
    rank_timeout_s: float = 1800.0


@dataclass(frozen=True)
class Config:
    """Everything a run is made of."""

    env: EnvConfig = field(default_factory=EnvConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    skills: SkillsConfig = field(default_factory=SkillsConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    run: RunConfig = field(default_factory=RunConfig)
