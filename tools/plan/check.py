"""The prediction against what was measured on H200s: `python -m tools.plan.check [--json]`.

Measured: forward and backward of a 28-layer Qwen3-0.6B shape with Transformer Engine 2.12 (seen once, its sequences'
lengths were not recorded), and, of docs/bench/*.json, the LM head and scoring passes, updates and memory of whole
models. One of these figures fixed a constant, and says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megatron_opid.config import ActorConfig, load
from tools.plan.compute import head_score_s, head_train_s, layer_time
from tools.plan.constants import gpu
from tools.plan.layout import Layout
from tools.plan.memory import head_bytes, trainer_memory
from tools.plan.phases import Trainer
from tools.plan.shape import PUBLISHED_MODELS, Sizes
from tools.plan.workload import Workload

BENCH = Path(__file__).parent.parent.parent / "docs" / "bench"
ONE_GPU = Layout.of(ActorConfig(), 1)
VOCABULARY = 151_936
SEEN_TOKENS = 16_384
# Of the seen run; the prediction depends on it through attention alone.
SEQUENCE_TOKENS = (512, 2048)
# tools.bench_actor on one H200, or (x2) two, by the published model of the same shape.
ACTOR_BENCHES = {
    "actor_0.6b_agentic": "Qwen3-0.6B",
    "actor_1.7b_agentic": "Qwen3-1.7B",
    "actor_4b_agentic": "Qwen3-4B",
    "actor_4b_long": "Qwen3-4B",
    "actor_x2_1.7b_dp2": "Qwen3-1.7B",
    "actor_x2_1.7b_pp2": "Qwen3-1.7B",
    "actor_x2_1.7b_pp2_4096": "Qwen3-1.7B",
    "actor_x2_4b_tp2": "Qwen3-4B",
    "actor_x2_4b_cp2_long": "Qwen3-4B",
    "actor_x2_8b_tp2": "Qwen3-8B",
}
SEEN_S = {"forward": 0.061, "forward and backward": 0.125}


@dataclass(frozen=True)
class Check:
    """One figure, seconds or bytes. `note` says if a constant was fitted to it."""

    figure: str
    measured: float
    predicted: float
    note: str = ""

    @property
    def error(self) -> float:
        """Of the prediction, relative to the measurement."""
        return self.predicted / self.measured - 1


def all_checks() -> list[Check]:
    """Every figure that a prediction can be held against."""
    single = json.loads((BENCH / "linear_logprob_h200.json").read_text())
    double = json.loads((BENCH / "linear_logprob_h200x2.json").read_text())
    return [
        *_seen(),
        *(check for name, model in ACTOR_BENCHES.items() for check in _actor(name, model)),
        *_head(single),
        *_agent_batch(single),
        *_head_memory(single),
        *_tensor_parallel(double),
    ]


def _seen() -> Iterator[Check]:
    sizes = Sizes.of(PUBLISHED_MODELS["Qwen3-0.6B"])
    for sequence in SEQUENCE_TOKENS:
        one = layer_time(sizes, ONE_GPU, gpu("h200"), tokens=SEEN_TOKENS, sequence_tokens=sequence)
        forward = sizes.shape.num_layers * one.forward_s
        both = forward + sizes.shape.num_layers * one.backward_s
        name = f"0.6B shape, 16,384 tokens of {sequence}-token sequences"
        yield Check(f"{name}, forward", SEEN_S["forward"], forward, "fitted: layer_floor_s")
        yield Check(f"{name}, forward and backward", SEEN_S["forward and backward"], both)


def _actor(name: str, model: str) -> Iterator[Check]:
    """A scoring pass and an update over a batch, and the memory of the update, in bench_actor's configuration."""
    bench = json.loads((BENCH / f"{name}.json").read_text())
    config = load(bench.get("overrides", ()))
    layout = Layout.of(config.actor, bench.get("ranks", 1))
    sizes, count = Sizes.of(PUBLISHED_MODELS[model]), bench["sequences"]
    response = bench["response_tokens"] / count
    workload = Workload(
        num_episodes=count,
        max_steps=1,
        mean_steps=1.0,
        prompt_tokens=bench["tokens"] / count + 1 - response,
        response_tokens=response,
        policy_contexts=1.0,
        reference_contexts=0.0,
        num_updates=1,
        num_analyses=0,
    )
    trainer = Trainer(config, sizes, layout, gpu("h200"), workload)
    memory = trainer_memory(
        sizes, layout, config.actor, config.optimizer, row_share=workload.row_share, reference=False
    )
    measured, title = bench["actor"], f"{model}, {count} {bench['batch']} sequences, {bench['tokens']:,} tokens"
    sizes_of_groups = {"DP": layout.data, "TP": layout.tensor, "PP": layout.pipeline, "CP": layout.context}
    title += "".join(f", {group}{size}" for group, size in sizes_of_groups.items() if size > 1)
    if layout.pipeline > 1:
        title += f", micro-batches of {config.actor.tokens_per_micro_batch:,}"
    scored = trainer.score(bench["tokens"], bench["response_tokens"]).seconds
    yield Check(f"{title}, scoring", statistics.median(measured["score_s"]), scored)
    yield Check(f"{title}, update", statistics.median(measured["update_s"]), trainer.update().seconds)
    # What torch has allocated: the driver's share is not in it.
    predicted = memory.total - memory.parts["reserved"]
    yield Check(f"{title}, memory", measured["peak_gib"] * 2**30, predicted)


