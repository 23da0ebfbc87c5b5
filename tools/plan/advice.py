"""What does not fit or wastes much, and what to set instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from megatron_opid.config import ActorConfig, ConfigError
from tools.plan.constants import GPUS_PER_NODE
from tools.plan.plan import Plan, make_plan

GIB = 2**30
NOTABLE_SHARE = 0.2  # of the update's time


def warnings(plan: Plan) -> list[str]:
    """Each with its figure and the setting to change."""
    return [*_memory_warnings(plan), *_trainer_warnings(plan), *_rollout_warnings(plan)]


def alternatives(plan: Plan, hf_config: dict[str, Any]) -> list[tuple[str, Plan]]:
    """Single changes after which a plan that does not fit does, the fastest first."""
    fitting = []
    for name, actor in _changes(plan.config.actor):
        config = replace(plan.config, actor=actor)
        try:
            other = make_plan(config, hf_config, plan.layout.num_gpus, plan.gpu, plan.workload, plan.engines)
        except ConfigError:
            continue
        if other.fits:
            fitting.append((name, other))
    return sorted(fitting, key=lambda item: item[1].step_s)


def _memory_warnings(plan: Plan) -> Iterator[str]:
    memory, engine = plan.trainer_memory, plan.engine_memory
    if memory.total > plan.gpu.memory_bytes:
        largest = max(memory.parts, key=memory.parts.get)
        yield (
            f"the trainer needs {memory.total / GIB:.1f} of {plan.gpu.memory_bytes / GIB:.1f} GiB on the "
            f"{memory.stage} stage, most of it {largest} ({memory.parts[largest] / GIB:.1f} GiB)"
        )
    if engine.cache <= 0:
        yield (
            f"the engine's weights ({engine.weights / GIB:.1f} GiB a GPU) leave no room for a cache beside "
            f"{engine.resident_trainer / GIB:.1f} GiB of the trainer; set more GPUs an engine, engines on GPUs of "
            "their own, or optimizer.offload_fraction"
        )
    elif engine.cache_tokens < engine.wanted_tokens:
        yield (
            f"the cache holds {engine.cache_tokens:,.0f} tokens, {engine.cache_tokens / engine.wanted_tokens:.0%} of "
            "what an engine's episodes fill: they wait in turn; set more engines, or more of the GPU for them"
        )


def _trainer_warnings(plan: Plan) -> Iterator[str]:
    actor, update = plan.config.actor, plan.update
    if actor.device == "cpu":
        yield "actor.device=cpu: this is the plan of the same run on GPUs; nothing here predicts a CPU"
    if actor.recompute == "selective":
        yield (
            "actor.recompute=selective makes attention again, whose scores flash attention never stored: no memory is "
            "saved; set none, mlp or full"
        )
    if actor.tensor_parallel > GPUS_PER_NODE:
        yield f"actor.tensor_parallel={actor.tensor_parallel} crosses nodes; set at most {GPUS_PER_NODE}"
    bubble = update.parts["pipeline bubble"] / update.seconds
    if bubble > NOTABLE_SHARE:
        yield (
            f"{bubble:.0%} of the update is pipeline bubble; set fewer actor.updates_per_step, a smaller "
            "actor.tokens_per_micro_batch, or virtual_pipeline_parallel"
        )
    waiting = update.parts["gradients over replicas"] / update.seconds
    if waiting > NOTABLE_SHARE:
        yield (
            f"{waiting:.0%} of the update waits for gradients over replicas; set actor.overlap_communication=true or "
            "fewer actor.updates_per_step"
        )
    if actor.fp8 != "none":
        yield f"actor.fp8={actor.fp8} is not modelled: the rates are bf16's"


def _rollout_warnings(plan: Plan) -> Iterator[str]:
    rollout, workload = plan.rollout, plan.workload
    if rollout.analysis_s > rollout.prefill_s + rollout.decode_s:
        yield (
            f"{workload.num_analyses} analyses at concurrency {plan.config.skills.concurrency} take "
            f"{rollout.analysis_s:.0f} s, longer than the episodes; set skills.concurrency higher"
        )
    if workload.num_episodes < plan.engines.num_engines:
        yield (
            f"{workload.num_episodes} episodes leave some of {plan.engines.num_engines} engines idle; set "
            "rollout.tasks_per_step higher"
        )
    if plan.config.rollout.tasks_per_step < plan.layout.num_gpus:
        yield (
            f"rollout.tasks_per_step={plan.config.rollout.tasks_per_step} leaves some of {plan.layout.num_gpus} ranks "
            "without a task of their own to play; set it to a multiple of the ranks"
        )


def _changes(actor: ActorConfig) -> Iterator[tuple[str, ActorConfig]]:
    for recompute in ("mlp", "full"):
        if actor.recompute != recompute:
            yield f"actor.recompute={recompute}", replace(actor, recompute=recompute)
    for divisor in (2, 4):
        tokens = actor.tokens_per_micro_batch // divisor
        yield f"actor.tokens_per_micro_batch={tokens}", replace(actor, tokens_per_micro_batch=tokens)
    for factor in (2, 4, 8):
        tensor, pipeline, expert = (
            size * factor for size in (actor.tensor_parallel, actor.pipeline_parallel, actor.expert_parallel)
        )
        if tensor <= GPUS_PER_NODE:
            yield (
                f"actor.tensor_parallel={tensor} actor.sequence_parallel=true",
                replace(actor, tensor_parallel=tensor, sequence_parallel=True),
            )
        yield f"actor.pipeline_parallel={pipeline}", replace(actor, pipeline_parallel=pipeline)
        yield f"actor.expert_parallel={expert}", replace(actor, expert_parallel=expert)
    if not actor.distributed_optimizer:
        yield "actor.distributed_optimizer=true", replace(actor, distributed_optimizer=True)
