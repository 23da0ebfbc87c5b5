"""The HTTP interface of a running server, and the environment's client against it."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from envs import search
from envs.base import Task
from envs.search.corpus import Corpus
from envs.search.retrieval import EmbeddedRetriever, HttpRetriever, RetrievalError
from tests.envs.search.test_environment import solve
from tests.tools.retrieval.server_process import ServerProcess, free_port
from tools import retrieval_server


def post(url: str, **body: Any) -> httpx.Response:
    return httpx.post(url, json=body, timeout=60)


@pytest.fixture(scope="module")
def titles(data: Path) -> list[str]:
    corpus = Corpus.open(data / "index")
    return [corpus[number].contents.split('"')[1] for number in range(len(corpus))]


def test_both_request_forms(server: ServerProcess, titles: list[str]) -> None:
    many = post(server.url, queries=titles[:3], topk=2, return_scores=True).json()["result"]
    assert len(many) == 3
    for title, entries in zip(titles, many, strict=False):
        assert set(entries[0]) == {"document", "score"}
        assert entries[0]["document"]["contents"].startswith(f'"{title}"\n')
        scores = [entry["score"] for entry in entries]
        assert len(scores) <= 2 and scores == sorted(scores, reverse=True)
        assert post(server.url, query=title, topk=2, return_scores=True).json()["result"] == [entries]
        assert post(server.url, query=title, topk=2).json()["result"] == [[entry["document"] for entry in entries]]
    assert post(server.url, queries=[]).json() == {"result": []}


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ("{", 422, "JSON"),
        ("{}", 422, "either query or queries"),
        ('{"query": "a", "queries": ["b"]}', 422, "either query or queries"),
        ('{"queries": "a"}', 422, "queries"),
        ('{"query": "a", "topk": 0}', 422, "topk"),
        ('{"query": "a", "top_k": 3}', 422, "top_k"),
        ('{"query": "' + "a" * (5 << 20) + '"}', 413, "larger than"),
        ('{"queries": [' + '"a",' * 3000 + '"a"]}', 413, "may wait"),
    ],
)
def test_bad_requests_say_why(server: ServerProcess, body: str, status: int, reason: str) -> None:
    response = httpx.post(server.url, content=body, timeout=60)
    assert (response.status_code, reason in response.json()["detail"]) == (status, True)


def test_health_and_metrics(server: ServerProcess, titles: list[str]) -> None:
    base = server.url.removesuffix("/retrieve")
    assert httpx.get(f"{base}/health", timeout=60).json() == {
        "status": "ok",
        "backend": "bm25",
        "num_documents": len(titles),
    }

    def metrics() -> dict[str, float]:
        lines = httpx.get(f"{base}/metrics", timeout=60).text.splitlines()
        return {name: float(value) for name, _, value in (line.partition(" ") for line in lines if line[0] != "#")}

    before = metrics()
    post(server.url, queries=["a", "b"])
    after = metrics()
    assert after["retrieval_queries_total"] - before.get("retrieval_queries_total", 0) == 2
    count = "retrieval_request_seconds_count"
    assert after[count] - before[count] == 1
    assert after["retrieval_documents"] == len(titles)


def test_the_client_finds_what_the_embedded_index_finds(server: ServerProcess, data: Path, titles: list[str]) -> None:
    embedded, remote = EmbeddedRetriever(str(data / "index")), HttpRetriever([server.url], 60, 60)
    for query in [*titles[:20], "who founded it", "", "zzz", 'quote " and é']:
        assert remote.retrieve(query, 3) == embedded.retrieve(query, 3)
    remote.close()


def test_an_environment_outlives_its_server(data: Path) -> None:
    """The server dies in mid-episode; another one on the same port, a second later, is all that the client needs."""
    port = free_port()
    options = {"data": str(data), "retriever": [f"http://127.0.0.1:{port}/retrieve"], "patience_s": 60}
    environment = search.make_environment(options)
    first = ServerProcess(data / "index", port).wait()
    assert solve(environment, Task("search", 0, 0, "train"))[-1].won
    first.process.kill()
    first.process.wait()
    restarted: list[ServerProcess] = []
    timer = threading.Timer(1, lambda: restarted.append(ServerProcess(data / "index", port)))
    timer.start()
    try:
        assert all(solve(environment, Task("search", index, 0, "train"))[-1].won for index in range(1, 30))
    finally:
        timer.join()
        restarted[0].__exit__()


def test_the_next_server_is_asked_when_one_is_away(server: ServerProcess, titles: list[str]) -> None:
    client = HttpRetriever([f"http://127.0.0.1:{free_port()}/retrieve", server.url], 60, 60)
    assert all(title in client.retrieve(title, 1)[0] for title in titles[:4])
    client.close()


def test_no_server_is_a_fault_and_not_an_observation(data: Path, server: ServerProcess) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/retrieve"
    environment = search.make_environment({"data": str(data), "retriever": nobody, "patience_s": 0.3})
    environment.reset(Task("search", 0, 0, "train"))
    with pytest.raises(RetrievalError, match="no answer within 0.3 s"):
        environment.step("<search>x</search>")
    for url in (server.url + "/nothing", server.url.replace("/retrieve", "/health")):
        with pytest.raises(RetrievalError, match="status 40"):
            HttpRetriever([url], 60, 60).retrieve("x", 1)


def test_too_many_at_once_are_turned_away_and_come_back(data: Path, titles: list[str]) -> None:
    arguments = ["--max-waiting", 4, "--threads", 1, "--max-batch", 1]
    with ServerProcess(data / "index", free_port(), arguments) as small, ThreadPoolExecutor(24) as threads:
        four = {"queries": titles[:4], "topk": 100}
        with httpx.Client(timeout=60) as client:
            answers = list(threads.map(lambda _: client.post(small.url, json=four), range(200)))
        assert {answer.status_code for answer in answers} == {200, 429}
        assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)
        clients = [HttpRetriever([small.url], 60, 120) for _ in range(24)]
        found = list(threads.map(lambda client: client.retrieve(titles[5], 1), clients * 4))
        assert all(titles[5] in contents[0] for contents in found)


def test_a_signal_lets_requests_finish(data: Path, titles: list[str]) -> None:
    running = ServerProcess(data / "index", free_port(), ["--max-waiting", 4000, "--threads", 1]).wait()
    with ThreadPoolExecutor(1) as threads, httpx.Client(timeout=60) as client:
        answer = threads.submit(client.post, running.url, json={"queries": titles * 24, "topk": 20})
        base = running.url.removesuffix("/retrieve")
        while "retrieval_waiting_queries 0" in httpx.get(f"{base}/metrics", timeout=60).text and not answer.done():
            pass
        running.process.send_signal(signal.SIGTERM)
        assert len(answer.result().json()["result"]) == len(titles) * 24
    assert running.process.wait(timeout=60) == -signal.SIGTERM


def test_a_bad_index_is_told_before_serving(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert retrieval_server.main(["--index", str(tmp_path / "none"), "--threads", "2"]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert retrieval_server.main(["--index", str(tmp_path), "--threads", "0", "--topk", "0"]) == 2
    assert "--topk 0 must be at least 1; --threads 0" in capsys.readouterr().err
