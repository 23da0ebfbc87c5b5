"""Weight sync into the local engine, and the digest that guards it."""

import asyncio
from types import SimpleNamespace

import pytest
import torch

from envs.base import Task
from rollout.engines.base import Sampling
from rollout.engines.local import LocalEngine
from rollout.weight_sync.base import PushReport, exhaust
from rollout.weight_sync.digest import DigestMismatch, digest
from rollout.weight_sync.in_process import InProcessSync
from rollout.weight_sync.servers import ServerSync
from rollout.worker import RolloutWorker
from tests.rollout import toy_env
from tests.rollout.tiny import make_model, make_settings, make_tokenizer


def weights(model):
    return ((name, tensor.detach().clone()) for name, tensor in model.named_parameters())


class Corrupting(InProcessSync):
    """A transport that flips the lowest bit of one element of one tensor on its way."""

    victim = None

    def transfer(self, named_tensors, version):
        def flipped():
            for name, tensor in named_tensors:
                if name == self.victim:
                    tensor = tensor.clone()
                    tensor.view(torch.int32).view(-1)[5] ^= 1
                yield name, tensor

        super().transfer(flipped(), version)


def test_push_moves_everything_and_says_so():
    engine, other = LocalEngine(make_model(0)), make_model(1)
    sync = InProcessSync(engine, asyncio.run, verify_every=2)
    reports = [sync.push(weights(other), version) for version in (1, 2, 3)]
    assert [report.verified for report in reports] == [True, False, True]
    assert engine.weight_version == 3
    parameters = list(other.parameters())
    assert reports[0] == PushReport(
        len(parameters), sum(4 * p.numel() for p in parameters), reports[0].seconds, verified=True
    )
    assert all(torch.equal(a, b) for a, b in zip(engine.model.parameters(), parameters, strict=True))


def test_one_flipped_bit_is_found_and_named_when_verified():
    name = "model.layers.1.mlp.down_proj.weight"
    sync = Corrupting(LocalEngine(make_model(0)), asyncio.run, verify_every=2)
    sync.push(weights(make_model(1)), 1)
    sync.victim = name
    sync.push(weights(make_model(1)), 2)  # not a verified push
    with pytest.raises(DigestMismatch, match=name):
        sync.push(weights(make_model(1)), 3)


def test_a_push_after_a_request_that_timed_out_does_not_wait_forever():
    engine = LocalEngine(make_model(0))
    was_decoding = []

    async def impatient(trajectory):
        """Like the policy analyzer: a request that is given up as the last of the collection."""
        sampling = Sampling(temperature=1.0, max_tokens=400, stop_token_ids=())
        try:
            async with asyncio.timeout(0.02):
                await engine.generate([5] * 10, sampling, session=trajectory.uid)
        except TimeoutError:
            was_decoding.append(not engine._driver.done())

    async def timed(coroutine):
        async with asyncio.timeout(30):
            await coroutine

    with RolloutWorker(toy_env, {}, engine, make_tokenizer(), run_seed=1, progress=False) as worker:
        tasks, settings = [Task("toy", 0, 0, "train")], make_settings()
        worker.collect_sync(tasks, 1, settings, training_step=0, annotator=impatient)
        assert was_decoding == [True]
        InProcessSync(engine, lambda coroutine: worker.run(timed(coroutine)), verify_every=1).push(
            weights(make_model(1)), 1
        )
        assert engine.weight_version == 1
        assert worker.collect_sync(tasks, 1, settings, training_step=1)[0].steps[0].weight_version == 1


class ToServers(ServerSync):
    def give(self, named_tensors, version):
        exhaust(named_tensors)
        return ["a", "b"]


def test_what_servers_hold_beside_what_was_sent_is_compared_between_them():
    async def admit(urls, version):
        assert (urls, version) == ({"a", "b"}, 1)

    def server(url, checksum):
        async def answer(sent):
            assert sent == {"weight": digest(torch.zeros(2))}
            return checksum

        return SimpleNamespace(url=url, checksum=answer)

    def push(*checksums):
        engines = [server(url, checksum) for url, checksum in zip("ab", checksums, strict=True)]
        pool = SimpleNamespace(engines=engines, admit=admit)
        return ToServers(pool, asyncio.run, verify_every=1, is_sender=True).push([("weight", torch.zeros(2))], 1)

    assert push("same", "same").verified
    with pytest.raises(DigestMismatch, match="the weights of b .* are not those of a"):
        push("same", "other")


def test_verify_every_must_be_positive():
    with pytest.raises(ValueError, match="verify_every=0"):
        InProcessSync(LocalEngine(make_model()), asyncio.run, verify_every=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64])
def test_digest_sees_bits_positions_shape_and_dtype(dtype):
    torch.manual_seed(0)
    tensor = (torch.randn(40, 7) * 50).to(dtype)
    value = digest(tensor)
    assert 0 <= value < 2**64
    assert value == digest(tensor.clone()) == digest(tensor.t().contiguous().t())  # strides do not matter
    swapped = tensor.view(-1).clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert not torch.equal(swapped, tensor.view(-1))
    changed = tensor.clone()
    changed[39, 6] += 1
    others = [digest(swapped.view(40, 7)), digest(changed), digest(tensor.view(7, 40)), digest(tensor.double())]
    assert len({value, *others}) == 5


def test_digest_does_not_depend_on_the_pieces_it_is_computed_in(monkeypatch):
    tensor = torch.randn(1000)
    whole = digest(tensor)
    monkeypatch.setattr("rollout.weight_sync.digest._CHUNK_ELEMENTS", 37)
    assert digest(tensor) == whole
    assert digest(torch.empty(0)) != digest(torch.empty(0, 3))
    assert digest(torch.tensor(1.0)) != digest(torch.tensor(-1.0)) != digest(torch.tensor(0.0))
