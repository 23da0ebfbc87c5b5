"""Starts servers on this machine, watches them come up, restarts and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import httpx

from rollout.address import EVERYWHERE, LOOPBACK
from rollout.engines.base import EngineError
from rollout.engines.commands import ServerCommand, ServerSettings, server_command
from rollout.engines.guard import GRACE_S, KILL_NOW
from rollout.engines.http import ADMIN_KEY, API_KEY

logger = logging.getLogger(__name__)

POLL_S = 0.2
PROGRESS_EVERY_S = 15.0
LOG_TAIL_LINES = 20
MAX_ERRORS = 5
EXCEPTION = re.compile(r"\b[A-Z]\w*(Error|Exception): .+|error while loading shared libraries: .+")
LOWEST_PORT = 10000
# What torchrun and our launcher tell a rank. A server that inherits it takes its own ranks for the trainer's.
OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A directory of counters that servers would share, and add up.
OF_ALL_SERVERS = "PROMETHEUS_MULTIPROC_DIR"

# Settings, port, GPUs, file for keys.
MakeCommand = Callable[[ServerSettings, int, Sequence[str], Path], ServerCommand]


class ServerStartError(EngineError):
    """A server ended, or did not answer in time, while it was starting; the message has its errors and last words."""


@dataclass
class _Server:
    url: str
    command: ServerCommand
    log: Path
    key_file: Path
    process: subprocess.Popen | None = None
    starting: asyncio.Task[None] | None = None
    log_start: int = 0  # bytes of the log that are of earlier processes


class Launcher:
    """`num_servers` servers on this machine, each with `settings.tensor_parallel` of `gpus` (CUDA names, in order).

    Everything they print is appended to `directory`/engine_N.log. They end with this process, whatever ends it. Use as
    a context manager, or `close`.

    Args:
        ports: one for each; by default free ones.
        first_number: the N of the first, where other machines have servers as well.
        make_command: another than `server_command` where faults are to be injected.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        num_servers: int,
        gpus: Sequence[str],
        directory: Path,
        startup_timeout_s: float,
        ports: Sequence[int] | None = None,
        first_number: int = 0,
        make_command: MakeCommand = server_command,
    ):
        directory.mkdir(parents=True, exist_ok=True)
        self._startup_timeout_s = startup_timeout_s
        self._servers: dict[str, _Server] = {}
        if settings.host != LOOPBACK and not os.environ.get(API_KEY):
            raise ServerStartError(f"servers on {settings.host} would serve anyone; set {API_KEY}")
        size, host = settings.tensor_parallel, LOOPBACK if settings.host == EVERYWHERE else settings.host
        for index, port in enumerate(ports or free_ports(num_servers, host)):
            url, name = f"http://{host}:{port}", f"engine_{first_number + index}"
            own_gpus = gpus[index * size : (index + 1) * size]
            key_file = directory / f"{name}.keys.yaml"
            command = make_command(settings, port, own_gpus, key_file)
            self._servers[url] = _Server(url, command, directory / f"{name}.log", key_file)

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(self._servers)

    def pid(self, url: str) -> int:
        """The process that guards the server."""
        return self._servers[url].process.pid

    async def start(self) -> None:
        """Start all servers; returns when every one answers.

        Raises:
            ServerStartError: one ended, or did not answer within `startup_timeout_s`.
        """
        for url in self._servers:
            self.spawn(url)
        await asyncio.gather(*(self._wait_until_healthy(server) for server in self._servers.values()))

    def spawn(self, url: str) -> None:
        """Start the server's process, without waiting until it answers."""
        server = self._servers[url]
        guard = [sys.executable, "-m", "rollout.engines.guard", str(os.getpid())]
        with server.log.open("ab") as log:
            os.fchmod(log.fileno(), 0o600)  # what a server prints may show what it was given
            server.log_start = log.tell()
            server.process = subprocess.Popen(
                [*guard, *server.command.arguments],
                env=_environment() | server.command.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is for the trainer, which stops its servers itself
            )

    def death(self, url: str) -> str | None:
        """Why the server's process ended; None while it runs."""
        code = self._servers[url].process.poll()
        return None if code is None else f"the server ended with code {code}; its log: {self._servers[url].log}"

    async def restart(self, url: str) -> None:
        """Kill the server and start it, or wait on if a restart is under way; returns when it answers.

        Cancelled, it leaves the restart under way: one that takes longer than a training step must not begin anew with
        every step.

        Raises:
            ServerStartError: as `start`.
            OSError: the system makes no process, or no log file.
        """
        server = self._servers[url]
        if server.starting is None or server.starting.done():
            server.starting = asyncio.create_task(self._start_anew(server))
            server.starting.add_done_callback(_retrieve)
        await asyncio.shield(server.starting)

    def stop(self, url: str) -> None:
        """Kill the server, also one that is starting; `restart` starts it again. Called where `restart` is awaited."""
        server = self._servers[url]
        if server.starting is not None:
            server.starting.cancel()
            server.starting = None
        _kill(server)

    def close(self) -> None:
        """Stop all servers: SIGTERM, and SIGKILL to what is left after a grace. Files of keys are deleted."""
        running = [server for server in self._servers.values() if server.process and server.process.poll() is None]
        for server in running:
            server.process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + GRACE_S + 5
        for server in running:
            try:
                server.process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                _kill(server)
        for server in self._servers.values():
            server.key_file.unlink(missing_ok=True)

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def _start_anew(self, server: _Server) -> None:
        _kill(server)
        await _wait_until_silent(server.url)
        self.spawn(server.url)
        await self._wait_until_healthy(server)

    async def _wait_until_healthy(self, server: _Server) -> None:
        started_s = said_s = time.monotonic()
        async with httpx.AsyncClient(base_url=server.url, timeout=5.0, trust_env=False) as client:
            while True:
                answers = await _answers(client)
                if (code := server.process.poll()) is not None:  # whoever answers there
                    raise ServerStartError(f"a server ended with code {code} at its start\n{_last_words(server)}")
                if answers:
                    return
                now_s = time.monotonic()
                if now_s - started_s > self._startup_timeout_s:
                    _kill(server)
                    waited = f"{self._startup_timeout_s:.0f} s (engine.startup_timeout_s)"
                    raise ServerStartError(f"{server.url} did not answer within {waited}\n{_last_words(server)}")
                if now_s - said_s > PROGRESS_EVERY_S:
                    said_s = now_s
                    last = "\n".join([*_printed(server)[-1:], f"  ({server.log})"]).strip()
                    logger.warning("%s has been starting for %.0f s: %s", server.url, now_s - started_s, last)
                await asyncio.sleep(POLL_S)


