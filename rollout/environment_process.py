"""The child process that hosts environments: answers requests on a socket until the parent goes away.

Started by rollout.process_environments as `python -m rollout.environment_process FD PACKAGE`. It imports that package
and nothing of the trainer (multiprocessing's spawn would import the parent's main module again, with Megatron).
A request is (request id, environment id, method, argument); the answer is (request id, None or an error text, value).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from envs.base import Environment


def main(descriptor: int, package_name: str) -> None:
    """Serve until the socket closes."""
    # Stopping is the parent's business, which may have a step to finish; its end closes the socket.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what environments print must not mix with the parent's output
    connection = Connection(descriptor)
    package = importlib.import_module(package_name)
    options = connection.recv()
    environments: dict[int, Environment] = {}
    while True:
        try:
            request_id, environment_id, method, argument = connection.recv()
        except EOFError:
            return
        try:
            if environment_id not in environments:
                environments[environment_id] = package.make_environment(options)
            value = _call(environments, environment_id, method, argument)
        except Exception as error:
            connection.send((request_id, f"{method}: {type(error).__name__}: {error}", None))
        else:
            connection.send((request_id, None, value))


def _call(environments: dict[int, Environment], environment_id: int, method: str, argument: Any) -> Any:
    if method == "close":
        return environments.pop(environment_id).close()
    return getattr(environments[environment_id], method)(argument)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
