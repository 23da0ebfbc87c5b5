"""Servers with a first-come-first-served queue in a simpy simulation."""

from __future__ import annotations

import heapq

import simpy


class Servers:
    """`count` equal servers and one queue; `busy_s` is the service time given so far.

    A customer's start is known when it arrives, because service times are: no event is needed for the queue itself.
    """

    def __init__(self, environment: simpy.Environment, count: int):
        if count < 1:
            raise ValueError(f"{count} servers serve nobody; give at least 1")
        self._environment = environment
        self._free_at_s = [0.0] * count
        self.busy_s = 0.0
        self.waited_s = 0.0
        self.num_served = 0

    def serve(self, service_s: float) -> simpy.Timeout:
        """An event at the end of the service. Customers are served in the order of their calls."""
        now = self._environment.now
        start = max(now, heapq.heappop(self._free_at_s))
        heapq.heappush(self._free_at_s, start + service_s)
        self.busy_s += service_s
        self.waited_s += start - now
        self.num_served += 1
        return self._environment.timeout(start + service_s - now)

    @property
    def mean_wait_s(self) -> float:
        """From arrival to the start of service."""
        return self.waited_s / self.num_served if self.num_served else 0.0
