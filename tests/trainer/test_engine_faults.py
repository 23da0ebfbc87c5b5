"""Which engine configurations are refused before anything starts, all faults at once; servers are asked for real."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from envs.base import load as load_environment
from megatron_opid.config import load
from megatron_opid.engines import engine_faults
from megatron_opid.servers import sync_name
from rollout.engines.commands import ENGINE_PYTHON

SHAPE = {
    "vocab_size": 600,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def faults(*overrides: str) -> list[str]:
    return engine_faults(load(list(overrides)), 2)


@contextmanager
def server(answers: dict[str, tuple[int, object]]) -> Iterator[str]:
    """A server on loopback that answers routes as given, with 404 otherwise; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self.rfile.read(length)
            status, answer = answers.get(self.path, (404, {}))
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def vllm_answers(model: Path) -> dict[str, tuple[int, object]]:
    return {
        "/v1/models": (200, {"data": [{"id": "policy", "root": str(model)}]}),
        "/is_paused": (200, {"is_paused": False}),
        "/collective_rpc": (200, {"results": [{"version": None}]}),
    }


def write_config(directory: Path, **changes: int) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(SHAPE | changes))
    return directory


def test_the_local_engine_and_the_cpu_servers_need_nothing():
    assert faults() == []
    assert faults("engine.name=vllm", "engine.cpu_servers=true") == []
    config = load(["engine.name=sglang", "engine.cpu_servers=true"])
    assert (sync_name(config.engine), sync_name(load([]).engine)) == ("disk", "in_process")


@pytest.mark.parametrize(
    "overrides, messages",
    [
        (["engine.urls=[http://h:1]"], ["needs engine.name=vllm or sglang"]),
        (["engine.sync=disk", "engine.cpu_servers=true"], ["engine.cpu_servers=true needs", "engine.sync=disk needs"]),
        (["engine.name=vllm", "engine.urls=[h:1]"], ["is no server's address"]),
        (["engine.name=vllm", "engine.urls=[http://a:b@h:1]"], ["credentials"]),
        (["engine.name=vllm", "engine.urls=[http://h:1,http://h:1]"], ["names a server twice"]),
        (["engine.name=vllm", "engine.cpu_servers=true", "engine.sync=in_process"], ["cannot reach"]),
        (["engine.name=vllm", "engine.cpu_servers=true", "engine.server_arguments=[--x]"], ["real servers' own"]),
        (
            ["engine.name=vllm", "engine.cpu_servers=true", "engine.sync=ipc", "engine.placement=colocated"],
            ["has engine.sync=disk or nccl"],
        ),
        (
            [*["engine.name=vllm", "engine.sync=ipc", "engine.placement=colocated", "engine.num_servers=4"]],
            ["those of the machine's 2 ranks", "need 4 GPUs"],
        ),
        (["engine.name=vllm", "engine.urls=[http://h:1]", "engine.sync=ipc"], ["engine.placement=colocated"]),
        (
            ["engine.name=vllm", "engine.urls=[http://h:1]", "engine.sync=nccl", "engine.placement=colocated"],
            ["engine.placement=disaggregated"],
        ),
        (["engine.name=sglang", "engine.num_servers=64", "engine.tensor_parallel=8"], ["need 512 GPUs"]),
    ],
)
def test_what_does_not_fit_together_is_refused(overrides: list[str], messages: list[str], monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    found = faults(*overrides)
    assert len(found) == len(messages)
    assert all(message in fault for message, fault in zip(messages, found, strict=True))


@pytest.mark.parametrize(
    "name, sync, placement, package",
    [
        ("vllm", "nccl", "disaggregated", "vllm"),
        ("sglang", "nccl", "disaggregated", "sglang"),
        ("vllm", "ipc", "colocated", "ray"),
        ("sglang", "ipc", "colocated", "sglang"),
    ],
)
def test_what_a_transport_needs_to_be_installed_is_said_before(name, sync, placement, package, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.delenv(ENGINE_PYTHON, raising=False)
    monkeypatch.setattr("rollout.engines.commands.has_package", lambda name: True)  # the servers have theirs
    asked = [f"engine.name={name}", f"engine.sync={sync}", f"engine.placement={placement}"]
    (found,) = faults(*asked)
    assert found.startswith(f"engine.sync={sync} with {name} needs the package {package} here")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert not faults(*asked)


def test_packages_of_our_servers_and_of_environments_are_asked_for_before(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (fault,) = faults("engine.name=vllm", "engine.cpu_servers=true")
    assert "needs the package uvicorn; install it with pip install -e '.[server]'" in fault

    def missing(name: str):
        raise ModuleNotFoundError("No module named 'ijson'", name="ijson")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"env.name=webshop needs the package ijson; install it with .*\[webshop\]"):
        load_environment("webshop")

    def broken(name: str):
        raise ModuleNotFoundError("No module named 'envs.shops'", name="envs.shops")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="envs.shops"):  # a defect of ours is not called a missing extra
        load_environment("webshop")


def test_every_given_server_is_asked(tmp_path: Path):
    """One is not there, one speaks another dialect, one wants a key, one serves another model, one is right."""
    ours, other = write_config(tmp_path / "ours"), write_config(tmp_path / "other", vocab_size=700)
    locked = {"/v1/models": (401, {"error": "Unauthorized"})}
    with (
        server({"/model_info": (200, {})}) as sglang,
        server(locked) as closed,
        server(vllm_answers(other)) as wrong,
        server(vllm_answers(ours)) as right,
    ):
        urls = ["http://127.0.0.1:9", sglang, closed, wrong, right]
        found = faults("engine.name=vllm", f"engine.urls=[{','.join(urls)}]", f"actor.model={ours}")
    assert [url for fault in found for url in urls if url in fault] == urls[:4]
    for fault, message in zip(
        found,
        ["start the server", "would (rollout/engines/commands.py", "ROLLOUT_ENGINE_API_KEY", "vocab_size=700"],
        strict=True,
    ):
        assert message in fault


def test_servers_of_our_own_need_a_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (fault,) = faults("engine.name=vllm", "engine.placement=colocated")
    assert "this machine has none; set engine.name=local" in fault


def test_servers_on_gpus_need_their_package_in_their_own_python(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv(ENGINE_PYTHON, raising=False)
    wanted = ("engine.name=sglang", "engine.placement=colocated")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho a banner\nPYTHONPATH={tmp_path} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv(ENGINE_PYTHON, str(python))
    assert any(f"{python} has no package sglang" in fault for fault in faults(*wanted))
    (tmp_path / "sglang.py").touch()
    assert faults(*wanted) == []
    monkeypatch.setenv(ENGINE_PYTHON, "/nowhere/python")
    assert any("ENGINE_PYTHON=/nowhere/python is no Python that runs" in fault for fault in faults(*wanted))
