"""Environments for many coroutines: what an episode awaits, and the environments of the worker's own process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from envs.base import Environment, EnvironmentPackage, Outcome, Start, Task


class EnvironmentFault(RuntimeError):
    """An environment crashed, hung or lost its process: the episode that used it becomes a failure."""


class AsyncEnvironment(Protocol):
    """One environment as an episode sees it. Every method may raise EnvironmentFault."""

    async def reset(self, task: Task) -> Start: ...

    async def step(self, action: str) -> Outcome: ...


class EnvironmentPool(Protocol):
    """Lends environments. A borrowed one goes back by `release` if it is fit for another task, else by `discard`."""

    num_restarts: int  # processes replaced since the pool was made

    def borrow(self) -> AsyncEnvironment: ...

    def release(self, environment: AsyncEnvironment) -> None: ...

    def discard(self, environment: AsyncEnvironment) -> None: ...

    def waiting(self) -> list[str]:
        """The processes that episodes wait for at the moment, a line each; callable from any thread."""
        ...

    def close(self) -> None: ...


class InlineEnvironment:
    """An environment in this process; calls run to their end at once: episodes interleave at engine requests only."""

    def __init__(self, environment: Environment):
        self.environment = environment

    async def reset(self, task: Task) -> Start:
        # Whatever an environment raises is its own fault, and must not end the other episodes.
        try:
            return self.environment.reset(task)
        except Exception as error:
            raise EnvironmentFault(f"reset: {type(error).__name__}: {error}") from error

    async def step(self, action: str) -> Outcome:
        try:
            return self.environment.step(action)
        except Exception as error:
            raise EnvironmentFault(f"step: {type(error).__name__}: {error}") from error


class InlineEnvironments:
    """As many environments as are borrowed at once, made when first needed and used again."""

    num_restarts = 0

    def __init__(self, package: EnvironmentPackage, options: Mapping[str, Any]):
        self._package = package
        self._options = options
        self._free: list[InlineEnvironment] = []

    def borrow(self) -> InlineEnvironment:
        return self._free.pop() if self._free else InlineEnvironment(self._package.make_environment(self._options))

    def release(self, environment: InlineEnvironment) -> None:
        self._free.append(environment)

    def discard(self, environment: InlineEnvironment) -> None:
        environment.environment.close()

    def waiting(self) -> list[str]:
        return []

    def close(self) -> None:
        while self._free:
            self._free.pop().environment.close()
