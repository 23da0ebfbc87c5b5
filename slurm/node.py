"""One node's part of a job: `srun --ntasks-per-node=1 python -m slurm.node MODULE ARGUMENTS` starts the node's ranks.

A node runs `run.num_processes` ranks. They meet at MASTER_ADDR and MASTER_PORT, which slurm/job.sh derives from the
job, and leave logs and tracebacks in ATTEMPT_LOGS.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from megatron_opid.config import Config, ConfigError, load, resolve_model
from megatron_opid.launch import EXIT_BAD_INPUT, run_ranks
from megatron_opid.ranks import Machine
from slurm.engines import EnginesError, engine_urls, is_in_step, wait_until_healthy
from slurm.stage import StageError, stage

# With Slurm's KillWait (30 s) for the other nodes, a job ends within a minute of the first rank's failure.
MAX_SHUTDOWN_GRACE_S = 15


def machine_of(config: Config, environment: Mapping[str, str]) -> Machine:
    """This node's share of the job, from the variables of its step."""
    num_ranks = config.run.num_processes
    return Machine(
        num_ranks=num_ranks,
        world_size=num_ranks * int(environment["SLURM_STEP_NUM_NODES"]),
        directory=Path(environment["ATTEMPT_LOGS"]),
        first_rank=num_ranks * int(environment["SLURM_NODEID"]),
        with_logs=True,
    )


def preparations(config: Config, environment: Mapping[str, str]) -> list[str]:
    """What has to be there before the ranks start: the node's copy of the model, the job's engines. As overrides.

    Raises:
        StageError, EnginesError: it is not to be had.
    """
    overrides = []
    if environment.get("STAGE_MODELS") == "1":
        model = stage(resolve_model(config.actor.model), Path(environment["LOCAL_SCRATCH"]))
        overrides.append(f"actor.model={model}")
    if environment.get("ENGINE_HOSTS"):
        urls = engine_urls(config, environment)
        wait_until_healthy(urls, config.engine.startup_timeout_s)
        overrides += [f"engine.urls=[{','.join(urls)}]", "engine.cpu_servers=false"]
    return overrides


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code of the node's first rank that ended badly, else 0."""
    if not is_in_step("slurm.node", os.environ, ("SLURM_NODEID", "SLURM_STEP_NUM_NODES", "ATTEMPT_LOGS")):
        return EXIT_BAD_INPUT
    module, *overrides = sys.argv[1:] if arguments is None else arguments
    try:
        config = load(overrides)
    except ConfigError as error:
        if os.environ["SLURM_NODEID"] == "0":
            print(f"{module}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    try:
        overrides += preparations(config, os.environ)
    except (EnginesError, StageError) as error:
        print(f"{os.uname().nodename}: {error}", file=sys.stderr)
        return 1
    return run_ranks(
        module,
        overrides,
        machine_of(config, os.environ),
        shutdown_grace_s=min(config.run.shutdown_grace_s, MAX_SHUTDOWN_GRACE_S),
        signal_grace_s=config.run.signal_grace_s,
    )


if __name__ == "__main__":
    sys.exit(main())
