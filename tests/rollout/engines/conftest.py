"""Real server processes, started once for all tests of this directory: two that speak vLLM's dialect, one SGLang's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from rollout.engines.commands import ServerSettings
from rollout.engines.http import HttpEngine
from rollout.engines.launch import Launcher
from rollout.engines.sglang import SglangEngine
from rollout.engines.vllm import VllmEngine
from tests.rollout.tiny import make_model, make_tokenizer
from tools.faulty_server import faulty_command, inject

KINDS = {"vllm": VllmEngine, "sglang": SglangEngine}
# Control routes, by dialect.
PAUSE = {"vllm": "/sleep", "sglang": "/pause_generation"}
RESUME = {"vllm": "/wake_up", "sglang": "/continue_generation"}
EMPTY_CACHE = {"vllm": "/reset_prefix_cache", "sglang": "/flush_cache"}


def write_model(directory: Path, seed: int) -> Path:
    make_model(seed).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


@dataclass
class Farm:
    """The servers' launchers by dialect, the directory of models (by seed), and where faults are written."""

    launchers: dict[str, Launcher]
    models: dict[int, Path]
    faults: Path

    def urls(self, dialect: str) -> tuple[str, ...]:
        return self.launchers[dialect].urls

    def engine(self, dialect: str, index: int = 0, **timeouts: float) -> HttpEngine:
        return KINDS[dialect](self.urls(dialect)[index], **timeouts)

    def inject(self, url: str, fault: str) -> None:
        """The next requests to sample meet `fault`; "" ends that."""
        inject(self.faults, url, fault)


def kill_server(farm: Farm, dialect: str, index: int) -> None:
    """SIGKILL to the server itself, whose guard ends with it."""
    launcher = farm.launchers[dialect]
    (server,) = psutil.Process(launcher.pid(launcher.urls[index])).children()
    server.kill()


@pytest.fixture(scope="package")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    root = tmp_path_factory.mktemp("farm")
    faults = root / "faults"
    faults.mkdir()
    models = {seed: write_model(root / f"model_{seed}", seed) for seed in (0, 1)}
    launchers = {
        dialect: Launcher(
            ServerSettings(dialect, models[0], "float32", 512, on_cpu=True),
            num_servers=number,
            gpus=(),
            directory=root / dialect,
            startup_timeout_s=120,
            make_command=partial(faulty_command, faults=faults),
        )
        for dialect, number in (("vllm", 2), ("sglang", 1))
    }

    async def start() -> None:
        await asyncio.gather(*(launcher.start() for launcher in launchers.values()))

    try:
        asyncio.run(start())
        yield Farm(launchers, models, faults)
    finally:
        for launcher in launchers.values():
            launcher.close()


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the requests that control servers, in order; of a call of vLLM's workers its method."""
    seen: list[str] = []
    request = HttpEngine._control

    def noting(engine: HttpEngine, method: str, route: str, timeout_s: float, **arguments):
        seen.append((arguments.get("json") or {}).get("method") or route.partition("?")[0])
        return request(engine, method, route, timeout_s, **arguments)

    monkeypatch.setattr(HttpEngine, "_control", noting)
    return seen
