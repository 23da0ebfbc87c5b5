"""A real server on a GPU, vLLM or SGLang, whichever is installed: samples, log-probs, every transport, sleep.

pytest -m gpu tests/rollout/engines/test_gpu.py            (one GPU: disk and ipc)
pytest -m multi_gpu tests/rollout/engines/test_gpu.py      (two: nccl; three: into a server of two)
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from megatron_opid.servers import visible_gpus
from rollout.engines.base import Generation, Sampling
from rollout.engines.commands import ServerSettings
from rollout.engines.http import EngineFault, HttpEngine
from rollout.engines.launch import Launcher
from rollout.engines.pool import EnginePool, PoolSettings
from rollout.weight_sync.base import PushReport
from rollout.weight_sync.disk import DiskSync
from rollout.weight_sync.ipc import IpcSync
from rollout.weight_sync.nccl import NcclSync
from tests.rollout.engines.conftest import KINDS
from tests.rollout.tiny import make_tokenizer

pytestmark = pytest.mark.timeout(900)
PROMPT = list(range(3, 40))
UTILIZATION = 0.3
LENGTHS = (1, 2, 9, 33, 64, 65, 127, 129, 200, 255, 256, 257, 401, 600, 1025, 2100)
MAX_MODEL_TOKENS = 4096  # above those of the largest CUDA graph
BUCKET_BYTES = 1 << 20  # several buckets for 9 MB
# bf16 against fp32, of logits that are spread out; another seed's weights differ by more than 1.
LOGPROB_ERROR = 0.15


def make_model(seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,  # Qwen3's
        max_position_embeddings=MAX_MODEL_TOKENS,
        tie_word_embeddings=True,
        initializer_range=0.08,
    )
    # Not `.to(torch.bfloat16)`, which rounds the rotary embedding's frequencies as well.
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def error(model: Qwen3ForCausalLM, generation: Generation, temperature: float, prompt: Sequence[int] = PROMPT) -> float:
    """The largest difference of the server's log-probs from the model's, in fp32."""
    ids = torch.tensor([[*prompt, *generation.token_ids]])
    with torch.no_grad():
        logits = model.float()(ids).logits[0, len(prompt) - 1 : -1] / temperature
    sampled = torch.tensor(generation.token_ids)[:, None]
    ours = logits.log_softmax(-1).gather(1, sampled)[:, 0]
    return float((ours - torch.tensor(generation.logprobs)).abs().max())


@dataclass
class Server:
    """One running server and a pool on it."""

    runner: asyncio.Runner
    launcher: Launcher
    pool: EnginePool
    directory: Path
    free_before_bytes: int

    @property
    def engine(self) -> HttpEngine:
        return self.pool.engines[0]

    def push(self, transport: str, seed: int, version: int, dtype: torch.dtype = torch.bfloat16) -> PushReport:
        device = "cpu" if transport == "disk" else "cuda:0"
        tensors = ((name, tensor.detach().to(device, dtype)) for name, tensor in make_model(seed).named_parameters())
        return self._syncs(transport).push(tensors, version)

    def sample(self, temperature: float) -> Generation:
        sampling = Sampling(temperature=temperature, max_tokens=32, stop_token_ids=(), seed=11)
        return self.runner.run(self.engine.generate(PROMPT, sampling, session="a"))

    def _syncs(self, transport: str):
        run, common = self.runner.run, {"is_sender": True, "bucket_bytes": BUCKET_BYTES}
        if transport == "disk":
            place = {"directory": self.directory / "weights", "source": self.directory / "model"}
            return DiskSync(self.pool, run, 1, **common, **place)
        if transport == "nccl":
            return NcclSync(self.pool, run, 1, **common)
        return IpcSync(self.pool, run, 1, **common, all_gather=lambda text: [text], tensor_parallel=1)


def start(directory: Path, transfer: str, gpus: Sequence[str]) -> Iterator[Server]:
    """A server on some of the GPUs that this process may use."""
    dialect = next((name for name in KINDS if importlib.util.find_spec(name)), None)
    if dialect is None:
        pytest.fail("neither vllm nor sglang is installed")
    make_model(0).save_pretrained(directory / "model")
    make_tokenizer().save_pretrained(directory / "model")
    settings = ServerSettings(
        dialect,
        directory / "model",
        "bfloat16",
        max_model_tokens=MAX_MODEL_TOKENS,
        transfer=transfer,
        gpu_memory_utilization=UTILIZATION,
        sleeps=transfer == "ipc",
        tensor_parallel=len(gpus),
    )
    launcher = Launcher(settings, num_servers=1, gpus=gpus, directory=directory, startup_timeout_s=600)
    free_before_bytes, _ = torch.cuda.mem_get_info(visible_gpus().index(gpus[0]))
    with launcher, asyncio.Runner() as runner:
        runner.run(launcher.start())
        pool = EnginePool([KINDS[dialect](launcher.urls[0])], PoolSettings(recovery_timeout_s=10), launcher)
        yield Server(runner, launcher, pool, directory, free_before_bytes)
        runner.run(pool.close())


@pytest.fixture(scope="module")
def same_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from start(tmp_path_factory.mktemp("same_gpu"), "ipc", visible_gpus()[:1])


@pytest.fixture(scope="module")
def other_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from start(tmp_path_factory.mktemp("other_gpu"), "nccl", visible_gpus()[1:2])


@pytest.fixture
def two_gpus(tmp_path: Path) -> Iterator[Server]:
    if len(visible_gpus()) < 3:
        pytest.skip("this process and a server of two need three GPUs")
    yield from start(tmp_path, "nccl", visible_gpus()[-2:])


def check_push(server: Server, transport: str, seed: int, version: int) -> None:
    """All of the weights, and no others, are in the server: digests, version, and what it samples."""
    assert server.push(transport, seed, version).verified
    assert server.runner.run(server.engine.held_version()) == version
    for temperature in (1.0, 0.6):
        generation = server.sample(temperature)
        assert generation.weight_version == version and len(generation.token_ids) == 32
        assert error(make_model(seed), generation, temperature) < LOGPROB_ERROR
        assert error(make_model(seed + 1), generation, temperature) > 1


def check_step(server: Server, seed: int) -> None:
    """Log-probs of steps that hold prompts, of very different lengths, and next tokens."""
    prompts = [[3 + (7 * index + place) % 1000 for place in range(length)] for index, length in enumerate(LENGTHS)]

    async def sample(index: int) -> Generation:
        await asyncio.sleep(0.02 * (index // 2))  # two at once, beside others' next tokens
        sampling = Sampling(temperature=1.0, max_tokens=64, stop_token_ids=(), seed=index)
        return await server.engine.generate(prompts[index], sampling, session=str(index))

    async def sample_all() -> list[Generation]:
        return await asyncio.gather(*map(sample, range(len(prompts))))

    generations = server.runner.run(sample_all())
    model = make_model(seed)
    errors = [error(model, generation, 1.0, prompt) for generation, prompt in zip(generations, prompts, strict=True)]
    assert max(errors) < LOGPROB_ERROR, f"largest by length of the prompt: {dict(zip(LENGTHS, errors, strict=True))}"


@pytest.mark.gpu
@pytest.mark.parametrize("transport", ["disk", "ipc"])
def test_pushes_arrive_whole_and_logprobs_are_transformers(same_gpu: Server, transport: str):
    for version, seed in ((1, 5), (2, 7)):
        check_push(same_gpu, transport, seed, version)


@pytest.mark.gpu
def test_a_step_of_prompts_and_next_tokens_gives_each_sequence_its_own(same_gpu: Server):
    """A CUDA graph of such a step may have been captured for other lengths than it is replayed for."""
    same_gpu.push("disk", 5, 3)
    check_step(same_gpu, 5)


@pytest.mark.gpu
def test_sleep_gives_memory_back_and_weights_wake_it(same_gpu: Server):
    same_gpu.push("ipc", 5, 3)
    torch.cuda.empty_cache()
    awake, _ = torch.cuda.mem_get_info(0)
    same_gpu.runner.run(same_gpu.engine.sleep())
    asleep, _ = torch.cuda.mem_get_info(0)
    # What stays is a CUDA context and graphs; tools/bench_weight_sync.py measures it exactly.
    assert asleep - awake > 0.8 * (same_gpu.free_before_bytes - awake) > 0
    check_push(same_gpu, "ipc", 9, 4)


@pytest.mark.gpu
def test_a_restarted_server_serves_nothing_before_it_is_synced(same_gpu: Server):
    check_push(same_gpu, "disk", 5, 5)
    same_gpu.runner.run(same_gpu.launcher.restart(same_gpu.launcher.urls[0]))
    with pytest.raises(EngineFault) as caught:
        same_gpu.sample(1.0)
    assert caught.value.kind == "stale"
    check_push(same_gpu, "ipc", 7, 6)


@pytest.mark.multi_gpu
def test_pushes_by_nccl_reach_both_ranks_of_a_server(two_gpus: Server):
    sync = two_gpus._syncs("nccl")
    two_gpus._syncs = lambda transport: sync
    for version, seed in ((1, 5), (2, 7)):
        check_push(two_gpus, "nccl", seed, version)
    check_step(two_gpus, 7)
    sync.close()  # while the server lives


@pytest.mark.multi_gpu
def test_pushes_by_nccl_arrive_whole_and_again_after_a_restart(other_gpu: Server):
    sync = other_gpu._syncs("nccl")
    other_gpu._syncs = lambda transport: sync  # one group for both pushes
    for version, seed in ((1, 5), (2, 7)):
        check_push(other_gpu, "nccl", seed, version)
    other_gpu.runner.run(other_gpu.launcher.restart(other_gpu.launcher.urls[0]))
    check_push(other_gpu, "nccl", 9, 3)
    # Of another dtype nothing can be received where it belongs. The digests are of the dtype that was sent.
    sync._num_pushes, sync._verify_every = 1, 1000
    other_gpu.push("nccl", 11, 4, torch.float32)
    assert error(make_model(11), other_gpu.sample(1.0), 1.0) < LOGPROB_ERROR
