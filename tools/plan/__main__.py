"""Explains what a configuration needs on a number of GPUs: memory, communication, time of each phase.

    python -m tools.plan experiment=alfworld_qwen3_1_7b gpus=8 [gpu=h100|h200] [actor.tensor_parallel=2 ...] [--json]

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
    own = {key: value for key, _, value in (o.partition("=") for o in options.overrides) if key in ("gpus", "gpu")}
    config = load([o for o in options.overrides if o.partition("=")[0] not in own])
    faults = []
    if not own.get("gpus", "").isdigit() or int(own["gpus"]) < 1:
        faults.append(f"gpus={own.get('gpus', '')!r} is not a number of GPUs; set gpus=8")
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
    engines = _engines(config, num_gpus, options)
    plan = make_plan(config, hf_config, num_gpus, gpu(own.get("gpu", "h200")), workload, engines)
    return plan, alternatives(plan, hf_config) if not plan.fits else []


def _engines(config: Config, num_gpus: int, options: argparse.Namespace) -> Engines:
    own_gpus = options.engine_gpus
    tensor = options.engine_tensor
    if (own_gpus or num_gpus) % tensor:
        raise ConfigError([f"--engine-tensor {tensor} does not divide {own_gpus or num_gpus} GPUs"])
    is_local = config.engine.name == "local" and not own_gpus and tensor == 1
    return Engines(
        num_engines=(own_gpus or num_gpus) // tensor,
        tensor=tensor,
        is_local=is_local,
        is_colocated=not own_gpus,
        max_sequences=config.engine.max_batch_sequences if is_local else options.engine_sequences,
        memory_share=0.95 if is_local or not own_gpus else 0.9,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="gpus=N, gpu=h100|h200 and overrides of the configuration")
    parser.add_argument("--engine-tensor", type=int, default=1, help="GPUs of one engine")
    parser.add_argument("--engine-gpus", type=int, default=0, help="GPUs for engines alone; 0: on the trainer's")
    parser.add_argument("--engine-sequences", type=int, default=256, help="sequences that a server decodes at once")
    parser.add_argument("--mean-steps", type=float, help="steps of an episode")
    parser.add_argument("--mean-prompt-tokens", type=float)
    parser.add_argument("--mean-response-tokens", type=float)
    parser.add_argument("--json", action="store_true", help="every figure as JSON")
    parser.add_argument("--constants", action="store_true", help="print the table of constants and stop")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
