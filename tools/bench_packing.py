"""How evenly micro-batches are dealt to data-parallel ranks, and how much of them is padding.

    python -m tools.bench_packing --json docs/bench/packing.json

Batches are those of tools.bench_actor. `in order` fills one micro-batch after another with the sequences as they come
and deals them round robin; `sorted` deals the planner's micro-batches in order of cost, always to the ranks in the same
order; `planner` is actor.plan. Balance is the operations of the busiest rank over the mean: the others wait for it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_opid.actor.context_parallel import padded_length
from megatron_opid.actor.packing import pack, token_alignment
from megatron_opid.actor.plan import plan_micro_batches, sequence_operations
from megatron_opid.actor.samples import TokenSequence
from megatron_opid.config import ActorConfig
from megatron_opid.weights.hf_config import ModelShape, parse_hf_config
from tools.bench_actor_cases import BATCHES, hf_config, make_sequences

TOKENS = 16384
NUM_SEQUENCES = {"agentic": 1024, "long": 128}
LAYOUTS = {
    "data parallel": {},
    "tensor 8, sequence parallel": {"tensor_parallel": 8, "sequence_parallel": True},
    "context 2, tensor 4, sequence parallel": {
        "context_parallel": 2,
        "tensor_parallel": 4,
        "sequence_parallel": True,
    },
    "fp8": {"fp8": "current"},
    "fp8, tensor 2, sequence parallel": {"fp8": "current", "tensor_parallel": 2, "sequence_parallel": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3-1.7b")
    parser.add_argument("--json", type=Path, help="write the raw numbers here")
    options = parser.parse_args()
    shape = parse_hf_config(hf_config(options.model))
    report = {"model": options.model, "tokens_per_micro_batch": TOKENS, "balance": [], "padding": []}
    for name, count in NUM_SEQUENCES.items():
        sequences = make_sequences(BATCHES[name], count, shape.vocab_size)
        for num_ranks in (2, 8, 16):
            report["balance"].append({"batch": name, "ranks": num_ranks, **balance(shape, sequences, num_ranks)})
        for layout, values in LAYOUTS.items():
            report["padding"].append({"batch": name, "layout": layout, "share": padding(sequences, values)})
    for row in [*report["balance"], *report["padding"]]:
        print(", ".join(f"{key} {value:.5g}" if isinstance(value, float) else f"{value}" for key, value in row.items()))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def balance(shape: ModelShape, sequences: Sequence[TokenSequence], num_ranks: int) -> dict[str, float]:
    """Busiest rank over the mean of each way; micro-batches per rank; the planner's seconds."""
    lengths = [sequence.num_tokens for sequence in sequences]
    operations = [sequence_operations(shape, sequence) for sequence in sequences]
    started = time.perf_counter()
    plan = plan_micro_batches(lengths, operations, tokens_per_micro_batch=TOKENS, num_ranks=num_ranks)
    seconds = time.perf_counter() - started
    dealt = sorted((_cost(members, operations) for rank in plan for members in rank), reverse=True)
    in_order = [_cost(members, operations) for members in _in_order(lengths)]
    return {
        "in order": _busiest([sum(in_order[rank::num_ranks]) for rank in range(num_ranks)]),
        "sorted": _busiest([sum(dealt[rank::num_ranks]) for rank in range(num_ranks)]),
        "planner": _busiest([sum(_cost(members, operations) for members in rank) for rank in plan]),
        "micro_batches": len(plan[0]),
        "fewest_possible": -(-sum(lengths) // (TOKENS * num_ranks)),
        "planner_s": seconds,
    }


def padding(sequences: Sequence[TokenSequence], values: dict) -> float:
    """Padding tokens over the others, of one rank's micro-batches."""
    actor = ActorConfig(**values)
    lengths = [padded_length(sequence.num_tokens, actor.context_parallel) for sequence in sequences]
    (plan,) = plan_micro_batches(lengths, lengths, tokens_per_micro_batch=TOKENS, num_ranks=1)
    options = {"alignment": token_alignment(actor), "context_ranks": actor.context_parallel}
    packed = [pack([sequences[i] for i in members], device=torch.device("cpu"), **options) for members in plan]
    return sum(int(p.sequences.cu_seqlens_q[-1]) for p in packed) / sum(s.num_tokens for s in sequences) - 1


def _in_order(lengths: Sequence[int]) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    for index, length in enumerate(lengths):
        if sum(lengths[i] for i in batches[-1]) + length > TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def _cost(members: Sequence[int], operations: Sequence[float]) -> float:
    return sum(operations[index] for index in members)


def _busiest(loads: Sequence[float]) -> float:
    return max(loads) / (sum(loads) / len(loads))


if __name__ == "__main__":
    main()
