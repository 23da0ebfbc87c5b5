"""Times the LM head's log-prob and loss on one GPU against its peers, or on two GPUs against one.

    python -m tools.bench_linear_logprob --hidden 2048 4096 --out docs/bench/linear_logprob_h200.json
    torchrun --nproc-per-node 2 -m tools.bench_linear_logprob --tensor-parallel --out docs/bench/linear_logprob_tp2.json

One process, the same tensors for all, peers interleaved in random order, medians with quartiles; TFLOP/s count the
algorithm's 2·T·H·V (score) or 6·T·H·V (train) for everyone, recomputation counting nothing. `train` is forward,
d hidden and d weight. An accuracy table against float64 comes before any timing.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_opid.algorithm.losses import LossCoefficients, PolicyTerms
from megatron_opid.kernels.linear_logprob import linear_logprob, linear_policy_loss
from tools.bench_linear_logprob_peers import Case, Peer, all_peers, ours

VOCABULARY = 151_936
PADDED_VOCABULARY = 152_064  # a multiple of 128 · 2
SLOW_MS = 4000
LOGIT_STD = {"random": 2.5, "peaked": 14.0}


def make_case(tokens: int, hidden_size: int, data: str, *, columns: int = VOCABULARY, seed: int = 0) -> Case:
    """Normal weights of deviation 0.02; targets are sampled from the head's own softmax, as a rollout's are."""
    torch.manual_seed(seed)
    weight = (torch.randn(columns, hidden_size, device="cuda") * 0.02).bfloat16()
    scale = LOGIT_STD[data] / (0.02 * hidden_size**0.5)
    hidden = (torch.randn(tokens, hidden_size, device="cuda") * scale).bfloat16()
    targets = torch.empty(tokens, dtype=torch.int64, device="cuda")
    for start in range(0, tokens, 2048):
        logits = (hidden[start : start + 2048] @ weight[:VOCABULARY].t()).float()
        targets[start : start + 2048] = (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1)
    old, _ = linear_logprob(hidden, weight, targets, num_valid_columns=VOCABULARY)
    noise = [torch.randn(tokens, device="cuda") for _ in range(3)]
    terms = PolicyTerms(
        weights=torch.full((tokens,), 1 / tokens, device="cuda"),
        old_logprobs=old + 0.1 * noise[0],
        advantages=noise[1],
        reference_logprobs=old + 0.1 * noise[2],
    )
    return Case(hidden.requires_grad_(), weight.requires_grad_(), targets, terms, LossCoefficients(kl=0.01))


def interleaved_ms(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call, by events on the device; each repeat calls all of them in a new random order.

    A function that has used up SLOW_MS sits out the later repeats, once it has five times.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(-2, repeats):
        for name in random.sample(list(functions), len(functions)):
            if len(times[name]) >= 5 and sum(times[name]) > SLOW_MS:
                continue
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            functions[name]()
            end.record()
            end.synchronize()
            if repeat >= 0:
                times[name].append(begin.elapsed_time(end))
    return times


def peak_bytes(function: Callable[[], object]) -> int:
    """Most memory allocated during the call, above what was before it; results count, inputs do not."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def summary(times_ms: list[float], flop: float) -> dict:
    low, median, high = statistics.quantiles(times_ms, n=4)
    return {
        "median_ms": median,
        "quartiles_ms": [low, high],
        "tflops": flop / median / 1e9,
        "times_ms": [round(t, 4) for t in times_ms],
    }


