"""What vLLM 0.24.0 imports into its workers (`--worker-extension-cls rollout.engines.vllm_worker.WeightBook`): our
extension, and FlashAttention in the form that CUDA graphs of whole steps need."""

from __future__ import annotations

from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from rollout.engines.vllm_extension import WeightBook

__all__ = ["WeightBook"]

register_backend(AttentionBackendEnum.FLASH_ATTN, "rollout.engines.vllm_attention.GraphedFlashAttention")
