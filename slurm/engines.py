"""The engine servers of one node: `srun --ntasks-per-node=1 python -m slurm.engines OVERRIDES` on each engine node.

Each node runs `engine.num_servers` servers on its first GPUs, on the ports from ENGINE_PORT on; the trainer's nodes
compute the same addresses from ENGINE_HOSTS. A server that ends is started again, a few times. They serve whoever has
the job's key, until SIGUSR2. SIGTERM is ignored: Slurm sends it to every step when it takes the nodes back, and the
trainer needs its engines to finish a step and save.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_opid.config import Config, ConfigError, load
from megatron_opid.launch import EXIT_BAD_INPUT, request_flag

POLL_S = 0.5
PROGRESS_EVERY_S = 30.0
END = signal.SIGUSR2  # from the batch script, when the trainer has ended
MAX_RESTARTS = 3  # of each server


class EnginesError(RuntimeError):
    """The engines of this job cannot serve."""


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


def serve(commands: Sequence[tuple[Sequence[str], Mapping[str, str]]], logs: Path) -> None:
    """Keep a server running for each (arguments, environment), until END.

    Raises:
        EnginesError: one ended more than MAX_RESTARTS times; the message has its log.
    """
    logs.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop = request_flag([END])
    node = os.environ["SLURM_NODEID"]
    files = [logs / f"node_{node}_server_{index}.log" for index in range(len(commands))]
    servers = [_start(*command, log) for command, log in zip(commands, files, strict=True)]
    restarts = [0] * len(commands)
    try:
        while not stop():
            time.sleep(POLL_S)
            for index, server in enumerate(servers):
                if server.poll() is None or stop():
                    continue
                restarts[index] += 1
                if restarts[index] > MAX_RESTARTS:
                    raise EnginesError(
                        f"a server ended {restarts[index]} times, the last with code {server.poll()}; "
                        f"its log: {files[index]}"
                    )
                print(
                    f"a server ended with code {server.poll()}, it is started again; its log: {files[index]}",
                    file=sys.stderr,
                )
                servers[index] = _start(*commands[index], files[index])
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait()


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from megatron_opid.engines import server_settings
    from rollout.engines.commands import server_command

    try:
        config = load(sys.argv[1:] if arguments is None else arguments)
        if config.engine.name == "local":
            raise ConfigError(["engine.name=local has no servers for engine nodes; set vllm or sglang"])
    except ConfigError as error:
        print(f"slurm.engines: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    engine, logs = config.engine, Path(os.environ["ATTEMPT_LOGS"]) / "engines"
    logs.mkdir(parents=True, exist_ok=True)
    commands = []
    for index in range(engine.num_servers):
        gpus = [str(gpu) for gpu in range(index * engine.tensor_parallel, (index + 1) * engine.tensor_parallel)]
        keys = logs / f"node_{os.environ['SLURM_NODEID']}_server_{index}.keys.yaml"
        command = server_command(server_settings(config), int(os.environ["ENGINE_PORT"]) + index, gpus, keys)
        # Other nodes must reach it. The last of two --host counts, in all three servers.
        commands.append(((*command.arguments, "--host", "0.0.0.0"), command.environment))
    try:
        serve(commands, logs)
    except EnginesError as error:
        print(f"slurm.engines: {error}", file=sys.stderr)
        return 1
    return 0


def _start(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen:
    guard = [sys.executable, "-m", "rollout.engines.guard", str(os.getpid())]  # nothing of a server outlives the step
    with log.open("ab") as file:
        return subprocess.Popen(
            [*guard, *arguments],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _answers(url: str) -> bool:
    key = os.environ.get("ROLLOUT_ENGINE_API_KEY", "")
    request = urllib.request.Request(f"{url}/health", headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
