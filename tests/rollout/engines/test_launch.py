"""What servers are started with, and what their start leaves behind: nobody else reads a key there."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import json
import stat
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from rollout.engines.base import EngineError
from rollout.engines.commands import (
    ENGINE_PYTHON,
    ServerCommand,
    ServerSettings,
    server_command,
)
from rollout.engines.http import ADMIN_KEY, API_KEY
from rollout.engines.key_guard import KeyGuard
from rollout.engines.launch import OF_A_RANK, OF_ALL_SERVERS, Launcher, ServerStartError
from rollout.event_loop import EventLoop

KEYS = {API_KEY: "key-1234", ADMIN_KEY: "admin-1234"}


@pytest.fixture
def keys(monkeypatch):
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)


def settings_of(
    dialect: str, directory: Path, *, max_model_tokens: int = 512, positions: int = 40_960, **options
) -> ServerSettings:
    (directory / "config.json").write_text(json.dumps({"max_position_embeddings": positions}))
    return ServerSettings(dialect, directory, "bfloat16", max_model_tokens, **options)


def command(dialect: str, directory: Path) -> ServerCommand:
    return server_command(settings_of(dialect, directory), 8000, ["0"], directory / "keys.yaml")


def test_a_key_is_on_no_command_line_and_sglang_does_not_print_it(keys, tmp_path):
    for dialect in ("vllm", "sglang"):
        arguments = command(dialect, tmp_path).arguments
        assert not any(key in word for key in KEYS.values() for word in arguments)
    # SGLang 0.5.14 writes all of its arguments, keys included, at the level info, its default.
    assert arguments[arguments.index("--log-level") + 1] == "warning"
    assert stat.S_IMODE((tmp_path / "keys.yaml").stat().st_mode) == 0o600


def test_a_vllm_server_with_a_key_asks_for_it_everywhere(keys, monkeypatch, tmp_path):
    """vLLM 0.24.0 imports what --middleware names and, since it is a class, makes it with the application alone."""
    arguments = command("vllm", tmp_path).arguments
    module, name = arguments[arguments.index("--middleware") + 1].rsplit(".", 1)
    guard = getattr(importlib.import_module(module), name)
    assert inspect.isclass(guard) and guard(None)
    monkeypatch.delenv(API_KEY)
    assert "--middleware" not in command("vllm", tmp_path).arguments
    with pytest.raises(KeyError, match=API_KEY):
        guard(None)


async def test_a_websocket_needs_the_key_too(keys):
    sent, passed = [], []

    async def application(scope, receive, send) -> None:
        passed.append(scope["type"])

    async def send(message) -> None:
        sent.append(message)

    guard = KeyGuard(application)
    key = (b"authorization", f"Bearer {KEYS[API_KEY]}".encode())
    await guard({"type": "websocket", "path": "/v1/realtime", "headers": []}, None, send)
    assert sent == [{"type": "websocket.close", "code": 1008}] and not passed
    await guard({"type": "websocket", "path": "/v1/realtime", "headers": [key]}, None, send)
    await guard({"type": "lifespan"}, None, send)
    assert passed == ["websocket", "lifespan"]


def test_real_engines_run_in_a_python_of_their_own_where_there_is_one(monkeypatch, tmp_path):
    monkeypatch.delenv(ENGINE_PYTHON, raising=False)
    assert {command(dialect, tmp_path).arguments[0] for dialect in ("vllm", "sglang")} == {sys.executable}
    monkeypatch.setenv(ENGINE_PYTHON, "/opt/engine/bin/python")
    assert {command(dialect, tmp_path).arguments[0] for dialect in ("vllm", "sglang")} == {"/opt/engine/bin/python"}
    ours = settings_of("vllm", tmp_path, on_cpu=True)
    assert server_command(ours, 8000, (), tmp_path / "keys.yaml").arguments[0] == sys.executable


def test_both_ends_of_a_transfer_by_nccl_allocate_alike(monkeypatch, tmp_path):
    """SGLang 0.5.14 sets NCCL_CUMEM_ENABLE=0 unless it is set; NCCL's own default is 1."""
    settings = settings_of("sglang", tmp_path, transfer="nccl")
    for given, wanted in ((None, "1"), ("0", "0")):
        monkeypatch.delenv("NCCL_CUMEM_ENABLE", raising=False)
        if given is not None:
            monkeypatch.setenv("NCCL_CUMEM_ENABLE", given)
        made = server_command(settings, 8000, ["0"], tmp_path / "keys.yaml")
        assert made.environment["NCCL_CUMEM_ENABLE"] == wanted


