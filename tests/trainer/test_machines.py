"""Training on two machines of a rank each, with servers of their own: it learns, to the bit, what one machine learns.

By default both are this machine; `-m slow` gives each a network namespace, whose address alone leads there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from megatron_opid.metrics import read_metrics
from rollout.engines.http import API_KEY
from rollout.engines.launch import free_ports
from tests.trainer.conftest import SmallRun
from tests.trainer.served_run import SERVED, TroubledRun, assert_equal_runs, url_of


@dataclass(frozen=True)
class Machines:
    """Two of them: their addresses, the interface that has it, and what runs a command there."""

    addresses: list[str]
    interface: str
    prefixes: list[list[str]]

    def status_for_a_stranger(self, url: str) -> str:
        """The HTTP status that the second machine gets without a key."""
        ask = "import httpx, sys; print(httpx.get(sys.argv[1], trust_env=False).status_code)"
        command = [*self.prefixes[1], sys.executable, "-c", ask, f"{url}/v1/models"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def machines_on_loopback() -> Iterator[Machines]:
    yield Machines(["127.0.0.1"] * 2, "lo", [[], []])


@contextmanager
def machines_on_a_network() -> Iterator[Machines]:
    """Each has an interface, and a loopback, that the other does not see; needs root."""
    names, addresses = [f"opid_{os.getpid()}_{index}" for index in range(2)], ["10.231.78.1", "10.231.78.2"]
    ends = [f"eth0 netns {name}" for name in names]
    try:
        for name in names:
            _ip(f"netns add {name}")
        _ip(f"link add {ends[0]} type veth peer name {ends[1]}")
        for name, address in zip(names, addresses, strict=True):
            _ip(f"-n {name} addr add {address}/24 dev eth0")
            _ip(f"-n {name} link set eth0 up")
            _ip(f"-n {name} link set lo up")
        yield Machines(addresses, "eth0", [["ip", "netns", "exec", name] for name in names])
    finally:
        for name in names:
            _ip(f"netns del {name}", check=False)


def _ip(words: str, *, check: bool = True) -> None:
    subprocess.run(["ip", *words.split()], check=check)


@pytest.mark.parametrize("network", [machines_on_loopback, pytest.param(machines_on_a_network, marks=pytest.mark.slow)])
def test_two_machines_start_guard_and_mend_their_own_servers(
    small_run: SmallRun, on_server: Path, tmp_path: Path, monkeypatch, network
):
    """A rank on each, and nothing in common but the address of the first; the second one's server is killed."""
    monkeypatch.delenv(API_KEY, raising=False)
    with network() as machines:
        _train_on(machines, small_run, on_server, tmp_path)


def _train_on(network: Machines, small_run: SmallRun, on_server: Path, tmp_path: Path) -> None:
    # The first server stands still for as long as the second one takes to start again: that is not to be called slow.
    placed = {"engine__placement": "colocated", "engine__slow_ratio": 1e6}
    overrides = small_run.overrides(tmp_path / "run", **SERVED, **placed)
    (port,) = free_ports(1, "127.0.0.1")
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": network.addresses[0], "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": network.interface}
    with (tmp_path / "log.txt").open("w") as log:
        machines = [
            TroubledRun(
                tmp_path / "run",
                subprocess.Popen(
                    [*network.prefixes[rank], sys.executable, "-m", "megatron_opid.train", *overrides],
                    env=os.environ | shared | {"RANK": str(rank)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                ),
            )
            for rank in range(2)
        ]
        try:
            machines[0].wait_for(lambda: machines[0].is_in("rollout", 0))
            servers = [machine.server() for machine in machines]
            urls = [url_of(server) for server in servers]
            key = servers[1].environ()[API_KEY]
            assert [urlsplit(url).hostname for url in urls] == network.addresses
            assert network.status_for_a_stranger(urls[0]) == "401"
            assert all(key not in word for process in servers for word in process.cmdline())
            # Both at once, while the second machine plays: what happens after its last episode no step's line counts.
            machines[0].wait_for(lambda: machines[0].is_in("rollout", 1))
            servers[0].suspend()  # so that the rollout cannot end without the second one
            servers[1].kill()
            back = f"engine {urls[1]} serves again"
            machines[0].wait_for(lambda: back in (tmp_path / "log.txt").read_text())
            servers[0].resume()
            codes = [machine.process.wait(180) for machine in machines]
        finally:
            for machine in machines:
                machine.process.kill()
                machine.process.wait()
    assert codes == [0, 0], machines[0].log()
    assert_equal_runs(on_server, tmp_path / "run")
    steps = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["step"] >= 0]
    assert sum(line["rollout/engine/num_faults/dead"] for line in steps) == 1
    assert sum(line["rollout/engine/num_restarts"] for line in steps) == 1
    assert sorted(path.name for path in (tmp_path / "run" / "engines").iterdir()) == ["engine_0.log", "engine_1.log"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if key.encode() in path.read_bytes()]