def accuracy(peers: list[Peer], data: str) -> dict:
    """Errors against float64 on 512 rows, H = 2048: log-prob, difference of two contexts, relative L2 of gradients."""
    case = make_case(512, 2048, data)
    other = Case((case.hidden.detach() * 1.02).requires_grad_(), *list(vars(case).values())[1:])

    def exact(c: Case) -> tuple[Tensor, Tensor]:
        inputs = [x.detach().double().requires_grad_() for x in c.inputs]
        logprobs = (inputs[0] @ inputs[1].t()).log_softmax(-1).gather(1, c.targets[:, None])[:, 0]
        return logprobs.detach(), torch.autograd.grad(c.loss_of(logprobs), inputs)

    (wanted, gradients), (wanted_other, _) = exact(case), exact(other)
    table: dict = {"mean_probability": wanted.exp().mean().item()}
    for peer in peers:
        if peer.name.startswith("bare"):
            continue
        errors = table[peer.name] = {}
        if peer.score is not None:
            scores, scores_other = peer.score(case).double(), peer.score(other).double()
            difference = (scores_other - scores) - (wanted_other - wanted)
            errors["logprob_max"] = (scores - wanted).abs().max().item()
            errors["difference_max"] = difference.abs().max().item()
            errors["difference_std"] = difference.std().item()
        if peer.gradients is not None:
            errors["gradients_relative_l2"] = [
                ((value.double() - exact_value).norm() / exact_value.norm()).item()
                for value, exact_value in zip(peer.gradients(case), gradients, strict=True)
            ]
    return table


def against_peers(peers: list[Peer], tokens: int, hidden_size: int, data: str, repeats: int) -> dict:
    case = make_case(tokens, hidden_size, data)
    product = 2 * tokens * hidden_size * VOCABULARY
    result: dict = {"tokens": tokens, "hidden": hidden_size, "data": data, "failed": {}}
    for kind, flop in (("score", product), ("train", 3 * product)):
        functions = {}
        peaks = {}
        for peer in peers:
            call = getattr(peer, kind)
            if call is None:
                continue
            try:
                call(case)
                peaks[peer.name] = peak_bytes(lambda call=call: call(case))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                result["failed"][f"{kind} {peer.name}"] = str(error).splitlines()[0][:200]
                continue
            functions[peer.name] = lambda call=call: call(case)
        result[kind] = {
            name: {**summary(times, flop), "peak_gb": peaks[name] / 1e9}
            for name, times in interleaved_ms(functions, repeats).items()
        }
        print_table(f"{kind} T={tokens} H={hidden_size} {data}", result[kind])
        torch.cuda.empty_cache()
    return result


def agent_batch(hidden_size: int, repeats: int, tokens: int = 32_768, response: float = 0.15) -> dict:
    """Old and teacher scores, then the loss: on response rows (row selection included) and on all rows of the batch."""
    case = make_case(tokens, hidden_size, "random")
    rows = torch.rand(tokens, device="cuda").lt(response).nonzero()[:, 0]
    terms = PolicyTerms(**{k: None if v is None else v[rows] for k, v in vars(case.terms).items()})
    head = ours("cuda", 0.001)

    def step(selected: bool) -> None:
        hidden = case.hidden.index_select(0, rows) if selected else case.hidden
        targets = case.targets[rows] if selected else case.targets
        batch = Case(hidden, case.weight, targets, terms if selected else case.terms, case.coefficients)
        head.score(batch)
        head.score(batch)
        total, _ = linear_policy_loss(*batch.inputs, targets, batch.terms, LossCoefficients(kl=0.01, entropy=0.001))
        torch.autograd.grad(total, case.inputs)

    times = interleaved_ms({"response rows": lambda: step(True), "all rows": lambda: step(False)}, repeats)
    num_rows = {"response rows": len(rows), "all rows": tokens}
    result = {name: summary(t, 10 * num_rows[name] * hidden_size * VOCABULARY) for name, t in times.items()}
    print_table(f"agent batch, {len(rows)} of {tokens} rows, H={hidden_size}", result)
    return {"tokens": tokens, "response_rows": len(rows), "hidden": hidden_size, **result}


