"""A Megatron-Core GPT built from a Hugging Face config, whose last stage ends in PolicyHead."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_opid.actor.head import HeadInput, HeadOutput, HeadSettings, PolicyHead
from megatron_opid.actor.layer_spec import layer_spec, uses_transformer_engine
from megatron_opid.config import ActorConfig
from megatron_opid.weights.hf_config import ModelShape


class PolicyModel(GPTModel):
    """GPTModel whose forward gives hidden states, or on the last stage the HeadOutput of the HeadInput in `labels`."""

    def __init__(self, settings: HeadSettings, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self.post_process:
            # GPTModel has no argument for the output layer's class; its parameter and sharding are the right ones.
            self.output_layer.__class__ = PolicyHead
            self.output_layer.settings = settings

    def _postprocess(self, hidden_states: Tensor, labels: HeadInput, **unused: Any) -> Tensor | HeadOutput:
        if not self.post_process:
            return hidden_states
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else None
        return self.output_layer(hidden_states, weight, labels)


def transformer_config(shape: ModelShape, actor: ActorConfig, device: torch.device) -> TransformerConfig:
    """Megatron's configuration of the model. Dropout is off: a score must equal what the update computes."""
    dtype = params_dtype(actor)
    interleaved = actor.virtual_pipeline_parallel > 1
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_groups,
        kv_channels=shape.head_dim,
        layernorm_epsilon=shape.norm_epsilon,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        qk_layernorm=shape.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=shape.initializer_range,
        # Every weight is loaded, but only initialisation marks which parameters tensor parallelism splits; without it
        # the gradient norm silently leaves out what the other ranks hold.
        perform_initialization=True,
        use_cpu_initialization=device.type == "cpu",
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=actor.tensor_parallel,
        pipeline_model_parallel_size=actor.pipeline_parallel,
        virtual_pipeline_model_parallel_size=actor.virtual_pipeline_parallel if interleaved else None,
        context_parallel_size=actor.context_parallel,
        expert_model_parallel_size=actor.expert_parallel,
        expert_tensor_parallel_size=actor.expert_tensor_parallel,
        sequence_parallel=actor.sequence_parallel,
        # Packed micro-batches differ in length; with this on, Megatron asks for the alltoall dispatcher, dense or not.
        variable_seq_lengths=actor.pipeline_parallel > 1,
        moe_token_dispatcher_type="alltoall",
        # With the defaults, an interleaved schedule over two stages silently swaps two messages.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        batch_p2p_sync=False,  # it waits for the device at each message, for an old torch's sake
        cuda_graph_scope=[],  # the default warns
        # Read when DistributedDataParallel is built: gradients are plain sums over tokens and ranks.
        calculate_per_token_loss=True,
        **_expert_options(shape, uses_transformer_engine(device, dtype)),
        moe_enable_routing_replay=actor.routing_replay,
        deterministic_mode=actor.deterministic,
        **_recompute_options(actor),
        **(_gpu_options(actor) if device.type == "cuda" else {}),
    )


def build_model(
    shape: ModelShape, config: TransformerConfig, settings: HeadSettings, device: torch.device
) -> list[PolicyModel]:
    """This rank's model chunks (one, or `virtual_pipeline_parallel` of them) with uninitialised weights."""
    num_chunks = config.virtual_pipeline_model_parallel_size
    stages = range(num_chunks) if num_chunks else [None]
    chunks = []
    for stage in stages:
        is_first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage)
        is_last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage)
        chunk = PolicyModel(
            settings,
            config=config,
            transformer_layer_spec=layer_spec(config, device, stage),
            vocab_size=shape.padded_vocab_size,
            max_sequence_length=shape.max_positions,
            pre_process=is_first,
            post_process=is_last,
            share_embeddings_and_output_weights=shape.tied_embeddings,
            position_embedding_type="rope",
            rotary_base=shape.rope_theta,
            vp_stage=stage,
        )
        _fuse_gradient_accumulation(chunk)
        chunks.append(chunk.to(device))
    return chunks


def _fuse_gradient_accumulation(chunk: PolicyModel) -> None:
    """Have the products of Transformer Engine add weight gradients to fp32 main_grad, without a bf16 one in between.

    Megatron's option gradient_accumulation_fusion does the same, but demands Apex's extension for the product of an
    output layer, and PolicyHead does not use that product.
    """
    for module in chunk.modules():
        if hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True


def params_dtype(actor: ActorConfig) -> torch.dtype:
    """The dtype of the model's weights; the optimizer keeps fp32 copies of bf16 weights."""
    return torch.bfloat16 if actor.precision == "bf16" else torch.float32


def _expert_options(shape: ModelShape, grouped: bool) -> dict[str, Any]:
    """No load-balancing loss: the policy's loss alone decides what is learnt."""
    experts = shape.experts
    if experts is None:
        return {}
    all_layers = len(experts.layers) == shape.num_layers
    return {
        "num_moe_experts": experts.num_experts,
        "moe_ffn_hidden_size": experts.ffn_size,
        "moe_router_topk": experts.num_chosen,
        # The softmax over the chosen experts' logits is the softmax over all, renormalised.
        "moe_router_pre_softmax": not experts.normalize_weights,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        # As a list it also makes the checkpoint name every layer for itself.
        "moe_layer_freq": 1 if all_layers else [int(shape.has_experts(n)) for n in range(shape.num_layers)],
        "moe_grouped_gemm": grouped,
        # Megatron's own way of adding up a token's experts is by bf16 atomics, whose order differs from pass to pass:
        # with more than two experts to a token the first update's ratio would not be exactly 1.
        "moe_permute_fusion": grouped,
    }


def _recompute_options(actor: ActorConfig) -> dict[str, Any]:
    if actor.recompute == "none":
        return {}
    if actor.recompute != "full":
        return {
            "recompute_granularity": "selective",
            "recompute_modules": ["mlp" if actor.recompute == "mlp" else "core_attn"],
        }
    if actor.recompute_layers:
        return {
            "recompute_granularity": "full",
            "recompute_method": "block",
            "recompute_num_layers": actor.recompute_layers,
        }
    return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def _gpu_options(actor: ActorConfig) -> dict[str, Any]:
    """Fused kernels and 8-bit matrix products of Transformer Engine."""
    options: dict[str, Any] = {}
    if actor.fused_kernels:
        options |= {"apply_rope_fusion": True, "bias_activation_fusion": True}
    if actor.fp8 == "delayed":
        options |= {
            "fp8": "hybrid",
            "fp8_recipe": "delayed",
            "fp8_amax_history_len": 1024,
            "fp8_amax_compute_algo": "max",
        }
    elif actor.fp8 == "current":
        options |= {"fp8": "hybrid", "fp8_recipe": "tensorwise"}
    return options
