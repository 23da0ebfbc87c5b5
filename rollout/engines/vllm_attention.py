"""FlashAttention 3 in CUDA graphs that are replayed for prompts and next tokens alike.

vLLM plans the kernel's tiles ahead of a step, for its longest query. Tiles and plan of a graph's kernel are those of
the longest query at capture: a plan made for another (a step of next tokens only: no causal mask, smaller tiles) has
the kernel read it wrongly, and log-probs are off by several nats. Without one the kernel plans within the graph.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)


class PlansWithinGraphs(FlashAttentionMetadataBuilder):
    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.aot_schedule = False

    def build_for_cudagraph_capture(self, common_attn_metadata: CommonAttentionMetadata) -> FlashAttentionMetadata:
        """For queries as long as the step: vLLM's newer model runner captures one token a request."""
        longest = replace(common_attn_metadata, max_query_len=common_attn_metadata.num_actual_tokens)
        return super().build_for_cudagraph_capture(longest)


class GraphedFlashAttention(FlashAttentionBackend):
    @staticmethod
    def get_builder_cls() -> type[PlansWithinGraphs]:
        return PlansWithinGraphs