def tensor_parallel(tokens: int, hidden_size: int, repeats: int) -> dict:
    """The head on one GPU and split over two; a call's time is the slower rank's."""
    group, rank = dist.group.WORLD, dist.get_rank()
    case = make_case(tokens, hidden_size, "random", columns=PADDED_VOCABULARY)
    shard = case.weight.detach().chunk(group.size())[rank].clone().requires_grad_()
    coefficients = LossCoefficients(kl=0.01, entropy=0.001)

    def score(weight: Tensor, tp_group: dist.ProcessGroup | None) -> None:
        options = {"num_valid_columns": VOCABULARY, "tp_group": tp_group}
        linear_logprob(case.hidden.detach(), weight.detach(), case.targets, **options)

    def train(weight: Tensor, tp_group: dist.ProcessGroup | None) -> None:
        options = {"num_valid_columns": VOCABULARY, "tp_group": tp_group}
        total, _ = linear_policy_loss(case.hidden, weight, case.targets, case.terms, coefficients, **options)
        torch.autograd.grad(total, (case.hidden, weight))

    result = {}
    for kind, call, flop in (("score", score, 2), ("train", train, 6)):
        times = {}
        for name, arguments in {"tp1": (case.weight, None), f"tp{group.size()}": (shard, group)}.items():
            dist.barrier()
            own = interleaved_ms({name: lambda call=call, a=arguments: call(*a)}, repeats)[name]
            slowest = torch.tensor(own, device="cuda")
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            times[name] = summary(slowest.tolist(), flop * tokens * hidden_size * VOCABULARY)
        result[kind] = times
        if rank == 0:
            print_table(f"{kind} T={tokens} H={hidden_size}", times)
    return {"tokens": tokens, "hidden": hidden_size, **result}


def print_table(title: str, rows: dict[str, dict]) -> None:
    bare = min((row["median_ms"] for name, row in rows.items() if name.startswith("bare")), default=None)
    print(f"\n{title}")
    for name, row in sorted(rows.items(), key=lambda item: item[1]["median_ms"]):
        share = f"{bare / row['median_ms']:7.1%} of bare" if bare else ""
        peak = f"{row['peak_gb']:6.2f} GB" if "peak_gb" in row else ""
        low, high = row["quartiles_ms"]
        times = f"{row['median_ms']:9.2f} ms [{low:.2f}, {high:.2f}]"
        print(f"  {name:20s} {times} {row['tflops']:5.0f} TFLOP/s {share} {peak}", flush=True)


def environment() -> dict:
    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,clocks.sm,power.draw,temperature.gpu",
        "--format=csv,noheader",
    ]
    smi = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": smi}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--data", nargs="+", choices=list(LOGIT_STD), default=["random"])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--peers", nargs="+", help="only those whose names begin so (default: all)")
    parser.add_argument("--tensor-parallel", action="store_true", help="under torchrun: one GPU against all of them")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="raw figures, JSON")
    args = parser.parse_args()
    result: dict = {"arguments": {k: str(v) for k, v in vars(args).items()}}
    if args.tensor_parallel:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl")
        result["tensor_parallel"] = [tensor_parallel(args.tokens, hidden, args.repeats) for hidden in args.hidden]
        if dist.get_rank():
            dist.destroy_process_group()
            return
    else:
        peers, result["missing"] = all_peers()
        peers = [peer for peer in peers if not args.peers or peer.name.startswith(tuple(args.peers))]
        result["notes"] = {peer.name: peer.note for peer in peers}
        result["accuracy"] = {data: accuracy(peers, data) for data in LOGIT_STD}
        print(json.dumps({"missing": result["missing"], "accuracy": result["accuracy"]}, indent=1))
        result["cases"] = [
            against_peers(peers, args.tokens, hidden, data, args.repeats)
            for hidden in args.hidden
            for data in args.data
        ]
        result["agent_batch"] = [agent_batch(hidden, args.repeats) for hidden in args.hidden]
    if dist.is_initialized():
        dist.destroy_process_group()
    result["environment"] = environment()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