@pytest.mark.parametrize("port", [1024, 55_535, 55_536, 65_535])
def test_sglang_is_given_a_port_for_grpc_that_exists(tmp_path, port: int):
    """Its own, which nothing opens, is 10,000 above the other one: from 55,536 on it refuses to start."""
    settings = settings_of("sglang", tmp_path)
    grpc_port = int(server_command(settings, port, ["0"], tmp_path / "keys.yaml").environment["SGLANG_GRPC_PORT"])
    assert 1 <= grpc_port <= 65_535 and grpc_port != port


@pytest.mark.parametrize("given", ["", "/opt/lib"])
def test_a_server_that_sleeps_finds_the_cuda_runtime_of_pip(monkeypatch, tmp_path, given: str):
    """SGLang's memory saver is loaded before Python, which alone knows the place."""
    place = tmp_path / "nvidia" / "cu13" / "lib"
    place.mkdir(parents=True)
    (place / "libcudart.so.13").touch()
    (tmp_path / "nvidia" / "cublas" / "lib").mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", given)
    made = {
        sleeps: server_command(
            settings_of("sglang", tmp_path, sleeps=sleeps), 8000, ["0"], tmp_path / "keys.yaml"
        ).environment
        for sleeps in (True, False)
    }
    assert made[True]["LD_LIBRARY_PATH"] == (f"{given}:{place}" if given else str(place))
    assert "LD_LIBRARY_PATH" not in made[False]
    monkeypatch.setenv("ENGINE_PYTHON", "/nowhere/python")
    with pytest.raises(EngineError, match="ENGINE_PYTHON=/nowhere/python is no Python that runs"):
        server_command(settings_of("sglang", tmp_path, sleeps=True), 8000, ["0"], tmp_path / "keys.yaml")


