"""The parallel layouts under test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TEMPERATURE = 0.7
EXPERT_MODELS = ("qwen3_moe", "qwen3_moe_mixed")
ALL_MODELS = ("qwen3_tied", "qwen3_untied", "qwen2_tied", "qwen2_untied", *EXPERT_MODELS)


@dataclass(frozen=True)
class Layout:
    num_ranks: int
    options: dict[str, Any]
    models: tuple[str, ...] = ("qwen3_tied",)


TP2 = {"tensor_parallel": 2}
SP = {"sequence_parallel": True}
PP2 = {"pipeline_parallel": 2}
VPP2 = PP2 | {"virtual_pipeline_parallel": 2}
EP2 = {"expert_parallel": 2}
CP2 = {"context_parallel": 2}

LAYOUTS = {
    "one": Layout(1, {}, ALL_MODELS),
    "one_plain": Layout(1, {"distributed_optimizer": False}),
    "one_recompute_full": Layout(1, {"recompute": "full"}),
    "one_recompute_mlp": Layout(1, {"recompute": "mlp"}),
    "one_recompute_block": Layout(1, {"recompute": "full", "recompute_layers": 2, "deterministic": True}),
    "one_recompute_selective": Layout(1, {"recompute": "selective"}),
    "tp2": Layout(2, TP2),
    "tp2_sp": Layout(2, TP2 | SP, ("qwen3_tied", "qwen2_untied")),
    "tp2_sp_recompute": Layout(2, TP2 | SP | {"recompute": "full"}),
    "pp2": Layout(2, PP2, ("qwen3_tied", "qwen2_untied")),
    "vpp2": Layout(2, VPP2, ("qwen3_tied", "qwen3_untied")),
    "dp2": Layout(2, {}),
    "tp2_sp_etp2": Layout(2, TP2 | SP | {"expert_tensor_parallel": 2}, EXPERT_MODELS),
    "ep2": Layout(2, EP2, EXPERT_MODELS),
    "tp2_sp_ep2": Layout(2, TP2 | SP | EP2, EXPERT_MODELS),
    "dp2_plain": Layout(2, {"distributed_optimizer": False}),
    "dp2_overlap": Layout(2, {"overlap_communication": True}),
    "cp2": Layout(2, CP2, ("qwen3_tied", "qwen2_untied")),
    "pp4": Layout(4, {"pipeline_parallel": 4}, ("qwen3_tied", "qwen2_untied")),
    "tp2_pp2": Layout(4, TP2 | PP2 | SP, ("qwen3_tied", "qwen2_untied")),
    "tp2_dp2": Layout(4, TP2),
    "vpp2_dp2": Layout(4, VPP2),
    "cp2_tp2_sp": Layout(4, CP2 | TP2 | SP),
    "cp2_pp2": Layout(4, CP2 | PP2),
    "ep2_pp2": Layout(4, EP2 | PP2, EXPERT_MODELS),
    "ep4": Layout(4, {"expert_parallel": 4}, ("qwen3_moe",)),
    "ep2_dp2": Layout(4, EP2, ("qwen3_moe",)),
}
