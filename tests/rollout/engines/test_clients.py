"""The clients against real servers of both dialects: what is asked, what comes back, what is refused."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

import httpx
import openai
import pytest
import torch
import uvicorn

from rollout.engines.base import EngineError, Sampling
from rollout.engines.http import ADMIN_KEY, API_KEY, EngineFault
from rollout.engines.local import LocalEngine
from rollout.engines.server.__main__ import application
from rollout.engines.server.host import Host
from rollout.engines.sglang_names import UNSYNCED
from rollout.engines.vllm import VllmEngine
from rollout.weight_sync.digest import DigestMismatch, digest
from tests.rollout.engines.conftest import KINDS, Farm
from tests.rollout.tiny import VOCAB_SIZE, make_model

PROMPT = [5, 6, 7] * 10
SAMPLING = Sampling(temperature=0.7, max_tokens=12, stop_token_ids=(2, 70, 71), seed=2**62 + 11)

dialects = pytest.mark.parametrize("dialect", ["vllm", "sglang"])


@contextlib.asynccontextmanager
async def synced(farm: Farm, dialect: str, index: int = 0, **timeouts: float):
    """A client whose server holds model 0 as version 3."""
    engine = farm.engine(dialect, index, **timeouts)
    try:
        await engine.load_from_disk(farm.models[0], 3)
        engine.expected_version = 3
        yield engine
    finally:
        await engine.close()


@dialects
async def test_a_server_samples_what_the_local_engine_samples(farm: Farm, dialect: str):
    async with synced(farm, dialect) as engine:
        served = await engine.generate(PROMPT, SAMPLING, session="a")
    local = await LocalEngine(make_model(0), weight_version=3).generate(PROMPT, SAMPLING, session="a")
    assert served.token_ids == local.token_ids and served.finish_reason == local.finish_reason
    assert served.logprobs == pytest.approx(local.logprobs, abs=1e-5)
    assert served.weight_version == 3


@dialects
async def test_finish_reasons(farm: Farm, dialect: str):
    async with synced(farm, dialect) as engine:
        one = Sampling(temperature=1.0, max_tokens=1, stop_token_ids=(), seed=1)
        cut = await engine.generate(PROMPT, one, session="a")
        assert (cut.finish_reason, len(cut.token_ids), len(cut.logprobs)) == ("length", 1, 1)
        stop = Sampling(temperature=1.0, max_tokens=5, stop_token_ids=cut.token_ids, seed=1)
        stopped = await engine.generate(PROMPT, stop, session="a")
        assert (stopped.finish_reason, stopped.token_ids) == ("stop", cut.token_ids)  # the stop token is kept
        last = Sampling(temperature=1.0, max_tokens=1, stop_token_ids=cut.token_ids, seed=1)
        assert (await engine.generate(PROMPT, last, session="a")).finish_reason == "stop"  # and the last allowed token


@dialects
@pytest.mark.parametrize("prompt, what", [([VOCAB_SIZE], "outside"), ([5] * 600, "do not fit")])
async def test_a_request_that_no_engine_can_run_is_the_callers_fault(farm: Farm, dialect: str, prompt, what):
    async with synced(farm, dialect) as engine:
        with pytest.raises(ValueError, match=what):
            await engine.generate(prompt, SAMPLING, session="a")


@dialects
async def test_pausing_aborts_what_runs_and_holds_what_comes(farm: Farm, dialect: str):
    async with synced(farm, dialect) as engine:
        endless = Sampling(temperature=1.0, max_tokens=450, stop_token_ids=(), seed=1)
        running = asyncio.create_task(engine.generate(PROMPT, endless, session="a"))
        await asyncio.sleep(0.1)
        await engine.pause()
        with pytest.raises(EngineFault) as caught:
            await running
        assert caught.value.kind == "aborted"
        waiting = asyncio.create_task(engine.generate(PROMPT, SAMPLING, session="b"))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await engine.resume()
        assert (await waiting).token_ids


@dialects
async def test_a_server_that_another_run_left_paused_serves_again(farm: Farm, dialect: str):
    async with synced(farm, dialect) as gone:
        await gone.pause()
        async with synced(farm, dialect) as engine:
            assert (await engine.generate(PROMPT, SAMPLING, session="a")).token_ids


@dialects
@pytest.mark.parametrize("ask", ["held_version", "world_size", "checksum", "identify"])
async def test_a_control_route_that_answers_something_else_is_a_fault(farm: Farm, dialect: str, ask: str, monkeypatch):
    async def answer(*arguments: object, **options: object) -> dict:
        return {"detail": "Not Found"}

    engine = farm.engine(dialect)
    monkeypatch.setattr(engine, "_control_json", answer)
    with pytest.raises(EngineFault) as caught:
        await getattr(engine, ask)(*([{"a": 1}] if ask == "checksum" else []))
    assert caught.value.kind == "garbage"
    await engine.close()


async def test_sglang_with_several_tokenizer_workers_is_refused(farm: Farm, monkeypatch):
    engine = farm.engine("sglang")
    control = engine._control_json

    async def answer(method: str, route: str, **options: object) -> dict:
        several = {"tokenizer_worker_num": 4} if route == "/server_info" else {}
        return await control(method, route, **options) | several

    monkeypatch.setattr(engine, "_control_json", answer)
    with pytest.raises(EngineFault, match="tokenizer_worker_num=4: start it with 1"):
        await engine.identify()
    await engine.close()


@dialects
async def test_nothing_is_sampled_under_weights_that_were_not_synced(farm: Farm, dialect: str):
    async with synced(farm, dialect) as engine:
        await engine.generate(PROMPT, SAMPLING, session="a")
        engine.expected_version = 4  # somebody should have loaded these
        await asyncio.sleep(2.2)  # the connections are closed by then: the next may lead to another process
        with pytest.raises(EngineFault) as caught:
            await engine.generate(PROMPT, SAMPLING, session="a")
        assert caught.value.kind == "stale"
    unsynced = farm.engine(dialect)
    with pytest.raises(EngineFault, match="not given weights yet"):
        await unsynced.generate(PROMPT, SAMPLING, session="a")
    await unsynced.close()


@dialects
async def test_sleep_drops_the_weights_and_new_ones_wake(farm: Farm, dialect: str):
    async with synced(farm, dialect) as engine:
        before = await engine.generate(PROMPT, SAMPLING, session="a")
        await engine.sleep()
        await engine.wake()
        empty = await engine.generate(PROMPT, SAMPLING, session="a")
        assert empty.logprobs[0] == pytest.approx(-float(torch.tensor(VOCAB_SIZE).log()), abs=1e-4)  # all zeros
        await engine.sleep()
        await engine.load_from_disk(farm.models[0], 4)
        engine.expected_version = 4
        assert (await engine.generate(PROMPT, SAMPLING, session="a")).token_ids == before.token_ids


@dialects
async def test_a_directory_without_weights_is_refused_and_leaves_no_version(farm: Farm, dialect: str, tmp_path):
    async with synced(farm, dialect) as engine:
        with pytest.raises(EngineFault) as caught:
            await engine.load_from_disk(tmp_path, 4)
        assert caught.value.kind == "refused" and "safetensors" in str(caught.value)
        assert await engine.held_version() is None
        await engine.load_from_disk(farm.models[0], 5)
        engine.expected_version = 5
        assert (await engine.generate(PROMPT, SAMPLING, session="a")).weight_version == 5


async def test_a_sample_is_asked_for_again_when_the_server_closes_an_idle_connection_under_it(farm: Farm):
    """As one does that stood still for longer than connections may idle."""
    resets = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = urlsplit(farm.urls("vllm")[0])
        answers, requests = await asyncio.open_connection(server.hostname, server.port)
        back = asyncio.create_task(_pump(answers, writer))
        num_samples = 0
        while data := await reader.read(1 << 16):
            num_samples += data.startswith(b"POST /inference/v1/generate")
            if num_samples == 2:
                resets.append(data)
                writer.transport.abort()
                break
            requests.write(data)
        requests.close()
        await back

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as between:
        engine = VllmEngine("http://{}:{}".format(*between.sockets[0].getsockname()))
        await engine.load_from_disk(farm.models[0], 3)
        engine.expected_version = 3
        first = await engine.generate(PROMPT, SAMPLING, session="a")
        assert await engine.generate(PROMPT, SAMPLING, session="a") == first
        assert len(resets) == 1
        await engine.close()
    with pytest.raises(EngineFault) as caught:
        await engine.generate(PROMPT, SAMPLING, session="a")
    assert caught.value.kind == "dead"
    await engine.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


@dialects
async def test_digests_are_those_of_the_weights(farm: Farm, dialect: str):
    async with synced(farm, dialect) as engine:
        sent = {name: digest(tensor) for name, tensor in make_model(0).named_parameters()}
        checksum = await engine.checksum(sent)
        async with synced(farm, dialect, len(farm.urls(dialect)) - 1) as other:
            assert checksum == await other.checksum(sent)
            await other.load_from_disk(farm.models[1], 4)
            with pytest.raises(DigestMismatch, match="embed_tokens"):
                await other.checksum(sent)


async def test_only_fused_experts_may_be_missing_from_what_a_server_holds(farm: Farm, caplog):
    async with synced(farm, "vllm") as engine:
        sent = {name: digest(tensor) for name, tensor in make_model(0).named_parameters()}
        experts = {f"model.layers.1.mlp.experts.{index}.up_proj.weight": index for index in range(3)}
        await engine.checksum(sent | experts)
        assert f"3 of {len(sent) + 3} weights are fused experts" in caplog.text
        with pytest.raises(DigestMismatch, match=r"mlp\.gate\.weight"):
            await engine.checksum(sent | experts | {"model.layers.1.mlp.gate.weight": 5})


@dialects
async def test_weights_end_the_prefixes_that_older_ones_computed(farm: Farm, dialect: str):
    async with synced(farm, dialect) as engine:
        long = [*PROMPT * 10]
        for _ in range(2):
            await engine.generate(long, SAMPLING, session="a")
        before = await engine.cache_counts()
        await engine.begin_update()
        engine.loads_in_place = False  # nothing comes: the weights stay, the server cannot know
        await engine.end_update(4)
        engine.expected_version = 4
        await engine.generate(long, SAMPLING, session="a")
        after = await engine.cache_counts()
        assert before.hit_tokens > 0 and after.hit_tokens == before.hit_tokens


@dialects
async def test_turns_of_an_episode_hit_the_prefix_cache(farm: Farm, dialect: str):
    async with synced(farm, dialect) as engine:
        before = await engine.cache_counts()
        await engine.generate(PROMPT, SAMPLING, session="a")
        await engine.generate(PROMPT + [9] * 20, SAMPLING, session="a")
        after = await engine.cache_counts()
    assert after.queried_tokens - before.queried_tokens == 30 + 50
    assert after.hit_tokens - before.hit_tokens == 16


@dialects
async def test_a_server_answers_within_the_limit_or_counts_as_hanging(farm: Farm, dialect: str):
    async with synced(farm, dialect, request_timeout_s=0.3) as engine:
        farm.inject(engine.url, "hang")
        try:
            with pytest.raises(EngineFault) as caught:
                await engine.generate(PROMPT, SAMPLING, session="a")
        finally:
            farm.inject(engine.url, "")
        assert caught.value.kind == "hanging"


@dialects
async def test_the_other_dialect_is_noticed(farm: Farm, dialect: str):
    other = "sglang" if dialect == "vllm" else "vllm"
    engine = KINDS[other](farm.urls(dialect)[0])
    with pytest.raises(EngineFault, match="HTTP 404"):
        await engine.identify()
    await engine.close()
    async with synced(farm, dialect) as right:
        assert await right.identify() == str(farm.models[0])


async def test_the_analyzers_client_talks_to_the_policy(farm: Farm):
    client = openai.AsyncOpenAI(api_key="none", base_url=f"{farm.urls('vllm')[0]}/v1", max_retries=0)
    model = (await client.models.list()).data[0].id
    messages = [{"role": "user", "content": "go"}]
    answer = await client.chat.completions.create(model=model, messages=messages, max_completion_tokens=5, seed=3)
    assert answer.usage.completion_tokens <= 5 and isinstance(answer.choices[0].message.content, str)
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="other", messages=messages)
    await client.close()


@pytest.mark.parametrize(
    "dialect, path, key, status",
    [
        ("vllm", "/v1/models", "", 401),
        ("vllm", "/v1/models", "key-1234", 200),
        ("vllm", "/is_paused", "", 401),  # vLLM itself leaves its control routes open
        ("vllm", "/is_paused", "key-1235", 401),
        ("vllm", "/is_paused", "key-1234", 200),
        ("vllm", "/metrics", "", 401),
        ("vllm", "/health", "", 200),
        ("vllm", "/health/", "", 401),
        ("sglang", "/model_info", "", 401),
        ("sglang", "/model_info", "key-1234", 200),
        ("sglang", "/flush_cache", "key-1234", 401),
        ("sglang", "/flush_cache", "admin-1234", 200),
        ("sglang", "/metrics", "", 200),
    ],
)
async def test_keys_open_what_they_open_in_servers_started_by_us(farm, monkeypatch, dialect, path, key, status):
    monkeypatch.setenv(API_KEY, "key-1234")
    monkeypatch.setenv(ADMIN_KEY, "admin-1234")
    host = Host(LocalEngine(make_model()), farm.models[0], None)
    transport = httpx.ASGITransport(application(host, dialect, "m", deterministic=False))
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers) as client:
        assert (await client.get(path)).status_code == status


@dialects
async def test_the_client_opens_every_route_where_both_keys_are_set(farm, monkeypatch, dialect):
    monkeypatch.setenv(API_KEY, "key-1234")
    monkeypatch.setenv(ADMIN_KEY, "admin-1234")
    host = Host(LocalEngine(make_model()), farm.models[0], UNSYNCED)
    config = uvicorn.Config(
        application(host, dialect, "m", deterministic=True), host="127.0.0.1", port=0, log_level="error"
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    engine = KINDS[dialect]("http://{}:{}".format(*server.servers[0].sockets[0].getsockname()))
    await engine.load_from_disk(farm.models[0], 1)
    engine.expected_version = 1
    assert await engine.held_version() == 1 and await engine.world_size() == 1
    await engine.probe(10)
    await engine.cache_counts()
    await engine.close()
    server.should_exit = True
    await serving


async def test_errors_do_not_show_keys(farm: Farm, monkeypatch, tmp_path):
    monkeypatch.setenv(API_KEY, "key-1234")
    engine = farm.engine("vllm")
    with pytest.raises(EngineError) as caught:
        await engine.load_from_disk(tmp_path, 1)
    await engine.close()
    assert "key-1234" not in str(caught.value) and "key-1234" not in repr(vars(engine))
