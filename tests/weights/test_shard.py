"""HF tensors -> Megatron slices -> HF tensors, for every family and number of tensor-parallel ranks."""

from __future__ import annotations

import pytest
import torch

from megatron_opid.weights.families import Kind, canonical_name, parameters
from megatron_opid.weights.hf_config import FAMILIES, ExpertShape, ModelShape
from megatron_opid.weights.shard import fuse, join_shards, take_shard, unfuse


def make_shape(family: str, tied: bool) -> ModelShape:
    return ModelShape(
        family=family,
        num_layers=2,
        hidden_size=8,
        ffn_size=12,
        num_heads=8,
        num_groups=4,
        head_dim=6,
        vocab_size=250,
        norm_epsilon=1e-6,
        rope_theta=1e6,
        tied_embeddings=tied,
        qkv_bias=family == "qwen2",
        qk_norm=family != "qwen2",
        max_positions=128,
        initializer_range=0.02,
        experts=ExpertShape(4, 2, 20, True, layers=(1,)) if family == "qwen3_moe" else None,
    )


def random_tensors(shapes: tuple[tuple[int, ...], ...]) -> list[torch.Tensor]:
    return [torch.randn(sizes) for sizes in shapes]


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_bitwise(family: str, num_ranks: int) -> None:
    shape = make_shape(family, tied=False)
    for parameter in parameters(shape):
        tensors = random_tensors(parameter.hf_shapes)
        full = fuse(parameter, tensors, shape)
        shards = [take_shard(parameter.kind, full, rank, num_ranks) for rank in range(num_ranks)]
        assert len({shard.shape for shard in shards}) == 1
        if parameter.kind is not Kind.REPLICATED:
            assert sum(shard.numel() for shard in shards) == full.numel()
        back = unfuse(parameter, join_shards(parameter.kind, shards), shape)
        assert all(map(torch.equal, tensors, back)), parameter.name
        assert all(tensor.is_contiguous() for tensor in back)


def test_a_rank_holds_whole_query_groups() -> None:
    """Megatron's order: per group its query heads, its key head, its value head."""
    shape = make_shape("qwen3", tied=True)
    parameter = next(p for p in parameters(shape) if p.kind is Kind.QKV)
    query, key, value = random_tensors(parameter.hf_shapes)
    second_rank = take_shard(Kind.QKV, fuse(parameter, (query, key, value), shape), 1, 4)
    expected = torch.cat([query[2 * 6 : 4 * 6], key[6:12], value[6:12]])
    assert torch.equal(second_rank, expected)


def test_a_rank_holds_its_gate_rows_then_its_up_rows() -> None:
    shape = make_shape("qwen3", tied=True)
    parameter = next(p for p in parameters(shape) if p.kind is Kind.GATE_UP)
    gate, up = random_tensors(parameter.hf_shapes)
    second_rank = take_shard(Kind.GATE_UP, fuse(parameter, (gate, up), shape), 1, 4)
    assert torch.equal(second_rank, torch.cat([gate[3:6], up[3:6]]))


def test_vocabulary_is_padded_with_zero_rows() -> None:
    shape = make_shape("qwen3", tied=True)
    parameter = next(parameters(shape))
    (embedding,) = random_tensors(parameter.hf_shapes)
    full = fuse(parameter, [embedding], shape)
    assert full.shape == (256, 8)
    assert not full[250:].any()
    assert torch.equal(unfuse(parameter, full, shape)[0], embedding)


def test_experts_and_dense_layers() -> None:
    named = {parameter.name: parameter for parameter in parameters(make_shape("qwen3_moe", tied=True))}
    assert "decoder.layers.0.mlp.linear_fc1.weight" in named
    assert "decoder.layers.1.mlp.linear_fc1.weight" not in named
    assert named["decoder.layers.1.mlp.router.weight"].hf_names == ("model.layers.1.mlp.gate.weight",)
    expert = named["decoder.layers.1.mlp.experts.local_experts.3.linear_fc2.weight"]
    assert (expert.expert, expert.hf_names) == (3, ("model.layers.1.mlp.experts.3.down_proj.weight",))
    assert named["decoder.layers.0.mlp.linear_fc2.weight"].expert is None


def test_a_tied_head_has_no_parameter() -> None:
    names = [parameter.name for parameter in parameters(make_shape("qwen3", tied=True))]
    assert "output_layer.weight" not in names
    assert "output_layer.weight" in [p.name for p in parameters(make_shape("qwen3", tied=False))]


def test_transformer_engine_names() -> None:
    fused = "decoder.layers.3.self_attention.linear_qkv.layer_norm_weight"
    assert canonical_name(fused) == "decoder.layers.3.input_layernorm.weight"
    assert canonical_name("decoder.layers.3.mlp.linear_fc1.layer_norm_weight") == (
        "decoder.layers.3.pre_mlp_layernorm.weight"
    )
    assert canonical_name("decoder.final_layernorm.weight") == "decoder.final_layernorm.weight"
    assert canonical_name("decoder.layers.3.mlp.experts.linear_fc2.weight11") == (
        "decoder.layers.3.mlp.experts.local_experts.11.linear_fc2.weight"
    )
