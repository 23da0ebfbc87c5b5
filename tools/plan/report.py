"""A plan as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tools.plan.advice import GIB, warnings
from tools.plan.constants import CONSTANTS
from tools.plan.phases import PhaseTime
from tools.plan.plan import Plan

BAR_WIDTH = 28


def as_json(plan: Plan, fitting: Sequence[tuple[str, Plan]]) -> dict[str, Any]:
    """Every figure of the report; bytes and seconds."""
    phases = _phases(plan)
    return {
        "model": {"name": plan.config.actor.model, "parameters": plan.sizes.parameters},
        "gpus": plan.layout.num_gpus,
        "gpu": asdict(plan.gpu),
        "layout": asdict(plan.layout) | {"data": plan.layout.data},
        "workload": asdict(plan.workload) | {"num_samples": plan.workload.num_samples},
        "engines": asdict(plan.engines),
        "trainer_memory": asdict(plan.trainer_memory) | {"total": plan.trainer_memory.total},
        "engine_memory": asdict(plan.engine_memory),
        "rollout": asdict(plan.rollout),
        "phases": {name: asdict(phase) | {"seconds": phase.seconds} for name, phase in phases.items()},
        "analyzer_s": plan.analyzer_s,
        "step_s": plan.step_s,
        "update_mfu": plan.update_mfu,
        "fits": plan.fits,
        "warnings": warnings(plan),
        "alternatives": [{"set": name, "step_s": other.step_s} for name, other in fitting],
        "constants": {name: asdict(constant) for name, constant in CONSTANTS.items()},
    }


def as_text(plan: Plan, fitting: Sequence[tuple[str, Plan]]) -> str:
    """The report of the terminal."""
    blocks = [_heading(plan), _memory(plan), _engine(plan), _time(plan), _traffic(plan)]
    found = warnings(plan)
    if found:
        blocks.append("Warnings\n" + "\n".join(f"  ! {warning}" for warning in found))
    if fitting:
        lines = [f"  {name:<58} step {other.step_s:7.1f} s" for name, other in fitting[:5]]
        blocks.append("It fits with one of\n" + "\n".join(lines))
    blocks.append(
        "Rollout, traffic between nodes and the step as a whole were held against no measurement. docs/plan.md: how\n"
        "far off the rest is, constants and equations; --constants: where they come from"
    )
    return "\n\n".join(blocks)


def constants_text() -> str:
    """The table of constants."""
    width = max(len(name) for name in CONSTANTS)
    return "\n".join(
        f"{name:<{width}}  {constant.value:>10.4g} {constant.unit:<13} {constant.kind:<10} {constant.source}"
        for name, constant in CONSTANTS.items()
    )


def _heading(plan: Plan) -> str:
    layout, workload, actor = plan.layout, plan.workload, plan.config.actor
    names = {
        "TP": layout.tensor,
        "PP": layout.pipeline,
        "VPP": layout.virtual_pipeline,
        "CP": layout.context,
        "EP": layout.expert,
        "ETP": layout.expert_tensor,
        "DP": layout.data,
    }
    sizes = " ".join(f"{name} {size}" for name, size in names.items() if size > 1 or name in ("TP", "PP", "DP"))
    sequence = ", sequence parallel" if layout.sequence_parallel else ""
    return (
        f"{actor.model}: {_count(plan.sizes.parameters)} parameters on {layout.num_gpus} {plan.gpu.name.upper()} "
        f"({layout.num_nodes} nodes)\n"
        f"  layout     {sizes}{sequence}; micro-batches of {actor.tokens_per_micro_batch:,} tokens, recompute "
        f"{actor.recompute}\n"
        f"  a step     {workload.num_episodes:,} episodes, {workload.num_samples:,.0f} samples of "
        f"{workload.prompt_tokens:,.0f} + {workload.response_tokens:,.0f} tokens, {workload.num_updates} updates; "
        f"scored {workload.policy_contexts:g} times by the policy, {workload.reference_contexts:g} by the reference"
    )


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e8 else f"{number / 1e6:.2f} M"


def _memory(plan: Plan) -> str:
    memory, whole = plan.trainer_memory, plan.gpu.memory_bytes
    stage = "" if memory.stage == "only" else f", {memory.stage} stage"
    lines = [f"Training, GiB a GPU{stage}"]
    lines += [f"  {name:<12} {size / GIB:7.1f}  {_bar(size / whole)}" for name, size in memory.parts.items() if size]
    verdict = "fits" if memory.total <= whole else "DOES NOT FIT"
    lines.append(f"  {'total':<12} {memory.total / GIB:7.1f}  of {whole / GIB:.1f}: {verdict}")
    host = {name: size for name, size in memory.host.items() if size}
    if host:
        ranks = min(plan.layout.num_gpus, 8)
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in host.items())
        lines.append(f"  host memory  {parts} GiB a rank, {ranks * sum(host.values()) / GIB:.0f} a node of {ranks}")
    return "\n".join(lines)


def _engine(plan: Plan) -> str:
    engine, engines = plan.engine_memory, plan.engines
    kind = "local (transformers)" if engines.is_local else "server"
    place = "on the trainer's GPUs" if engines.is_colocated else "on GPUs of their own"
    lines = [
        f"Sampling, GiB a GPU: {engines.num_engines} {kind} engines of {engines.tensor} GPUs, {place}",
        f"  {'weights':<12} {engine.weights / GIB:7.1f}",
        f"  {'trainer':<12} {engine.resident_trainer / GIB:7.1f}",
        f"  {'cache':<12} {engine.cache / GIB:7.1f}  {engine.cache_tokens:,.0f} tokens of "
        f"{engine.cache_bytes_per_token / 1024:.0f} KiB; episodes fill {engine.wanted_tokens:,.0f}",
    ]
    return "\n".join(lines)


def _time(plan: Plan) -> str:
    rollout = plan.rollout
    lines = [f"Time of a step: {plan.step_s:.1f} s"]
    sampled = f"prefill {rollout.prefill_s:.1f}, decode {rollout.decode_s:.1f}, environment {rollout.environment_s:.2f}"
    lines.append(_time_line("rollout", rollout.seconds, plan.step_s, sampled))
    if plan.workload.num_analyses:
        beside = f"{rollout.analyzed_s - rollout.seconds:.0f} after the last episode, less what needs no skills"
        lines.append(_time_line("analyzer", plan.analyzer_s, plan.step_s, beside))
    lines += [
        _time_line(name, phase.seconds, plan.step_s, _parts(phase.parts)) for name, phase in _phases(plan).items()
    ]
    rate = plan.workload.update_tokens / plan.update.seconds / plan.layout.num_gpus
    lines.append(
        f"  {rollout.tokens_per_s:,.0f} tokens/s sampled, {1e3 * rollout.decode_step_s:.1f} ms a decode step; update "
        f"at {plan.update_mfu:.0%} MFU, {rate:,.0f} tokens/s a GPU"
    )
    return "\n".join(lines)


def _traffic(plan: Plan) -> str:
    sums: dict[str, float] = {}
    for phase in _phases(plan).values():
        for name, sent in phase.sent_bytes.items():
            sums[name] = sums.get(name, 0.0) + sent
    return "Sent by one rank in a step, GB\n  " + _parts({name: sent / 1e9 for name, sent in sums.items()})


def _phases(plan: Plan) -> dict[str, PhaseTime]:
    phases = {"score": plan.score, "reference": plan.reference, "update": plan.update, "weight sync": plan.weight_sync}
    return {name: phase for name, phase in phases.items() if phase.parts}


def _parts(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in parts.items() if value >= 0.05)


def _time_line(name: str, seconds: float, whole: float, detail: str) -> str:
    return f"  {name:<12} {seconds:7.1f}  {_bar(seconds / whole):<{BAR_WIDTH}} {detail}"


def _bar(share: float) -> str:
    return "█" * max(1, min(BAR_WIDTH, round(share * BAR_WIDTH)))
