"""Every number that the prediction takes from elsewhere, in one table, each with its source.

kind: measured (by this project, or on the machines it was lent), published (by others), data sheet, fitted (to one
measurement, named in the source) or assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["measured", "published", "data sheet", "fitted", "assumed"]


@dataclass(frozen=True)
class Constant:
    """A number with its unit and source."""

    value: float
    unit: str
    kind: Kind
    source: str


@dataclass(frozen=True)
class Gpu:
    """One accelerator."""

    name: str
    memory_bytes: float
    copy_bytes_per_s: float  # device to device, bytes read and written
    gemm_flops_per_s: float
    peak_flops_per_s: float  # for MFU


CONSTANTS: dict[str, Constant] = {
    "gemm_flops_per_s": Constant(
        680e12, "FLOP/s", "measured", "bf16 cuBLAS, six shapes of docs/bench/linear_logprob_h200.json: 652 to 691"
    ),
    "peak_flops_per_s": Constant(989e12, "FLOP/s", "data sheet", "H100 and H200 SXM, bf16 dense; only for MFU"),
    "h200_memory_bytes": Constant(143771 * 2**20, "B", "measured", "nvidia-smi on one H200"),
    "h100_memory_bytes": Constant(81559 * 2**20, "B", "measured", "nvidia-smi on one H100 80GB HBM3"),
    "h200_copy_bytes_per_s": Constant(4.3e12, "B/s", "measured", "torch copy on one H200, bytes read and written"),
    "h100_copy_bytes_per_s": Constant(3.0e12, "B/s", "measured", "torch copy on one H100, bytes read and written"),
    "attention_forward_flops_per_s": Constant(
        400e12, "FLOP/s", "assumed", "between FlashAttention-2 (350) and cuDNN (574) at 1k tokens, arXiv 2407.08608"
    ),
    "attention_backward_flops_per_s": Constant(300e12, "FLOP/s", "assumed", "three quarters of the forward's"),
    "grouped_gemm_share": Constant(0.6, "of gemm", "assumed", "experts' products are narrow: 768 columns in 30B-A3B"),
    "layer_floor_s": Constant(
        61e-3 / 28, "s", "fitted", "host time of a layer's launches; to the seen 61 ms forward of 28 layers, TE 2.12"
    ),
    "nvlink_bytes_per_s": Constant(
        370e9, "B/s", "published", "NCCL on 8 H100: NVIDIA/nccl-tests#212, of 450 line rate"
    ),
    "nic_bytes_per_s": Constant(46e9, "B/s", "published", "one 400 Gb/s NIC a GPU: NVIDIA/nccl-tests#290, 46 to 48"),
    "collective_latency_s": Constant(20e-6, "s", "assumed", "one NCCL collective of a few ranks"),
    "pcie_bytes_per_s": Constant(50e9, "B/s", "assumed", "pinned host memory, PCIe 5 x16 (64 line rate)"),
    "disk_bytes_per_s": Constant(2e9, "B/s", "assumed", "a shared file system; local NVMe is faster"),
    "decode_floor_s": Constant(4e-3, "s", "assumed", "scheduling and launches of one decode step of a server"),
    "local_decode_layer_s": Constant(1e-3, "s", "assumed", "transformers' eager layer at decode, engine `local`"),
    "sampling_bytes_per_logit": Constant(16, "B", "assumed", "logits written, softmax and sampling passes, fp32"),
    "environment_step_s": Constant(1e-3, "s", "measured", "native ALFWorld 0.05 ms, prompt and socket around it"),
    "sync_tensor_s": Constant(200e-6, "s", "assumed", "host time of one tensor in the export's stream"),
    "reserved_bytes": Constant(4e9, "B", "assumed", "CUDA context, NCCL buffers, cuBLAS workspaces, fragmentation"),
    "serving_reserved_bytes": Constant(4e9, "B", "assumed", "an engine's graphs, activations and its own context"),
    "mean_step_share": Constant(0.6, "of max_steps", "assumed", "steps of an episode; --mean-steps"),
    "mean_prompt_tokens": Constant(1500, "tokens", "assumed", "agentic batches of bench_actor; --mean-prompt-tokens"),
    "mean_response_tokens": Constant(120, "tokens", "assumed", "the same; --mean-response-tokens"),
    "skill_tokens": Constant(100, "tokens", "assumed", "a skill in a teacher prompt"),
    "step_skill_share": Constant(0.25, "of steps", "assumed", "steps with a skill of their own, routing additive"),
    "analysis_s": Constant(20.0, "s", "assumed", "one analysis of an episode by a remote model; --analysis-seconds"),
}

GPUS_PER_NODE = 8


def constant(name: str) -> float:
    """The value of a constant."""
    return CONSTANTS[name].value


def gpu(name: str) -> Gpu:
    """`h100` or `h200`."""
    return Gpu(
        name,
        constant(f"{name}_memory_bytes"),
        constant(f"{name}_copy_bytes_per_s"),
        constant("gemm_flops_per_s"),
        constant("peak_flops_per_s"),
    )