def _retrieve(start: asyncio.Task[None]) -> None:
    """Nobody need wait for a start that fails: the next restart begins anew, and says why if it fails as well."""
    if not start.cancelled():
        start.exception()


def _environment() -> dict[str, str]:
    """This process's, without what made it a rank and what servers may not share."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in (*OF_A_RANK, OF_ALL_SERVERS) and not name.startswith("TORCHELASTIC_")
    }


async def _answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).status_code == 200
    except httpx.HTTPError:
        return False


async def _wait_until_silent(url: str) -> None:
    """One whose guard was killed takes a while to end: it would pass for the next."""
    deadline_s = time.monotonic() + GRACE_S
    async with httpx.AsyncClient(base_url=url, timeout=5.0, trust_env=False) as client:
        while await _answers(client) and time.monotonic() < deadline_s:
            await asyncio.sleep(POLL_S)


def _kill(server: _Server) -> None:
    """Have the guard kill the server's process group at once."""
    while server.process is not None and server.process.poll() is None:
        server.process.send_signal(KILL_NOW)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(1.0)


def _last_words(server: _Server) -> str:
    """The first exceptions in what the server's process printed, and its last lines: a cause lies far above the end, as
    one process of the server after another passes on that it failed."""
    lines = _printed(server)
    errors = dict.fromkeys(match[0] for line in lines if (match := EXCEPTION.search(line)))
    words = ["its errors:", *(f"  {error}" for error in islice(errors, MAX_ERRORS))] if errors else []
    words += ["its log ends:", *(f"  {line}" for line in lines[-LOG_TAIL_LINES:]), f"  ({server.log})"]
    return "\n".join(words)


def _printed(server: _Server) -> list[str]:
    """The lines that the server's process printed, keys hidden."""
    text = server.log.read_bytes()[server.log_start :].decode(errors="replace")
    for key in filter(None, map(os.environ.get, (API_KEY, ADMIN_KEY))):
        text = text.replace(key, "***")
    return text.splitlines()


def free_ports(count: int, host: str) -> list[int]:
    """Ports of an address that nobody listens on now, at random, outside of the range from which the kernel gives ports
    to outgoing connections: one of those could hold a server's port in the moment of its restart."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    candidates = [port for port in range(LOWEST_PORT, 65536) if not low <= port <= high] or list(range(low, high))
    random.SystemRandom().shuffle(candidates)  # not by the run's seed: runs beside each other take other ports
    ports: list[int] = []
    for port in candidates:
        if len(ports) == count:
            return ports
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            ports.append(port)
    raise ServerStartError(f"no {count} free ports on {host}")
