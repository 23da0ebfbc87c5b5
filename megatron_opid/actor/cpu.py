"""CUDA stand-ins that let Megatron-Core 0.16.1 run on a CPU over gloo.

Megatron-Core names the "cuda" device in many places. `install_stand_ins` replaces the functions that have no CPU
meaning; inside `CudaAsCpu` factory calls, `Tensor.cuda` and `Tensor.type` behave as if the CPU were the CUDA device.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from megatron.core.tensor_parallel import random as megatron_random
from megatron.core.transformer.moe import moe_utils, token_dispatcher
from torch.overrides import TorchFunctionMode

CUDA_TYPE_NAMES = {
    "torch.FloatTensor": "torch.cuda.FloatTensor",
    "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
    "torch.HalfTensor": "torch.cuda.HalfTensor",
}


@cache
def install_stand_ins() -> None:
    """Replace CUDA functions by CPU ones, once per process. Only for processes without a CUDA device."""
    if torch.cuda.is_available():
        raise RuntimeError("CUDA stand-ins on a machine with a GPU would break it; set actor.device=cuda")
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu
    torch.cuda.synchronize = lambda *args, **kwargs: None
    torch.cuda.manual_seed = torch.manual_seed
    torch.cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    _install_expert_stand_ins()


def _install_expert_stand_ins() -> None:
    """What the dispatcher of a mixture of experts needs: streams that order nothing, split sizes as lists."""
    stream = _Stream()
    torch.cuda.Stream = _Stream  # a class: modules imported later name it in their annotations
    torch.cuda.current_stream = lambda *args, **kwargs: stream
    torch.cuda.stream = lambda *args, **kwargs: nullcontext()
    moe_utils.te_general_gemm = None  # without Transformer Engine the name is read all the same
    token_dispatcher.maybe_move_tensor_to_cpu = _as_host_value


class _Stream:
    def __init__(self, *unused_args: object, **unused: object) -> None:
        pass

    def wait_stream(self, other: _Stream) -> None:
        pass

    def record_event(self) -> _Stream:
        return self

    def synchronize(self) -> None:
        pass


def _as_host_value(value: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Megatron leaves a tensor that is on the CPU already as it is, and all_to_all refuses tensors as split sizes."""
    return value.numpy() if as_numpy and torch.is_tensor(value) else value


class CudaAsCpu(TorchFunctionMode):
    """Inside, `device="cuda"` means the CPU, `Tensor.cuda()` is the tensor, and `Tensor.type()` names the CUDA type.

    The optimizer and gradient clipping compare those type names. The mode holds for the entering thread only.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if "device" in kwargs and str(kwargs["device"]).startswith("cuda"):
            kwargs["device"] = "cpu"
        result = func(*args, **kwargs)
        if func is torch.Tensor.type and isinstance(result, str):
            return CUDA_TYPE_NAMES.get(result, result)
        return result