async def test_a_server_that_dies_shows_its_errors_far_above_its_end(tmp_path):
    def failing(*_: object) -> ServerCommand:
        cause = "ValueError: no KV cache fits; python: error while loading shared libraries: libcudart.so.13: no file"
        words = f"print({cause!r}.replace('; ', chr(10))); print('x\\n' * 100); raise RuntimeError('see above')"
        return ServerCommand((sys.executable, "-c", words), {})

    settings = settings_of("vllm", tmp_path, on_cpu=True)
    launcher = Launcher(
        settings, num_servers=1, gpus=(), directory=tmp_path, startup_timeout_s=60, make_command=failing
    )
    with launcher, pytest.raises(ServerStartError) as caught:
        await launcher.start()
    for line in (
        "ValueError: no KV cache fits",
        "loading shared libraries: libcudart.so.13",
        "RuntimeError: see above",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize(("dialect", "on_cpu"), [("vllm", False), ("sglang", False), ("vllm", True)])
def test_arguments_that_were_given_come_last(tmp_path, dialect: str, on_cpu: bool):
    own = ("--attention-backend", "fa3")
    settings = settings_of(dialect, tmp_path, on_cpu=on_cpu, arguments=own)
    assert server_command(settings, 8000, ["0"], tmp_path / "keys.yaml").arguments[-2:] == own


def compilation_config(words: tuple[str, ...]) -> dict:
    return json.loads(words[words.index("--compilation-config") + 1])


@pytest.mark.parametrize(
    ("longest", "positions", "largest"), [(344, 1024, 1024), (344, 40_960, 2048), (8192, 40_960, 2048)]
)
def test_vllm_has_graphs_of_whole_steps_and_no_sequence_too_short_for_them(tmp_path, longest, positions, largest):
    settings = settings_of("vllm", tmp_path, max_model_tokens=longest, positions=positions)
    command = server_command(settings, 8000, ["0"], tmp_path / "keys.yaml")
    words = command.arguments
    compilation = compilation_config(words)
    assert compilation["cudagraph_mode"] == "FULL" and compilation["cudagraph_capture_sizes"][-1] == largest
    assert int(words[words.index("--max-model-len") + 1]) == max(longest, largest)
    # Our FlashAttention, or steps are planned for other graphs.
    assert words[words.index("--worker-extension-cls") + 1] == "rollout.engines.vllm_worker.WeightBook"


def test_servers_on_several_gpus_leave_multicast_alone(tmp_path):
    words = {}
    for dialect in ("vllm", "sglang"):
        settings = settings_of(dialect, tmp_path, tensor_parallel=2)
        words[dialect] = server_command(settings, 8000, ["0", "1"], tmp_path / "keys.yaml").arguments
    assert compilation_config(words["vllm"])["pass_config"] == {"fuse_allreduce_rms": False}
    assert "--enforce-disable-flashinfer-allreduce-fusion" in words["sglang"]


def test_a_server_that_prints_its_keys_and_dies_shows_them_to_nobody(keys, tmp_path):
    def chatty(*_: object) -> ServerCommand:
        words = f"print('args: {' '.join(KEYS.values())}'); raise SystemExit('no GPU')"
        return ServerCommand((sys.executable, "-c", words), {})

    settings = settings_of("sglang", tmp_path)
    options = {"num_servers": 1, "gpus": (), "directory": tmp_path, "startup_timeout_s": 30, "make_command": chatty}
    log = tmp_path / "engine_0.log"
    log.write_text("what an older run said\n")
    log.chmod(0o644)
    with Launcher(settings, **options) as launcher, pytest.raises(ServerStartError) as caught:
        asyncio.run(launcher.start())
    assert "no GPU" in str(caught.value) and "args: *** ***" in str(caught.value)
    assert "older run" not in str(caught.value)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def launcher_of(code: str, tmp_path: Path) -> Launcher:
    """Of one server, which is a line of Python that may use PORT."""

    def make(settings: ServerSettings, port: int, *_: object) -> ServerCommand:
        return ServerCommand((sys.executable, "-c", f"PORT = {port}; {code}"), {})

    settings = settings_of("vllm", tmp_path)
    options = {"num_servers": 1, "gpus": (), "directory": tmp_path, "startup_timeout_s": 60, "make_command": make}
    return Launcher(settings, **options)


SERVING_WHEN_TOLD = """exec('''
import os, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

while not os.path.exists(TOLD):
    time.sleep(0.01)
HTTPServer(("127.0.0.1", PORT), Healthy).serve_forever()
''')"""


def test_a_server_does_not_take_itself_for_a_rank_of_the_trainer(monkeypatch, tmp_path):
    for name in (*OF_A_RANK, OF_ALL_SERVERS, "TORCHELASTIC_USE_AGENT_STORE", "UNTOUCHED"):
        monkeypatch.setenv(name, "1")
    seen = tmp_path / "seen.json"
    code = f"import json, os; open({str(seen)!r}, 'w').write(json.dumps(dict(os.environ))); raise SystemExit('seen')"
    with launcher_of(code, tmp_path) as launcher, pytest.raises(ServerStartError, match="seen"):
        asyncio.run(launcher.start())
    names = set(json.loads(seen.read_text()))
    assert "UNTOUCHED" in names and not names & {*OF_A_RANK, OF_ALL_SERVERS, "TORCHELASTIC_USE_AGENT_STORE"}


async def test_a_restart_that_was_broken_off_goes_on_and_does_not_begin_again(tmp_path):
    """Each push breaks off what mends servers; one that starts more slowly than a training step would never be back."""
    told = tmp_path / "told"
    told.touch()
    with launcher_of(f"TOLD = {str(told)!r}; {SERVING_WHEN_TOLD}", tmp_path) as launcher:
        (url,) = launcher.urls
        await launcher.start()
        first = launcher.pid(url)
        told.unlink()
        restarted = set()
        for _ in range(3):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    await launcher.restart(url)
            restarted.add(launcher.pid(url))
        assert len(restarted) == 1 and first not in restarted
        told.touch()
        await launcher.restart(url)
        assert restarted == {launcher.pid(url)}
        await launcher.restart(url)  # that start has ended: this is another
        assert launcher.pid(url) not in restarted


async def test_a_server_that_is_stopped_while_it_starts_can_be_restarted(tmp_path):
    told = tmp_path / "told"
    with launcher_of(f"TOLD = {str(told)!r}; {SERVING_WHEN_TOLD}", tmp_path) as launcher:
        (url,) = launcher.urls
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await launcher.restart(url)
        launcher.stop(url)
        assert launcher.death(url) is not None
        told.touch()
        await launcher.restart(url)
        assert launcher.death(url) is None


def test_a_server_that_a_thread_has_restarted_outlives_the_thread(tmp_path):
    told = tmp_path / "told"
    told.touch()
    with launcher_of(f"TOLD = {str(told)!r}; {SERVING_WHEN_TOLD}", tmp_path) as launcher:
        (url,) = launcher.urls
        loop = EventLoop()
        loop.run(launcher.restart(url))
        loop.close()
        time.sleep(1)  # ten looks of its guard
        assert launcher.death(url) is None and httpx.get(f"{url}/health", trust_env=False).status_code == 200


async def test_a_server_ends_with_its_guard_also_where_that_is_killed(tmp_path):
    told = tmp_path / "told"
    told.touch()
    with launcher_of(f"TOLD = {str(told)!r}; {SERVING_WHEN_TOLD}", tmp_path) as launcher:
        (url,) = launcher.urls
        await launcher.restart(url)
        guard = psutil.Process(launcher.pid(url))
        (server,) = guard.children()
        guard.kill()
        psutil.wait_procs([server], timeout=10)
        assert not server.is_running() and launcher.death(url) is not None
