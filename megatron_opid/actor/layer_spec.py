"""The transformer layer: Transformer Engine's, or Megatron's local one with RMSNorm and packed attention of our own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_opid.actor.context_parallel import gathered_order, own_tokens


class RMSNorm(torch.nn.Module):
    """y = weight · x / sqrt(mean(x²) + eps), normalised in fp32; unlike the local spec's, sequence-parallel."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: object) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Megatron sums the gradient of a weight so marked over the tensor-parallel ranks.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        normalized = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normalized.to(x.dtype)


class PackedAttention(MegatronModule):
    """Causal attention in each packed sequence: q [t, heads/tp, d], k and v [t, groups/tp, d] -> [t, heads/tp · d].

    Under context parallelism t are this rank's tokens (actor.context_parallel), and every rank gathers all keys and
    values: simple, and meant to check the layout on a CPU; Transformer Engine passes them round in a ring.
    """

    def __init__(self, config: TransformerConfig, *unused_args: object, **unused: object) -> None:
        super().__init__(config)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        attn_mask_type: object = None,
        attention_bias: None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        if self.config.context_parallel_size > 1:
            return _attend_over_context_ranks(query, key, value, bounds)
        outputs = []
        for start, end in zip(bounds, bounds[1:], strict=False):
            q, k, v = (x[start:end].transpose(0, 1)[None] for x in (query, key, value))
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            outputs.append(attended[0].transpose(0, 1))
        return torch.cat(outputs).flatten(1)


def _attend_over_context_ranks(query: Tensor, key: Tensor, value: Tensor, bounds: list[int]) -> Tensor:
    """`bounds` are of the whole micro-batch, of which each rank holds 1/ranks of every sequence."""
    group = parallel_state.get_context_parallel_group()
    ranks, lengths = group.size(), [end - start for start, end in zip(bounds, bounds[1:], strict=False)]
    own = torch.as_tensor(own_tokens(lengths, ranks, group.rank()), device=query.device)
    order = torch.as_tensor(gathered_order(lengths, ranks), device=query.device)
    # The backward adds up what each rank's queries contribute to a key's gradient.
    key, value = (gather_from_sequence_parallel_region(x.contiguous(), group=group)[order] for x in (key, value))
    outputs = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        mine = slice(start // ranks, end // ranks)
        q, k, v = (x.transpose(0, 1)[None] for x in (query[mine], key[start:end], value[start:end]))
        is_visible = own[mine, None] >= torch.arange(start, end, device=query.device)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=is_visible, enable_gqa=True)
        outputs.append(attended[0].transpose(0, 1))
    return torch.cat(outputs).flatten(1)


def uses_transformer_engine(device: torch.device, dtype: torch.dtype) -> bool:
    """On a GPU, but for fp32: its packed attention computes in 16 bits only."""
    return device.type == "cuda" and dtype != torch.float32


def layer_spec(config: TransformerConfig, device: torch.device, vp_stage: int | None) -> TransformerBlockSubmodules:
    """The layers (and final norm) of this pipeline stage's chunk `vp_stage`."""
    if uses_transformer_engine(device, config.params_dtype):
        return get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=vp_stage)
    block = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm", vp_stage=vp_stage)
    for spec in block.layer_specs:
        _replace_modules(spec, config)
    return TransformerBlockSubmodules(layer_specs=block.layer_specs, layer_norm=RMSNorm)


def _replace_modules(spec: ModuleSpec, config: TransformerConfig) -> None:
    """In place; layers of a kind share their specification, so a second time changes nothing."""
    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    attention = layer.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    if layer.mlp.module is MoELayer:
        # Transformer Engine keeps the norm before experts apart, so its name in a checkpoint is its own.
        layer.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.", None)
