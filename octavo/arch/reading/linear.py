"""Families whose layers, or some of them, attend linearly, by a delta rule, or over a few positions."""

from __future__ import annotations

from dataclasses import replace

from octavo.arch.mlps import Mlp
from octavo.arch.reading.common import (
    STATE_KINDS,
    Routed,
    Rules,
    assemble,
    experts,
    feed_forward,
    finish,
    grouped,
    head_dim,
    hidden_size,
    layer_kinds,
    num_layers,
)
from octavo.arch.reading.latent import latent
from octavo.arch.reading.watch import Watched
from octavo.arch.shape import Layer, Mixer, Shape
from octavo.arch.states import DeltaNet, LightningAttention, ShortConvolution


def read_qwen_next(fields: Watched) -> Shape:
    """Qwen3-Next and Qwen3.5: three delta layers, then one of gated attention; experts but in `qwen3_5_text`."""
    count = num_layers(fields)
    routed = Routed(count=("num_experts",), shared_width="shared_expert_intermediate_size", shared_gate=True)
    rules = Rules(
        qk_norm="head",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        routed=None if fields.values.get("model_type") == "qwen3_5_text" else routed,
    )
    plain = grouped(fields, rules)
    if not fields.flag("attn_output_gate", True):
        raise fields.fail("attn_output_gate", "true")
    fields.flag("use_sliding_window")
    full = replace(plain, gate_heads=plain.num_heads)
    state = DeltaNet(
        num_key_heads=fields.whole("linear_num_key_heads", 1 << 16),
        num_value_heads=fields.whole("linear_num_value_heads", 1 << 16),
        key_dim=fields.whole("linear_key_head_dim", 1 << 14),
        value_dim=fields.whole("linear_value_head_dim", 1 << 14),
        kernel=fields.whole("linear_conv_kernel_dim", 64, 4),
    )
    every = fields.whole("full_attention_interval", 4096, 4)
    kinds = layer_kinds(fields, count, STATE_KINDS) or [
        "state" if (index + 1) % every else "full" for index in range(count)
    ]
    fields.flag("mtp_use_dedicated_embeddings")
    mixers: list[Mixer] = [state if kind == "state" else full for kind in kinds]
    return assemble(fields, mixers, rules, rotary_head=full.head_dim, mtp="mtp_num_hidden_layers")


def read_kimi_linear(fields: Watched) -> Shape:
    """Delta layers with a decay for each element, and latent attention without turned positions."""
    count, hidden = num_layers(fields), hidden_size(fields)
    given = fields.inner("linear_attn_config")
    place, names = (
        (fields, ("linear_num_heads", "linear_head_dim", "linear_conv_kernel_dim"))
        if given is None
        else (given, ("num_heads", "head_dim", "short_conv_kernel_size"))
    )
    heads, width = place.whole(names[0], 1 << 16), place.whole(names[1], 1 << 14)
    kernel = place.whole(names[2], 64, 4)
    state = DeltaNet(
        num_key_heads=heads,
        num_value_heads=heads,
        key_dim=width,
        value_dim=width,
        kernel=kernel,
        gate_rank=width,
    )
    full = latent(fields)
    if given is not None:
        places = given.listed("full_attn_layers")  # counted from 1
        given.skip("kda_layers")
        kinds = ["full" if index + 1 in places else "state" for index in range(count)]
    else:
        kinds = layer_kinds(fields, count, STATE_KINDS) or []
        if not kinds:
            raise fields.fail("layer_types", f"{count} entries")
    rules = Rules(
        routed=Routed(
            count=("num_experts",),
            used=fields.first("num_experts_per_token", "num_experts_per_tok"),
            router_bias=True,
            shared="num_shared_experts",
            dense="first_k_dense_replace",
        )
    )
    layers = tuple(
        Layer(
            mixers=(full if kind == "full" else state,),
            mlps=(feed_forward(fields, rules, index),),
            norm_elements=2 * hidden,
        )
        for index, kind in enumerate(kinds)
    )
    fields.skip("mla_use_nope")
    return finish(fields, layers, final_norm_elements=hidden, max_positions="model_max_length")


