"""A real retrieval server on loopback."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rollout.engines.launch import free_ports
from tools.retrieval.load import wait_until_healthy


def free_port() -> int:
    return free_ports(1, "127.0.0.1")[0]


class ServerProcess:
    """`python -m tools.retrieval_server` until the end of the with block."""

    def __init__(self, index: Path, port: int, arguments: Sequence[object] = ()) -> None:
        self.url = f"http://127.0.0.1:{port}/retrieve"
        self._port = port
        command = ["-m", "tools.retrieval_server", "--index", index, "--port", port, *arguments]
        self.process = subprocess.Popen([sys.executable, *map(str, command)])

    def wait(self) -> ServerProcess:
        wait_until_healthy(self._port, timeout_s=120)
        return self

    def __enter__(self) -> ServerProcess:
        return self.wait()

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        # uvicorn ends the requests in work, then itself by the signal that it got.
        assert self.process.wait(timeout=60) == -signal.SIGTERM
