"""The local engine against a plain forward pass of transformers."""

import asyncio

import numpy as np
import pytest
import torch

from rollout.engines.base import EngineError, Generation, Sampling
from rollout.engines.local import LocalEngine
from tests.rollout.tiny import VOCAB_SIZE, make_model

STOP = (3, 4, 5, 6)


def prompts(num: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(7, VOCAB_SIZE, size=n).tolist() for n in rng.integers(1, 60, size=num)]


def sampling(seed: int | None, **changes) -> Sampling:
    return Sampling(**{"temperature": 0.7, "max_tokens": 9, "stop_token_ids": STOP, "seed": seed, **changes})


def generate(engine: LocalEngine, requests: list[tuple[list[int], Sampling]]) -> list[Generation]:
    async def everything():
        return await asyncio.gather(*(engine.generate(ids, how, session="s") for ids, how in requests))

    return asyncio.run(everything())


def plain_logprobs(model, prompt: list[int], response: tuple[int, ...], temperature: float) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, dim=-1)


def test_logprobs_equal_a_plain_forward_pass():
    model = make_model()
    requests = [(ids, sampling(seed, temperature=0.5 + seed / 10)) for seed, ids in enumerate(prompts(12))]
    # Fewer slots than requests: rows join and leave at every step.
    for (ids, how), answer in zip(requests, generate(LocalEngine(model, max_batch_sequences=5), requests), strict=True):
        expected = plain_logprobs(model, ids, answer.token_ids, how.temperature)
        expected = expected.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(answer.logprobs), expected, rtol=0, atol=1e-5)


def test_logprobs_of_long_responses_and_of_a_longer_prompt_that_joins_late():
    model = make_model()
    long = sampling(1, max_tokens=200, stop_token_ids=())
    requests = [([9, 10], long), ([11], sampling(2, max_tokens=150, stop_token_ids=())), (list(range(9, 139)), long)]
    engine = LocalEngine(model, max_batch_sequences=2)  # the third joins when the second is done
    for (ids, how), answer in zip(requests, generate(engine, requests), strict=True):
        expected = plain_logprobs(model, ids, answer.token_ids, how.temperature)
        expected = expected.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(answer.logprobs), expected, rtol=0, atol=1e-5)


def test_draw_does_not_depend_on_the_batch():
    model = make_model()
    requests = [(ids, sampling(seed)) for seed, ids in enumerate(prompts(16))]
    together = generate(LocalEngine(model), requests)
    backwards = generate(LocalEngine(model, max_batch_sequences=3), requests[::-1])[::-1]
    alone = [generate(LocalEngine(model), [request])[0] for request in requests]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone] == [a.token_ids for a in backwards]
    for one, other in zip(together, alone, strict=True):
        assert np.allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)
    assert (
        len({a.token_ids for a in generate(LocalEngine(model), [(requests[0][0], sampling(s)) for s in range(9)])}) > 1
    )


def test_equal_seeds_are_bitwise_equal():
    model = make_model()
    requests = [(ids, sampling(seed)) for seed, ids in enumerate(prompts(20))]
    first, second = (generate(LocalEngine(model, max_batch_sequences=7), requests) for _ in range(2))
    assert first == second


def test_stop_and_length():
    answers = generate(LocalEngine(make_model()), [(ids, sampling(seed)) for seed, ids in enumerate(prompts(150))])
    reasons = {answer.finish_reason for answer in answers}
    assert reasons == {"stop", "length"}
    for answer in answers:
        assert not set(answer.token_ids[:-1]) & set(STOP)
        assert (answer.token_ids[-1] in STOP) == (answer.finish_reason == "stop")
        assert answer.finish_reason == "stop" or len(answer.token_ids) == 9
        assert len(answer.logprobs) == len(answer.token_ids)


def test_temperature_zero_is_greedy_with_logprobs_at_one():
    model = make_model()
    requests = [(ids, sampling(None, temperature=0.0)) for ids in prompts(4)]
    for (ids, _), answer in zip(requests, generate(LocalEngine(model), requests), strict=True):
        best = plain_logprobs(model, ids, answer.token_ids, 1.0).max(dim=-1)
        assert answer.token_ids == tuple(best.indices.tolist())
        assert np.allclose(answer.logprobs, best.values, rtol=0, atol=1e-5)


def test_top_p_draws_from_the_nucleus_and_reports_full_logprobs():
    model = make_model()
    [ids] = prompts(1)
    answers = generate(LocalEngine(model), [(ids, sampling(s, top_p=0.3, max_tokens=1)) for s in range(200)])
    logprobs = plain_logprobs(model, ids, (0,), 0.7)[0]
    ranked, order = logprobs.exp().sort(descending=True)
    nucleus = order[: int((ranked.cumsum(0) < 0.3).sum()) + 1].tolist()
    drawn = [answer.token_ids[0] for answer in answers]
    assert set(drawn) <= set(nucleus)
    assert len(nucleus) == 1 or len(set(drawn)) > 1
    assert np.allclose([a.logprobs[0] for a in answers], logprobs[drawn], rtol=0, atol=1e-5)


def test_draws_follow_the_distribution():
    model = make_model()
    [ids] = prompts(1)
    num = 4000
    answers = generate(
        LocalEngine(model, max_batch_sequences=500), [(ids, sampling(s, max_tokens=1)) for s in range(num)]
    )
    counts = np.bincount([answer.token_ids[0] for answer in answers], minlength=VOCAB_SIZE)
    expected = plain_logprobs(model, ids, (0,), 0.7)[0].exp().double().numpy() * num
    common = expected >= 5
    chi_square = (((counts - expected) ** 2) / expected)[common].sum()
    assert chi_square < common.sum() + 5 * np.sqrt(2 * common.sum())  # 5 standard deviations


