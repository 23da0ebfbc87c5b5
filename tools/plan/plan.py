"""The plan of one configuration on a number of GPUs: memory and phases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_opid.actor.layout import layout_faults
from megatron_opid.analyses import outlast_collection
from megatron_opid.config import Config, ConfigError, value_faults
from tools.plan.constants import Gpu, constant
from tools.plan.layout import Layout
from tools.plan.memory import EngineMemory, TrainerMemory, engine_memory, trainer_memory
from tools.plan.phases import PhaseTime, Trainer
from tools.plan.rollout import Engines, RolloutTime, rollout_time
from tools.plan.shape import Sizes
from tools.plan.workload import Workload


@dataclass(frozen=True)
class Plan:
    """Everything that the report shows; sizes in bytes, times in seconds."""

    config: Config
    sizes: Sizes
    layout: Layout
    gpu: Gpu
    workload: Workload
    engines: Engines
    trainer_memory: TrainerMemory
    engine_memory: EngineMemory
    rollout: RolloutTime
    score: PhaseTime
    reference: PhaseTime
    update: PhaseTime
    weight_sync: PhaseTime

    @property
    def plain_score_s(self) -> float:
        """Of the old and the reference log-probs, which need no skills, where they are scored while they are waited
        for."""
        algorithm, seconds = self.config.algorithm, 0.0
        if not outlast_collection(self.config):
            return seconds
        if algorithm.old_logprob == "recompute":
            seconds += self.score.seconds / self.workload.policy_contexts
        if algorithm.kl_coefficient > 0:
            seconds += self.reference.seconds / self.workload.reference_contexts
        return seconds

    @property
    def analyzer_s(self) -> float:
        """Of waiting for skills, when all that needs none is scored; one step off, when a whole step was trained."""
        meanwhile = self.plain_score_s
        if self.config.rollout.one_step_off:
            meanwhile = self.score.seconds + self.reference.seconds + self.update.seconds
        return max(0.0, self.rollout.analyzed_s - self.rollout.seconds - meanwhile)

    @property
    def step_s(self) -> float:
        phases = (self.score, self.reference, self.update, self.weight_sync)
        return self.rollout.seconds + self.analyzer_s + sum(phase.seconds for phase in phases)

    @property
    def fits(self) -> bool:
        return self.trainer_memory.total <= self.gpu.memory_bytes and self.engine_memory.cache_tokens > 0

    @property
    def update_mfu(self) -> float:
        """Operations of the model in the update, recomputation not counted, over what the GPUs could do."""
        return self.update.flops / (self.update.seconds * self.layout.num_gpus * self.gpu.peak_flops_per_s)


def make_plan(
    config: Config, hf_config: dict[str, Any], num_gpus: int, gpu: Gpu, workload: Workload, engines: Engines
) -> Plan:
    """Raises ConfigError if the values contradict each other or the layout does not divide."""
    if faults := [*value_faults(config), *layout_faults(config.actor, hf_config, num_gpus)]:
        raise ConfigError(faults)
    sizes, layout = Sizes.of(hf_config), Layout.of(config.actor, num_gpus)
    trainer = Trainer(config, sizes, layout, gpu, workload)
    has_reference = workload.reference_contexts > 0
    memory = trainer_memory(
        sizes, layout, config.actor, config.optimizer, row_share=workload.row_share, reference=has_reference
    )
    sequence = workload.prompt_tokens + workload.response_tokens
    per_engine = min(engines.max_sequences, workload.num_episodes / engines.num_engines)
    serving = engine_memory(
        sizes,
        gpu,
        tensor=engines.tensor,
        wanted_tokens=max(1.0, per_engine) * sequence,
        resident_trainer=memory.while_sampling if engines.is_colocated else 0.0,
        memory_share=engines.memory_share,
    )
    rows = workload.num_samples * workload.response_tokens
    nothing = PhaseTime({}, {})
    reference = nothing
    if has_reference:
        swap = trainer.swap_reference()
        scored = trainer.score(workload.reference_score_tokens, workload.reference_contexts * rows)
        reference = PhaseTime(scored.parts | swap.parts, scored.sent_bytes, scored.flops)
    policy_tokens = workload.policy_score_tokens
    return Plan(
        config=config,
        sizes=sizes,
        layout=layout,
        gpu=gpu,
        workload=workload,
        engines=engines,
        trainer_memory=memory,
        engine_memory=serving,
        rollout=rollout_time(
            sizes,
            gpu,
            engines,
            workload,
            concurrency=config.skills.concurrency,
            cache_sequences=serving.cache_tokens / sequence,
        ),
        score=trainer.score(policy_tokens, workload.policy_contexts * rows) if policy_tokens else nothing,
        reference=reference,
        update=trainer.update(),
        weight_sync=trainer.weight_sync(_engine_bytes_per_s(engines)),
    )


def _engine_bytes_per_s(engines: Engines) -> float:
    """Colocated engines read the trainer's memory; others get one broadcast over the sender's network card."""
    return constant("nvlink_bytes_per_s") if engines.is_colocated else constant("nic_bytes_per_s")
