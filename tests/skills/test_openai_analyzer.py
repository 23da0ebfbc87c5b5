"""The real HTTP client against a real HTTP server that also misbehaves."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import socket
import time
from pathlib import Path

import pytest

from megatron_opid.config import ConfigError, SkillsConfig
from megatron_opid.skills.analyzer import make_analyzer
from megatron_opid.skills.cache import ReplyCache
from megatron_opid.skills.chat_analyzer import ChatAnalyzer
from megatron_opid.skills.endpoint import Endpoint, check_endpoint
from megatron_opid.skills.openai_analyzer import EndpointModel
from rollout.trajectory import HindsightSkills
from tests.skills.endpoint_server import GOOD, Answer, EndpointServer, Script, serve
from tests.skills.episodes import make_trajectory

KEY = "secret-key-1234"
SKILLS = HindsightSkills("s", "open the door .", {1: "turn left ."})


def make_model(url: str, *, concurrency: int = 8, timeout_s: float = 5.0, num_retries: int = 2, delay_s: float = 0.01):
    endpoint = Endpoint(url, "m", KEY, num_retries=num_retries, retry_delay_s=delay_s)
    return EndpointModel(endpoint, concurrency=concurrency, timeout_s=timeout_s, max_completion_tokens=64)


async def analyze(server: EndpointServer, **options) -> tuple[HindsightSkills | None, dict[str, float]]:
    analyzer = ChatAnalyzer(make_model(server.url, **options), 3, 1.0)
    try:
        return await analyzer.analyze(make_trajectory()), analyzer.counters()
    finally:
        await analyzer.close()


def first(answer: Answer, then: Answer | None = None) -> Script:
    """`answer` to the first request, `then` (by default a good one) to the others."""
    return lambda number, request: answer if number == 0 else then or Answer()


def always(answer: Answer) -> Script:
    return lambda number, request: answer


async def test_good_answer_and_its_cost():
    with serve(always(Answer(delay_s=0.05))) as server:
        skills, counters = await analyze(server)
    assert skills == SKILLS
    assert counters["analyses"] == 1 and counters["failures"] == 0
    assert (counters["prompt_tokens"], counters["completion_tokens"]) == (100, 20)
    assert counters["latency_mean_s"] == counters["latency_p95_s"] > 0.05
    (request,) = server.requests
    assert request["model"] == "m" and request["max_completion_tokens"] == 64
    assert request["response_format"]["json_schema"]["schema"]["required"] == [
        "summary",
        "episode_skill",
        "step_skills",
    ]


async def test_429_waits_for_retry_after_seconds():
    limited = Answer(status=429, headers={"Retry-After": "0.4"}, body=b"{}")
    with serve(first(limited)) as server:
        skills, counters = await analyze(server)
    assert skills == SKILLS and counters["retries"] == 1
    assert server.times_s[1] - server.times_s[0] >= 0.4


async def test_429_waits_for_retry_after_date():
    limited = Answer(status=429, headers={"Retry-After": email.utils.formatdate(time.time() + 2, usegmt=True)})
    with serve(first(limited)) as server:
        skills, _ = await analyze(server)
    assert skills == SKILLS
    assert server.times_s[1] - server.times_s[0] >= 0.9  # the date has whole seconds


async def test_429_with_an_endless_retry_after_is_not_waited_for():
    with serve(always(Answer(status=429, headers={"Retry-After": "86400"}, body=b"{}"))) as server:
        skills, counters = await analyze(server)
    assert skills is None and counters["failures_rate_limit"] == 1 and len(server.requests) == 1


async def test_backoff_grows_when_the_server_keeps_failing():
    with serve(always(Answer(status=500, body=b"{}"))) as server:
        skills, counters = await analyze(server, num_retries=2, delay_s=0.2)
    assert skills is None and counters["failures_server"] == 1
    assert len(server.requests) == 3
    gaps_s = [later - earlier for earlier, later in zip(server.times_s, server.times_s[1:], strict=False)]
    assert gaps_s[0] >= 0.2 and gaps_s[1] >= 0.4


async def test_500_once():
    with serve(first(Answer(status=500, body=b"oops", content_type="text/plain"))) as server:
        skills, counters = await analyze(server)
    assert skills == SKILLS and counters["retries"] == 1


async def test_time_out_is_retried_then_counted():
    with serve(always(Answer(delay_s=15.0))) as server:
        start_s = time.monotonic()
        skills, counters = await analyze(server, timeout_s=1.5, num_retries=1)
        assert time.monotonic() - start_s < 15.0
    assert skills is None and counters["failures_timeout"] == 1 and len(server.requests) == 2


async def test_torn_connection_is_retried():
    with serve(first(Answer(cut_bytes=40))) as server:
        skills, counters = await analyze(server)
    assert skills == SKILLS and counters["retries"] == 1


async def test_connection_refused():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    analyzer = ChatAnalyzer(make_model(url), 3, 1.0)
    assert await analyzer.analyze(make_trajectory()) is None
    counters = analyzer.counters()
    assert counters["failures_connection"] == counters["failures"] == 1
    await analyzer.close()


@pytest.mark.parametrize(
    "content, expected",
    [
        (f"Here you are:\n```json\n{GOOD}\n```\nGood luck!", SKILLS),
        (GOOD[:-2] + ', {"step": 2, "skill": "turn ri', SKILLS),
        (GOOD.replace('"step": 1', '"step": 99'), HindsightSkills("s", "open the door .", {})),
        (GOOD.replace('"open the door ."', '["open"]'), None),
        ("I cannot help with that.", None),
    ],
    ids=["prose", "half", "unknown index", "wrong type", "no JSON"],
)
async def test_content(content: str, expected: HindsightSkills | None):
    with serve(always(Answer(content))) as server:
        skills, counters = await analyze(server)
    assert skills == expected
    assert counters["failures_unparseable"] == (expected is None)
    assert counters["completion_tokens"] == 20  # paid for, whatever came


@pytest.mark.parametrize(
    "answer, cause",
    [
        (Answer(content=None), "empty"),
        (Answer(body=b'{"choices": []}'), "empty"),
        (Answer(body=b'{"choices": "many"}'), "server"),
        (Answer(body=b'{"choices": [{"message": {"content": "x"}}], "usage": "lots"}'), "server"),
        (Answer(body=b"[1, 2]"), "server"),
        (Answer(body=b"<html>proxy</html>", content_type="text/html"), "server"),
        (Answer(body=b'{"choices": ['), "server"),
        (Answer(body=b'{"choices": [{"message": {"content": 5}}]}'), "empty"),
    ],
    ids=["null", "no choices", "choices", "usage", "list", "html", "half body", "number"],
)
async def test_answers_that_are_no_completion(answer: Answer, cause: str):
    with serve(always(answer)) as server:
        skills, counters = await analyze(server, num_retries=0)
    assert skills is None
    assert counters[f"failures_{cause}"] == counters["failures"] == 1


async def test_refused_response_format_switches_to_plain_mode_for_good():
    def script(number, request):
        return Answer(status=400, body=b'{"error": "no"}') if "response_format" in request else Answer()

    with serve(script) as server:
        model = make_model(server.url)
        analyzer = ChatAnalyzer(model, 3, 1.0)
        assert [await analyzer.analyze(make_trajectory(uid=uid)) for uid in "abc"] == [SKILLS] * 3
        await analyzer.close()
    assert ["response_format" in request for request in server.requests] == [True, False, False, False]


async def test_a_request_that_is_bad_either_way_leaves_structured_mode_on():
    def script(number, request):
        return Answer(status=400, body=b'{"error": "too long"}') if number < 2 else Answer()

    with serve(script) as server:
        analyzer = ChatAnalyzer(make_model(server.url), 3, 1.0)
        assert await analyzer.analyze(make_trajectory()) is None
        assert analyzer.counters()["failures_request"] == 1
        assert await analyzer.analyze(make_trajectory()) == SKILLS
        await analyzer.close()
    assert ["response_format" in request for request in server.requests] == [True, False, True]


async def test_concurrency_is_bounded_and_used():
    with serve(always(Answer(delay_s=0.1))) as server:
        analyzer = ChatAnalyzer(make_model(server.url, concurrency=3), 3, 1.0)
        results = await asyncio.gather(*(analyzer.analyze(make_trajectory(uid=str(i))) for i in range(12)))
        counters = analyzer.counters()
        await analyzer.close()
    assert results == [SKILLS] * 12
    assert server.max_in_flight == 3
    assert counters["latency_p95_s"] > counters["latency_mean_s"] > 0.1


async def test_second_run_is_served_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = SkillsConfig(analyzer="openai", cache_dir=str(tmp_path))
    with serve(always(Answer())) as server:
        for name, value in {"API_KEY": KEY, "MODEL": "m", "BASE_URL": server.url}.items():
            monkeypatch.setenv(f"OPENAI_{name}", value)
        counters = []
        for _ in range(2):
            analyzer = make_analyzer(config, "toy", seed=0, max_prompt_tokens=100)
            assert await analyzer.analyze(make_trajectory()) == SKILLS
            counters.append(analyzer.counters())
            await analyzer.close()
        other_model = ReplyCache(tmp_path).get("m2", server.requests[0]["messages"])
    assert len(server.requests) == 1
    assert [c["cache_hits"] for c in counters] == [0, 1]
    assert counters[1]["prompt_tokens"] == 0 and "latency_mean_s" not in counters[1]
    assert other_model is None


async def test_unparseable_answers_are_not_cached_and_damaged_files_are_replaced(tmp_path: Path):
    with serve(first(Answer("nonsense"))) as server:
        analyzer = ChatAnalyzer(make_model(server.url), 3, 1.0, cache=ReplyCache(tmp_path))
        assert await analyzer.analyze(make_trajectory()) is None
        assert list(tmp_path.iterdir()) == []
        assert await analyzer.analyze(make_trajectory()) == SKILLS
        (file,) = tmp_path.iterdir()
        file.write_text('{"repl')
        assert await analyzer.analyze(make_trajectory()) == SKILLS
        assert await analyzer.analyze(make_trajectory()) == SKILLS
        await analyzer.close()
    assert len(server.requests) == 3
    assert list(tmp_path.iterdir()) == [file]


async def test_key_reaches_no_log(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    echo = Answer(status=401, body=f'{{"error": {{"message": "key {KEY} is wrong"}}}}'.encode())
    with serve(first(echo)) as server:
        model = make_model(server.url)
        analyzer = ChatAnalyzer(model, 3, 1.0)
        assert await analyzer.analyze(make_trajectory()) is None
        assert analyzer.counters()["failures_request"] == 1
        assert await analyzer.analyze(make_trajectory()) == SKILLS
        await analyzer.close()
    assert "key *** is wrong" in caplog.text
    assert KEY not in caplog.text
    assert KEY not in repr(Endpoint(server.url, "m", KEY))


def test_check_endpoint():
    with serve(always(Answer()), models=["m", "n"]) as server:
        check_endpoint(Endpoint(server.url, "m", KEY))
        with pytest.raises(ConfigError, match="does not serve OPENAI_MODEL='other' .* it has m, n"):
            check_endpoint(Endpoint(server.url, "other", KEY))
        with pytest.raises(ConfigError, match=r"refused the key .* \(HTTP 401\); set OPENAI_API_KEY"):
            check_endpoint(Endpoint(server.url, "m", "wrong"))
        url = server.url
    with pytest.raises(ConfigError, match=f"cannot be reached at {url} .* set OPENAI_BASE_URL"):
        check_endpoint(Endpoint(url, "m", KEY))
    with serve(always(Answer())) as server:  # serves no list of models
        check_endpoint(Endpoint(server.url, "m", KEY))
    page = Answer(body=b"<html>", content_type="text/html")
    for answer, reason in (
        (page, "no JSON"),
        (Answer(status=404, body=b"{}"), "HTTP 404"),
        (Answer(status=503), "503"),
    ):
        with serve(always(answer)) as server, pytest.raises(ConfigError, match=f"{reason} .* ends in /v1"):
            check_endpoint(Endpoint(server.url, "m", KEY))


def test_environment_variables():
    endpoint = Endpoint.from_environment(
        {
            "OPENAI_API_KEY": KEY,
            "OPENAI_MODEL": "m",
            "OPENAI_BASE_URL": "http://h:1/v1",
            "OPENAI_API_RETRIES": "7",
            "OPENAI_API_RETRY_DELAY": "0.5",
        }
    )
    assert endpoint == Endpoint("http://h:1/v1", "m", KEY, num_retries=7, retry_delay_s=0.5)
    with pytest.raises(ConfigError) as error:
        Endpoint.from_environment({"OPENAI_API_RETRIES": "-1", "OPENAI_API_RETRY_DELAY": "nan", "OPENAI_BASE_URL": "h"})
    for name in ("API_KEY", "MODEL", "API_RETRIES", "API_RETRY_DELAY", "BASE_URL"):
        assert f"OPENAI_{name}" in str(error.value)
    with pytest.raises(ConfigError) as error:
        Endpoint.from_environment(
            {"OPENAI_API_KEY": KEY, "OPENAI_MODEL": "m", "OPENAI_BASE_URL": f"http://u:{KEY}@h/v1"}
        )
    assert KEY not in str(error.value)
