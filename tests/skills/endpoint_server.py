"""A real HTTP server on loopback with an OpenAI-like chat endpoint that answers, and misbehaves, as scripted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = '{"summary": "s", "episode_skill": "open the door .", "step_skills": [{"step": 1, "skill": "turn left ."}]}'


@dataclass
class Answer:
    """One scripted answer: `content` as a chat completion, or `body` as it stands."""

    content: str | None = GOOD
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    body: bytes | None = None
    content_type: str = "application/json"
    cut_bytes: int = 0  # the connection closes this many bytes early


Script = Callable[[int, dict[str, Any]], Answer]  # (number of the request from 0, its JSON) -> answer


class EndpointServer(ThreadingHTTPServer):
    """Keeps what it was asked, and how many requests it served at once at most."""

    daemon_threads = True

    def __init__(self, script: Script, models: list[str] | None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.models = models
        self.requests: list[dict[str, Any]] = []
        self.times_s: list[float] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: EndpointServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer secret-key-1234":
            self._send(Answer(status=401, body=json.dumps({"error": {"message": "bad key"}}).encode()))
        elif self.server.models is None:
            self._send(Answer(status=404, body=b"{}"))
        else:
            data = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in self.server.models]
            self._send(Answer(body=json.dumps({"object": "list", "data": data}).encode()))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.requests)
            server.requests.append(request)
            server.times_s.append(time.monotonic())
            server.in_flight += 1
            server.max_in_flight = max(server.max_in_flight, server.in_flight)
        try:
            answer = server.script(number, request)
            time.sleep(answer.delay_s)
        finally:
            with server.lock:
                server.in_flight -= 1
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        body = answer.body if answer.body is not None else _completion(answer.content)
        try:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) - answer.cut_bytes])
        except (BrokenPipeError, ConnectionResetError):
            return  # the client timed out, as some tests intend
        self.close_connection = answer.cut_bytes > 0

    def log_message(self, *args: object) -> None:
        pass


def _completion(content: str | None) -> bytes:
    message = {"role": "assistant", "content": content}
    completion = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    return json.dumps(completion).encode()


@contextmanager
def serve(script: Script, models: list[str] | None = None) -> Iterator[EndpointServer]:
    server = EndpointServer(script, models)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
