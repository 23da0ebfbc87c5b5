"""What runs in the background, and what runs beside it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from rollout.event_loop import EventLoop


async def value_after(seconds: float, value: int) -> int:
    await asyncio.sleep(seconds)
    return value


@pytest.fixture
def loop():
    loop = EventLoop()
    yield loop
    loop.close()


def test_guests_run_beside_what_was_started(loop: EventLoop):
    guest_was_there = threading.Event()

    async def wait_for_guest() -> int:
        while not guest_was_there.is_set():
            await asyncio.sleep(0.001)
        return 1

    async def guest() -> int:
        guest_was_there.set()
        return 2

    started = loop.start(wait_for_guest())
    assert loop.run(guest()) == 2
    assert started.result(timeout=60) == 1
    assert loop.run(value_after(0, 3)) == 3


def test_a_guest_that_stays_longer_ends_too(loop: EventLoop):
    started = loop.start(value_after(0.05, 1))
    assert loop.run(value_after(0.3, 2)) == 2
    assert started.result() == 1


def test_many_starts_and_guests_at_every_moment(loop: EventLoop):
    for number in range(100):
        started = loop.start(value_after(0.002, number))
        for delay_s in (0, 0.001, 0.003):
            assert loop.run(value_after(delay_s, number)) == number
        assert started.result() == number


def test_a_guests_error_is_its_own(loop: EventLoop):
    async def fail() -> None:
        raise ValueError("mine")

    started = loop.start(value_after(0.1, 1))
    with pytest.raises(ValueError, match="mine"):
        loop.run(fail())
    assert started.result() == 1


def test_stopping_cancels_what_was_started(loop: EventLoop):
    started = loop.start(value_after(60, 1))
    loop.run(value_after(0, 0))
    loop.stop()
    with pytest.raises(asyncio.CancelledError):
        started.result(timeout=5)
