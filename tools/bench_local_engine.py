"""Responses per second on one CPU core: the local engine against transformers' own continuous batching.

    OMP_NUM_THREADS=1 python -m tools.bench_local_engine --json docs/bench/local_engine.json

A random Qwen3 of the demo's size answers the same waiting prompts both ways, several times in turn, with exactly
`--response-tokens` tokens each; log-probs of both are checked against one plain forward pass. The last line plays
`--requests` episodes of `--turns` requests on the local engine, each episode asking again when it was answered, with
responses of half to one and a half times that length.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from rollout.engines.base import Sampling
from rollout.engines.local import LocalEngine

TEMPERATURE = 0.7
Answers = list[tuple[Sequence[int], Sequence[float]]]  # ids and log-probs of each response
Rate = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--response-tokens", type=int, default=12)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the raw numbers here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = _model()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 304, size=n).tolist() for n in rng.integers(80, 161, size=arguments.requests)]
    # The defaults size the cache by the machine's free memory and attend over all of it: slow on a CPU.
    small = {"page_size": 32, "num_blocks": 512, "max_batch_tokens": 1024, "use_async_batching": False}
    ways = {
        "local": _local(model, arguments.response_tokens),
        "transformers, small cache": _transformers(model, arguments.response_tokens, small),
        "transformers, defaults": _transformers(model, arguments.response_tokens, {}),
    }
    rates = _measure(model, prompts, ways, arguments.repeats)
    rates["local, episodes"] = [
        _episodes(model, prompts, arguments.turns, arguments.response_tokens) for _ in range(arguments.repeats)
    ]
    report = {
        "requests": arguments.requests,
        "prompt_tokens_mean": sum(map(len, prompts)) / len(prompts),
        "response_tokens": arguments.response_tokens,
        "turns": arguments.turns,
        "machine": platform.processor() or platform.machine(),
        "load_average": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rates": rates,
    }
    for name, values in rates.items():
        wall, cpu = (statistics.median(value[unit] for value in values) for unit in ("responses_per_s", "per_cpu_s"))
        print(f"{name:28s} {wall:8.1f} responses/s {cpu:8.1f} responses per CPU second (medians of {len(values)})")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=304,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


def _local(model: PreTrainedModel, num_tokens: int) -> Callable[[list[list[int]]], Answers]:
    engine = LocalEngine(model)

    async def generate(prompts: list[list[int]]) -> Answers:
        calls = [
            engine.generate(prompt, Sampling(TEMPERATURE, num_tokens, (), seed=seed), session=str(seed))
            for seed, prompt in enumerate(prompts)
        ]
        return [(answer.token_ids, answer.logprobs) for answer in await asyncio.gather(*calls)]

    return lambda prompts: asyncio.run(generate(prompts))


def _transformers(model: PreTrainedModel, num_tokens: int, options: dict) -> Callable[[list[list[int]]], Answers]:
    sampling = GenerationConfig(
        max_new_tokens=num_tokens, do_sample=True, temperature=TEMPERATURE, top_k=0, eos_token_id=-1, pad_token_id=0
    )
    batching = {"return_logprobs": True, "seed": 0, **options}

    def generate(prompts: list[list[int]]) -> Answers:
        # A config per call: transformers fills its blanks in place.
        config = ContinuousBatchingConfig(**batching)
        outputs = model.generate_batch(prompts, generation_config=sampling, continuous_batching_config=config)
        by_prompt = {
            tuple(output.prompt_ids): (output.generated_tokens, output.logprobs) for output in outputs.values()
        }
        return [by_prompt[tuple(prompt)] for prompt in prompts]

    return generate


def _measure(
    model: PreTrainedModel, prompts: list[list[int]], ways: dict[str, Callable], repeats: int
) -> dict[str, list[Rate]]:
    """`repeats` values of each way, taken in turn; the first, unmeasured call warms up."""
    rates: dict[str, list[Rate]] = {name: [] for name in ways}
    for name, generate in ways.items():
        _check(model, prompts, generate(prompts), name)
    for _ in range(repeats):
        for name, generate in ways.items():
            rates[name].append(_rate(partial(generate, prompts), len(prompts)))
    return rates


def _episodes(model: PreTrainedModel, prompts: list[list[int]], num_turns: int, num_tokens: int) -> Rate:
    engine = LocalEngine(model)
    rng = np.random.default_rng(0)

    async def play(prompt: list[int], seed: int) -> None:
        for turn in range(num_turns):
            length = int(rng.integers(num_tokens // 2, num_tokens * 3 // 2 + 1))
            await engine.generate(prompt, Sampling(TEMPERATURE, length, (), seed=seed + turn), session=str(seed))

    async def everything() -> None:
        await asyncio.gather(*(play(prompt, index * num_turns) for index, prompt in enumerate(prompts)))

    return _rate(lambda: asyncio.run(everything()), len(prompts) * num_turns)


def _rate(work: Callable[[], object], num_responses: int) -> Rate:
    started_s, cpu_started_s = time.perf_counter(), time.process_time()
    work()
    return {
        "responses_per_s": num_responses / (time.perf_counter() - started_s),
        "per_cpu_s": num_responses / (time.process_time() - cpu_started_s),
    }


def _check(model: PreTrainedModel, prompts: list[list[int]], answers: Answers, name: str) -> None:
    """Refuse to time a way whose log-probs are not those of a plain forward pass."""
    for prompt, (ids, logprobs) in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / TEMPERATURE, dim=-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        error = float((expected - torch.tensor(logprobs)).abs().max())
        if error > 1e-4:
            raise RuntimeError(f"{name}: a log-prob is off by {error:.2e}")


if __name__ == "__main__":
    main()
