"""What we add to an SGLang 0.5.14 worker (by sglang_worker.py): weights taken in place, and digests of them
(worker_weights.py).

By SGLang's own hooks (srt/plugins) its requests get a load format, and actions of /weights_checker, of which it gathers
what all ranks answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import distributed

from rollout.engines.sglang_names import DIGESTS, LAYOUT, STREAM
from rollout.engines.worker_shards import is_plain
from rollout.engines.worker_weights import WorkerWeights
from rollout.weight_sync.communicator import broadcast_coalesced

FAULT_BYTES = 1024  # of UTF-8, from each rank to the others
RUNNER = "sglang.srt.model_executor.model_runner.ModelRunner"


def register() -> None:
    """In a process that SGLang has spawned; its `load_plugins` applies the hooks."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(f"{RUNNER}.update_weights_from_distributed", update_weights, HookType.AROUND)
    HookRegistry.register(f"{RUNNER}.check_weights", check_weights, HookType.AROUND)


def update_weights(
    original: Callable[..., tuple[bool, str]],
    runner: Any,
    names: Sequence[str],
    dtypes: Sequence[str],
    shapes: Sequence[Sequence[int]],
    group_name: str,
    load_format: str | None = None,
) -> tuple[bool, str]:
    """Around `ModelRunner.update_weights_from_distributed`: whether it succeeded, and what to tell the client.

    Never raises, which would end the scheduler. Only rank 0's answer reaches the client: it speaks for all.
    """
    if load_format != STREAM:
        return original(runner, names, dtypes, shapes, group_name, load_format)
    faults = _on_all_ranks(runner, _receive(runner, group_name))
    told = [f"rank {rank}: {fault}" for rank, fault in enumerate(faults) if fault]
    return not told, "; ".join(told) or "All weights were taken in place."


def check_weights(original: Callable[..., dict | None], runner: Any, action: str) -> dict | None:
    """Around `ModelRunner.check_weights`; SGLang's front end reads `per_gpu_checksum` of every answer."""
    if action == LAYOUT:
        return {"in_place": _takes_in_place(runner), "checksums": {}, "per_gpu_checksum": ""}
    if action == DIGESTS:
        return {"checksums": _weights(runner).digests(), "per_gpu_checksum": ""}
    return original(runner, action=action)


def _receive(runner: Any, group_name: str) -> str:
    """Why this rank did not take all weights; empty if it did."""
    try:
        group, weights = runner._model_update_group[group_name], _weights(runner)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # steps run on a stream of the scheduler's own
        weights.begin()
        weights.receive(partial(broadcast_coalesced, group))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _on_all_ranks(runner: Any, fault: str) -> list[str]:
    """What every rank passed, in rank order, on every rank."""
    if runner.tp_size == 1:
        return [fault]
    own = torch.frombuffer(bytearray(fault.encode()[:FAULT_BYTES].ljust(FAULT_BYTES, b"\0")), dtype=torch.uint8)
    gathered = [torch.empty_like(own) for _ in range(runner.tp_size)]
    distributed.all_gather(gathered, own, group=runner.tp_group.cpu_group)
    return [text.numpy().tobytes().rstrip(b"\0").decode(errors="replace") for text in gathered]


def _weights(runner: Any) -> WorkerWeights:
    """Kept on the runner from one request to the next."""
    if not hasattr(runner, "opid_weights"):
        runner.opid_weights = WorkerWeights(runner.model)
    return runner.opid_weights


def _takes_in_place(runner: Any) -> bool:
    """Where its ranks are those of tensor parallelism alone, and there is no draft model to be given weights, too."""
    has_all_layers = runner.pp_size == runner.dp_size == runner.attn_cp_size == 1
    return has_all_layers and not runner.server_args.speculative_algorithm and is_plain(runner.model)
