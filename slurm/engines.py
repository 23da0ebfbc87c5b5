"""The engine servers of one node: `srun --ntasks-per-node=1 python -m slurm.engines OVERRIDES` on each engine node.

Each node runs `engine.num_servers` servers on its first GPUs, on the ports from ENGINE_PORT on; the trainer's nodes
compute the same addresses from ENGINE_HOSTS. A server that ends is started again, a few times. They serve whoever has
the job's key, until SIGUSR2. SIGTERM is ignored: Slurm sends it to every step when it takes the nodes back, and the
trainer needs its engines to finish a step and save.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from megatron_opid.config import Config, ConfigError, load
from megatron_opid.launch import EXIT_BAD_INPUT, request_flag

if TYPE_CHECKING:
    from rollout.engines.launch import Launcher

POLL_S = 0.5
PROGRESS_EVERY_S = 30.0
END = signal.SIGUSR2  # from the batch script, when the trainer has ended
MAX_RESTARTS = 3  # of each server


class EnginesError(RuntimeError):
    """The engines of this job cannot serve."""


def is_in_step(module: str, environment: Mapping[str, str], names: Sequence[str]) -> bool:
    """Whether a job's step has started this process, by `names` in its environment; if not, that is said."""
    missing = [name for name in names if name not in environment]
    if missing:
        print(
            f"{module} runs under srun in a job of slurm/*.sbatch (docs/slurm.md); not set: {', '.join(missing)}",
            file=sys.stderr,
        )
    return not missing


def engine_urls(config: Config, environment: Mapping[str, str]) -> list[str]:
    """The addresses of all servers of the job; empty where it has no engine nodes."""
    ports = range(int(environment["ENGINE_PORT"]), int(environment["ENGINE_PORT"]) + config.engine.num_servers)
    return [f"http://{host}:{port}" for host in environment["ENGINE_HOSTS"].split() for port in ports]


def wait_until_healthy(urls: Sequence[str], timeout_s: float) -> None:
    """Return when every server answers.

    Raises:
        EnginesError: one did not within `timeout_s`.
    """
    started_s = said_s = time.monotonic()
    waiting = list(urls)
    while waiting := [url for url in waiting if not _answers(url)]:
        now_s = time.monotonic()
        if now_s - started_s > timeout_s:
            raise EnginesError(f"no answer within {timeout_s:.0f} s (engine.startup_timeout_s) of {', '.join(waiting)}")
        if now_s - said_s > PROGRESS_EVERY_S:
            said_s = now_s
            print(f"waiting for {len(waiting)} of {len(urls)} engines, {now_s - started_s:.0f} s", file=sys.stderr)
        time.sleep(POLL_S)


def serve(launcher: Launcher) -> None:
    """Keep a node's servers running, until END.

    Raises:
        EnginesError: one ended more than MAX_RESTARTS times; the message has its log.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop = request_flag([END])
    num_deaths = Counter()
    with launcher:
        for url in launcher.urls:
            launcher.spawn(url)
        while not stop():
            time.sleep(POLL_S)
            for url in launcher.urls:
                if (death := launcher.death(url)) is None or stop():
                    continue
                num_deaths[url] += 1
                if num_deaths[url] > MAX_RESTARTS:
                    raise EnginesError(f"after {MAX_RESTARTS} restarts {death}")
                print(f"{death}; it is started again", file=sys.stderr)
                launcher.spawn(url)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from megatron_opid.servers import server_settings
    from rollout.address import EVERYWHERE
    from rollout.engines.launch import Launcher, ServerStartError

    if not is_in_step("slurm.engines", os.environ, ("SLURM_NODEID", "ENGINE_PORT", "ATTEMPT_LOGS")):
        return EXIT_BAD_INPUT
    try:
        config = load(sys.argv[1:] if arguments is None else arguments)
        if config.engine.name == "local":
            raise ConfigError(["engine.name=local has no servers for engine nodes; set vllm or sglang"])
    except ConfigError as error:
        print(f"slurm.engines: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    engine, port = config.engine, int(os.environ["ENGINE_PORT"])
    try:
        launcher = Launcher(
            replace(server_settings(config), host=EVERYWHERE),  # other nodes must reach it
            num_servers=engine.num_servers,
            gpus=[str(gpu) for gpu in range(engine.num_servers * engine.tensor_parallel)],
            directory=Path(os.environ["ATTEMPT_LOGS"]) / "engines",
            startup_timeout_s=engine.startup_timeout_s,
            ports=range(port, port + engine.num_servers),
            first_number=int(os.environ["SLURM_NODEID"]) * engine.num_servers,
        )
        serve(launcher)
    except (EnginesError, ServerStartError) as error:
        print(f"slurm.engines: {error}", file=sys.stderr)
        return 1
    return 0


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    sys.exit(main())