def read_minimax(fields: Watched) -> Shape:
    """MiniMax-Text-01 and M1: linear attention, every eighth layer full attention, experts throughout."""
    hidden, count = hidden_size(fields), num_layers(fields)
    full = grouped(fields, Rules())
    state = LightningAttention(num_heads=full.num_heads, head_dim=full.head_dim)
    if fields.has("attn_type_list"):
        kinds = ["full" if kind == 1 else "state" for kind in fields.listed("attn_type_list", count)]
    else:
        kinds = layer_kinds(fields, count, STATE_KINDS) or []
    if not kinds:
        raise fields.fail("layer_types", f"{count} entries")
    routed = experts(fields, Routed(count=("num_local_experts",), width="intermediate_size"))
    if fields.whole("shared_intermediate_size", 1 << 24, 0, low=0):
        raise fields.fail("shared_intermediate_size", "0")
    fields.skip("shared_moe_mode")
    layers = tuple(
        Layer(mixers=(full if kind == "full" else state,), mlps=(routed,), norm_elements=2 * hidden)
        for kind in kinds
    )
    return finish(fields, layers, final_norm_elements=hidden, rotary_head=full.head_dim)


def read_lfm2(fields: Watched) -> Shape:
    """Short convolutions, and attention in some layers; LFM2-MoE has experts after its first layers."""
    hidden, count = hidden_size(fields), num_layers(fields)
    full = grouped(fields, Rules(qk_norm="head"))
    conv = ShortConvolution(
        width=hidden, kernel=fields.whole("conv_L_cache", 64, 3), bias=fields.flag("conv_bias")
    )
    fields.skip("conv_dim", "conv_dim_out", "block_dim", "block_use_swiglu", "num_heads")
    places = fields.listed("full_attn_idxs") if fields.has("full_attn_idxs") else list(range(count))
    kinds = layer_kinds(fields, count, STATE_KINDS) or [
        "full" if index in places else "state" for index in range(count)
    ]
    first = fields.whole("num_dense_layers", count, count, low=0)
    dense = Mlp(width=_lfm2_width(fields))
    routed = None
    if first < count:
        routed = experts(
            fields, Routed(count=("num_experts",), router_bias=fields.flag("use_expert_bias", True))
        )
    layers = tuple(
        Layer(
            mixers=(full if kind == "full" else conv,),
            mlps=(dense if routed is None or index < first else routed,),
            norm_elements=2 * hidden,
        )
        for index, kind in enumerate(kinds)
    )
    tied = fields.flag(fields.first("tie_word_embeddings", "tie_embedding"), True)
    return finish(
        fields, layers, tied=tied, final_norm_elements=hidden, rotary_head=head_dim(fields, full.num_heads)
    )


def _lfm2_width(fields: Watched) -> int:
    """Two thirds of what the file says, scaled and rounded up, unless told to leave it alone."""
    width = fields.whole(fields.first("block_ff_dim", "intermediate_size"), 1 << 24)
    fields.skip("intermediate_size")
    is_moe = fields.values.get("model_type") == "lfm2_moe"
    if is_moe or not fields.flag("block_auto_adjust_ff_dim", True):
        return width
    times = fields.number("block_ffn_dim_multiplier", 1.0, low=0.0)
    multiple = fields.whole("block_multiple_of", 1 << 16, 256)
    width = int(times * int(2 * width / 3))
    return multiple * -(-width // multiple)


LINEAR = {
    "qwen3_next": read_qwen_next,
    "qwen3_5_text": read_qwen_next,
    "qwen3_5_moe_text": read_qwen_next,
    "kimi_linear": read_kimi_linear,
    "minimax": read_minimax,
    "lfm2": read_lfm2,
    "lfm2_moe": read_lfm2,
}
