"""Explains what a configuration needs on a number of GPUs: memory, communication, time of each phase.

    python -m tools.plan experiment=alfworld_qwen3_1_7b gpus=8 [gpu=h100|h200] [engine_gpus=8] [OVERRIDE ...] [--json]

`gpus` are the trainer's ranks, `engine_gpus` those of engines on GPUs of their own (engine.placement=disaggregated).
The model's config.json is read where it lies (actor.model, MODELS_ROOT); the published Qwen sizes are built in. Exit
code 1 if it does not fit, 2 for a configuration that cannot run. docs/plan.md has the equations and their errors.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from megatron_opid.config import Config, ConfigError, load
from megatron_opid.weights.hf_config import HfConfigError
from tools.plan.advice import alternatives
from tools.plan.constants import gpu
from tools.plan.plan import make_plan
from tools.plan.report import as_json, as_text, constants_text
from tools.plan.rollout import Engines
from tools.plan.shape import find_hf_config
from tools.plan.workload import Workload

GPU_NAMES = ("h100", "h200")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan; see the module."""
    options = _parse(arguments)
    if options.constants:
        print(constants_text())
        return 0
    try:
        plan, fitting = _plan(options)
    except (ConfigError, HfConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(as_json(plan, fitting), indent=1) if options.json else as_text(plan, fitting))
    return 0 if plan.fits else 1


def _plan(options: argparse.Namespace):
    words = (override.partition("=") for override in options.overrides)
    own = {key: value for key, _, value in words if key in ("gpus", "gpu", "engine_gpus")}
    config = load([o for o in options.overrides if o.partition("=")[0] not in own])
    counts = {"gpus": own.get("gpus", ""), "engine_gpus": own.get("engine_gpus", "1")}
    faults = [
        f"{name}={count!r} is not a number of GPUs; set {name}=8"
        for name, count in counts.items()
        if not count.isdigit() or int(count) < 1
    ]
    if own.get("gpu", "h200") not in GPU_NAMES:
        faults.append(f"gpu={own['gpu']!r} is not known; set {' or '.join(GPU_NAMES)}")
    if faults:
        raise ConfigError(faults)
    num_gpus = int(own["gpus"])
    hf_config = find_hf_config(config.actor.model)
    workload = Workload.of(
        config,
        mean_steps=options.mean_steps,
        prompt_tokens=options.mean_prompt_tokens,
        response_tokens=options.mean_response_tokens,
    )
    engines = _engines(config, num_gpus, int(own["engine_gpus"]) if "engine_gpus" in own else None)
    plan = make_plan(config, hf_config, num_gpus, gpu(own.get("gpu", "h200")), workload, engines)
    return plan, alternatives(plan, hf_config) if not plan.fits else []


def _engines(config: Config, num_gpus: int, engine_gpus: int | None) -> Engines:
    """Colocated servers share the trainer's GPUs; others have `engine_gpus`, by default one machine's servers."""
    engine = config.engine
    is_local = engine.name == "local"
    is_colocated = is_local or engine.placement == "colocated"
    tensor = 1 if is_local else engine.tensor_parallel
    gpus = num_gpus if is_colocated else engine_gpus or engine.num_servers * tensor
    faults = []
    if engine_gpus and is_colocated:
        faults.append(f"engine_gpus={engine_gpus} needs engine.placement=disaggregated")
    if gpus % tensor:
        faults.append(f"engine.tensor_parallel={tensor} does not divide {gpus} GPUs")
    if faults:
        raise ConfigError(faults)
    share = 1.0 if is_local else engine.gpu_memory_utilization
    return Engines(gpus // tensor, tensor, is_local, is_colocated, engine.max_batch_sequences, share)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="gpus=N, gpu=h100|h200, engine_gpus=N and overrides")
    parser.add_argument("--mean-steps", type=float, help="steps of an episode")
    parser.add_argument("--mean-prompt-tokens", type=float)
    parser.add_argument("--mean-response-tokens", type=float)
    parser.add_argument("--json", action="store_true", help="every figure as JSON")
    parser.add_argument("--constants", action="store_true", help="print the table of constants and stop")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
