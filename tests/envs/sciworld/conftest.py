"""One Java machine for all of these tests."""

from collections.abc import Iterator

import pytest

from envs import sciworld
from envs.sciworld.environment import SciworldEnvironment
from envs.sciworld.java import borrow_machine, return_machine

TASKS = [
    "find-animal",
    "find-plant",
    "lifespan-longest-lived",
    "power-component",
    "chemistry-mix-paint-secondary-color",
]
OPTIONS = {"data": "", "tasks": TASKS, "variations_per_task": 2, "heap_mib": 256}


@pytest.fixture(scope="session")
def machine():
    """Keeps the process's Java machine from ending between tests."""
    machine = borrow_machine(OPTIONS["heap_mib"])
    yield machine
    return_machine(machine)


@pytest.fixture
def environments(machine) -> Iterator[tuple[SciworldEnvironment, SciworldEnvironment]]:
    """Two environments in one Java machine."""
    pair = sciworld.make_environment(OPTIONS), sciworld.make_environment(OPTIONS)
    yield pair
    for environment in pair:
        environment.close()