def test_bad_requests_are_refused():
    engine = LocalEngine(make_model())
    for ids, how, message in (
        ([], sampling(0), "empty"),
        ([VOCAB_SIZE], sampling(0), "vocabulary"),
        ([-1], sampling(0), "vocabulary"),
        ([9] * 510, sampling(0), "max_prompt_tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(engine, [(ids, how)])


def test_a_failing_model_fails_every_waiting_request_and_only_those():
    model = make_model()
    engine = LocalEngine(model, max_batch_sequences=2)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")

    async def everything():
        calls = (engine.generate(ids, sampling(0), session="s") for ids in prompts(5))
        return await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(answer, EngineError) and "finite" in str(answer) for answer in asyncio.run(everything()))
    with torch.no_grad():
        model.model.norm.weight[0] = 1.0
    assert generate(engine, [([9], sampling(0))])[0].token_ids


def test_cancelled_requests_leave_the_batch():
    engine = LocalEngine(make_model(), max_batch_sequences=1)

    async def cancel_first():
        first, second = (
            asyncio.create_task(engine.generate([9], sampling(s, stop_token_ids=()), session="")) for s in (0, 1)
        )
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert len(asyncio.run(cancel_first()).token_ids) == 9


def weights(model) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor.clone()) for name, tensor in model.named_parameters()]


@pytest.mark.parametrize("tied", [True, False])
def test_update_makes_the_engine_the_other_model(tied):
    engine, other = LocalEngine(make_model(0, tied=tied)), make_model(1, tied=tied)
    requests = [(ids, sampling(seed)) for seed, ids in enumerate(prompts(5))]
    before = generate(engine, requests)
    asyncio.run(engine.update_weights(weights(other), version=7))
    after = generate(engine, requests)
    expected = generate(LocalEngine(other, weight_version=7), requests)
    assert after == expected != before
    assert {answer.weight_version for answer in after} == {7}


def test_update_waits_for_running_requests_and_holds_new_ones():
    engine, other = LocalEngine(make_model(0), max_batch_sequences=2), make_model(1)
    [ids] = prompts(1)

    async def update_while_running():
        early = [
            asyncio.create_task(engine.generate(ids, sampling(s, stop_token_ids=()), session="")) for s in range(5)
        ]
        await asyncio.sleep(0)  # the requests are queued
        for _ in range(8):
            await asyncio.sleep(0)  # and the first two are being decoded
        await engine.update_weights(weights(other), version=1)
        return await asyncio.gather(*early)

    answers = asyncio.run(update_while_running())
    assert [answer.weight_version for answer in answers] == [0, 0, 1, 1, 1]
    old, new = (LocalEngine(make_model(s)) for s in (0, 1))
    for seed, answer in enumerate(answers):
        [expected] = generate(new if answer.weight_version else old, [(ids, sampling(seed, stop_token_ids=()))])
        assert answer.token_ids == expected.token_ids


def test_wrong_updates_are_refused_by_name_and_nothing_is_served_until_a_whole_one():
    model = make_model(0)
    engine = LocalEngine(model)
    good = weights(make_model(1))
    name, tensor = good[3]
    for wrong, message in (
        ([*good, ("model.layers.9.mlp.up_proj.weight", tensor)], "model.layers.9.mlp.up_proj.weight"),
        (good[:-1], f"missing.*{good[-1][0]}"),
        ([*good[:3], (name, tensor[..., :-1]), *good[4:]], name),
        ([*good[:3], (name, tensor.bfloat16()), *good[4:]], name),
        ([*good, ("lm_head.weight", good[0][1] + 1)], "lm_head.weight.*tied"),
    ):
        with pytest.raises(ValueError, match=message):
            asyncio.run(engine.update_weights(wrong, version=1))
        with pytest.raises(EngineError, match="incomplete"):
            generate(engine, [([9], sampling(0))])
    asyncio.run(engine.update_weights([*good, ("lm_head.weight", good[0][1])], version=2))
    assert generate(engine, [([9], sampling(0))])[0].weight_version == 2


def test_a_failed_update_fails_the_requests_that_wait_for_it():
    engine = LocalEngine(make_model(), max_batch_sequences=1)

    async def update_while_waiting():
        calls = [asyncio.create_task(engine.generate([9], sampling(s), session="")) for s in (0, 1)]
        for _ in range(6):
            await asyncio.sleep(0)
        with pytest.raises(ValueError, match="missing"):
            await engine.update_weights([], version=1)
        return await asyncio.gather(*calls, return_exceptions=True)

    running, waiting = asyncio.run(update_while_waiting())
    assert isinstance(running, Generation)
    assert isinstance(waiting, EngineError) and "incomplete" in str(waiting)


def test_sleep_wake_close():
    engine = LocalEngine(make_model())

    async def night():
        await engine.sleep()
        call = asyncio.create_task(engine.generate([9], sampling(0), session=""))
        await asyncio.sleep(0.05)
        assert not call.done()
        await engine.wake()
        assert (await call).token_ids
        await engine.close()
        with pytest.raises(EngineError, match="closed"):
            await engine.generate([9], sampling(0), session="")

    asyncio.run(night())