def _head(bench: dict) -> Iterator[Check]:
    for case in bench["cases"]:
        if case["data"] != "random":
            continue
        sizes, rows = _head_sizes(case["hidden"]), case["tokens"]
        name = f"head, H={case['hidden']}, {rows:,} rows"
        scored, trained = (case[kind]["ours-cuda"]["median_ms"] / 1e3 for kind in ("score", "train"))
        yield Check(f"{name}, scoring", scored, head_score_s(sizes, ONE_GPU, gpu("h200"), rows))
        yield Check(f"{name}, training", trained, head_train_s(sizes, ONE_GPU, gpu("h200"), rows))


def _agent_batch(bench: dict) -> Iterator[Check]:
    """Two scores and a loss, on the response rows and on all rows."""
    for case in bench["agent_batch"]:
        sizes = _head_sizes(case["hidden"])
        for which, rows in (("response rows", case["response_rows"]), ("all rows", case["tokens"])):
            predicted = 2 * head_score_s(sizes, ONE_GPU, gpu("h200"), rows)
            predicted += head_train_s(sizes, ONE_GPU, gpu("h200"), rows)
            name = f"head, H={case['hidden']}, two scores and a loss on {rows:,} rows"
            yield Check(name, case[which]["median_ms"] / 1e3, predicted)


def _head_memory(bench: dict) -> Iterator[Check]:
    for case in bench["cases"]:
        if case["data"] == "random":
            predicted = head_bytes(_head_sizes(case["hidden"]), ONE_GPU, case["tokens"], case["tokens"])
            name = f"head, H={case['hidden']}, memory of training"
            yield Check(name, case["train"]["ours-cuda"]["peak_gb"] * 1e9, predicted)


def _tensor_parallel(bench: dict) -> Iterator[Check]:
    layout = replace(ONE_GPU, num_gpus=2, tensor=2)
    for case in bench["tensor_parallel"]:
        sizes, rows = _head_sizes(case["hidden"]), case["tokens"]
        name = f"head, H={case['hidden']}, two GPUs"
        scored, trained = (case[kind]["tp2"]["median_ms"] / 1e3 for kind in ("score", "train"))
        yield Check(f"{name}, scoring", scored, head_score_s(sizes, layout, gpu("h200"), rows))
        yield Check(f"{name}, training", trained, head_train_s(sizes, layout, gpu("h200"), rows))


def _head_sizes(hidden: int) -> Sizes:
    return Sizes.of(PUBLISHED_MODELS["Qwen3-0.6B"] | {"hidden_size": hidden, "vocab_size": VOCABULARY})


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every figure with its error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    checks = all_checks()
    if options.json:
        print(json.dumps([asdict(check) | {"error": check.error} for check in checks], indent=1))
        return 0
    print("| figure | measured | predicted | error | |\n| --- | --- | --- | --- | --- |")
    for check in checks:
        scale, unit = (1e9, "GB") if "memory" in check.figure else (1e-3, "ms")
        measured, predicted = check.measured / scale, check.predicted / scale
        print(
            f"| {check.figure} | {measured:.1f} {unit} | {predicted:.1f} {unit} | {check.error:+.0%} | {check.note} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
