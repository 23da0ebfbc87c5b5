"""Loads fused_head.cu, the LM head with row statistics in its epilogue, for Hopper: built once per version by nvcc."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import subprocess
import tempfile

import torch
from torch import Tensor
from torch.utils import cpp_extension

from megatron_opid.kernels.linear_logprob.triton_rows import Tiles

SOURCE = pathlib.Path(__file__).with_name("fused_head.cu")
FLAGS = ["-O3", "-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", "-shared", "-Xcompiler=-fPIC"]
NEEDS = "it needs a Hopper GPU, contiguous bf16, H a multiple of 64, V/tp a multiple of 32, and nvcc (CUDA_HOME)"
TMA_ALIGNMENT_BYTES = 16


def supports(weight: Tensor) -> bool:
    """Whether the kernel serves this weight [V/tp, H] on this machine; see NEEDS."""
    return (
        weight.is_cuda
        and weight.dtype == torch.bfloat16
        and weight.is_contiguous()
        and weight.data_ptr() % TMA_ALIGNMENT_BYTES == 0
        and weight.shape[1] % 64 == 0
        and weight.shape[0] % 32 == 0
        and torch.cuda.get_device_capability(weight.device) == (9, 0)
        and _nvcc() is not None
    )


def tile_statistics(hidden: Tensor, weight: Tensor, targets: Tensor, inverse_temperature: Tensor, tiles: Tiles) -> None:
    """Fills `tiles` from hidden [C, H] and weight [V/tp, H], bf16; columns from tiles.num_columns on are padding.

    Raises: RuntimeError with CUDA's error code where the launch fails.
    """
    if not len(hidden) or not tiles.num_columns:
        return
    if not hidden.is_contiguous() or hidden.data_ptr() % TMA_ALIGNMENT_BYTES:
        hidden = hidden.clone(memory_format=torch.contiguous_format)
    tensors = (hidden, weight, targets, inverse_temperature)
    filled = (tiles.maximum, tiles.total, tiles.moment, tiles.target, tiles.exponentials)
    sizes = (len(hidden), weight.shape[0], tiles.num_columns, hidden.shape[1])
    num_multiprocessors = torch.cuda.get_device_properties(hidden.device).multi_processor_count
    with torch.cuda.device(hidden.device):
        error = _library().head_statistics(
            *(_pointer(tensor) for tensor in (*tensors, *filled)),
            *sizes,
            num_multiprocessors // 2 * 2,
            ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
        )
    if error:
        raise RuntimeError(f"fused LM head: CUDA error {error}; set the head's back end to triton to go without it")


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _nvcc() -> pathlib.Path | None:
    nvcc = pathlib.Path(cpp_extension.CUDA_HOME or "", "bin", "nvcc")
    return nvcc if nvcc.is_file() else None


@functools.cache
def _library() -> ctypes.CDLL:
    """Builds into torch's extension cache (TORCH_EXTENSIONS_DIR); ranks that build at once each rename their own."""
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    folder = pathlib.Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    path = folder / f"megatron_opid_linear_logprob_{digest}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = pathlib.Path(scratch, path.name)
            build = subprocess.run(
                [str(_nvcc()), *FLAGS, "-o", str(built), str(SOURCE)], capture_output=True, text=True, check=False
            )
            if build.returncode:
                raise RuntimeError(f"nvcc failed on {SOURCE}; set the head's back end to triton\n{build.stderr}")
            built.replace(path)
    return ctypes.CDLL(str(path))
