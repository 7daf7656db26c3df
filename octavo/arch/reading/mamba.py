"""Families whose layers, or some of them, are state spaces."""

from __future__ import annotations

import math
from collections.abc import Callable

from octavo.arch.mlps import Experts, Mlp
from octavo.arch.reading.common import (
    STATE_KINDS,
    Routed,
    Rules,
    assemble,
    experts,
    feed_forward,
    finish,
    grouped,
    hidden_size,
    layer_kinds,
    num_layers,
)
from octavo.arch.reading.watch import Watched
from octavo.arch.shape import Layer, Mixer, Shape
from octavo.arch.states import Mamba, Mamba2


def read_mamba(fields: Watched) -> Shape:
    """Mamba and Falcon Mamba, which adds norms without weights: nothing but states, no network of its own."""
    hidden = hidden_size(fields)
    fields.skip("d_model", "d_inner", "n_layer", "ssm_cfg", "pad_vocab_size_multiple", "rms_norm")
    inner = fields.whole("intermediate_size", 1 << 24, fields.whole("expand", 64, 2) * hidden)
    layer = Layer(mixers=(_mamba(fields, hidden, inner, "", 0),), mlps=(), norm_elements=hidden)
    return finish(fields, (layer,) * num_layers(fields), tied=True, final_norm_elements=hidden)


def _mamba(fields: Watched, hidden: int, inner: int, prefix: str, norms: int) -> Mamba:
    names = {
        "": ("state_size", "time_step_rank", "conv_kernel", "use_conv_bias", "use_bias"),
        "mamba_": ("mamba_d_state", "mamba_dt_rank", "mamba_d_conv", "mamba_conv_bias", "mamba_proj_bias"),
    }[prefix]
    state = fields.whole(names[0], 1 << 14, 16)
    spelled = fields.values.get(names[1], "auto")
    rank = math.ceil(hidden / 16) if spelled == "auto" else fields.whole(names[1], 1 << 20)
    return Mamba(
        inner=inner,
        state=state,
        rank=rank,
        kernel=fields.whole(names[2], 64, 4),
        conv_bias=fields.flag(names[3], True),
        bias=fields.flag(names[4]),
        norm_elements=norms and rank + 2 * state,
    )


def read_mamba2(fields: Watched) -> Shape:
    hidden = hidden_size(fields)
    heads = fields.whole("num_heads", 1 << 16)
    fields.skip("time_step_rank")
    expand = fields.number("expand", 2.0, low=0.0)
    mixer = Mamba2(
        num_heads=heads,
        head_dim=fields.whole("head_dim", 1 << 14),
        state=fields.whole("state_size", 1 << 14),
        groups=fields.whole("n_groups", heads),
        kernel=fields.whole("conv_kernel", 64, 4),
        conv_bias=fields.flag("use_conv_bias", True),
        bias=fields.flag("use_bias"),
    )
    if mixer.inner != int(expand * hidden):
        raise fields.fail(
            "head_dim", f"{expand:g} x hidden_size / num_heads, which is {expand * hidden / heads:g}"
        )
    layer = Layer(mixers=(mixer,), mlps=(), norm_elements=hidden)
    return finish(fields, (layer,) * num_layers(fields), final_norm_elements=hidden)


def _mamba2(fields: Watched, inner: int, *, has_norm: bool = True) -> Mamba2:
    """As Bamba, Falcon H1 and Granite 4 spell it."""
    heads = fields.whole("mamba_n_heads", 1 << 16)
    width = inner // heads
    if fields.values.get("mamba_d_head", "auto") != "auto":
        width = fields.whole("mamba_d_head", 1 << 14)
    if width * heads != inner:
        raise fields.fail("mamba_d_head", f"{inner} / mamba_n_heads, which is {inner / heads:g}")
    bias = fields.flag("mamba_proj_bias")
    if "projectors_bias" in fields.values and fields.flag("projectors_bias") != bias:
        raise fields.fail("projectors_bias", "the same as mamba_proj_bias")
    return Mamba2(
        num_heads=heads,
        head_dim=width,
        state=fields.whole("mamba_d_state", 1 << 14),
        groups=fields.whole("mamba_n_groups", heads, 1),
        kernel=fields.whole("mamba_d_conv", 64, 4),
        conv_bias=fields.flag("mamba_conv_bias", True),
        bias=bias,
        has_norm=has_norm,
    )


_BIASED = Rules(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias")


def read_bamba(fields: Watched) -> Shape:
    hidden = hidden_size(fields)
    full = grouped(fields, _BIASED)
    state = _mamba2(fields, fields.whole("mamba_expand", 64, 2) * hidden)
    places = fields.listed("attn_layer_indices") if fields.has("attn_layer_indices") else []
    mixers = [full if index in places else state for index in range(num_layers(fields))]
    return assemble(fields, mixers, _BIASED, rotary_head=full.head_dim)


def read_falcon_h1(fields: Watched) -> Shape:
    """Attention and a state side by side in every layer."""
    hidden = hidden_size(fields)
    full = grouped(fields, _BIASED)
    wide = fields.whole("mamba_expand", 64, 2) * hidden
    inner = fields.whole("mamba_d_ssm", 1 << 24) if fields.has("mamba_d_ssm") else wide
    fields.skip("mamba_use_mlp")
    state = _mamba2(fields, inner, has_norm=fields.flag("mamba_rms_norm"))
    layer = Layer(mixers=(full, state), mlps=(feed_forward(fields, _BIASED, 0),), norm_elements=2 * hidden)
    return finish(
        fields, (layer,) * num_layers(fields), final_norm_elements=hidden, rotary_head=full.head_dim
    )


def read_granite_hybrid(fields: Watched) -> Shape:
    hidden, count = hidden_size(fields), num_layers(fields)
    full = grouped(fields, Rules(qkv_bias="attention_bias", o_bias="attention_bias"))
    kinds = layer_kinds(fields, count, STATE_KINDS) or ["state"] * count
    state = _mamba2(fields, fields.whole("mamba_expand", 64, 2) * hidden) if "state" in kinds else None
    fields.skip("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv")
    fields.skip("mamba_conv_bias", "mamba_proj_bias", "mamba_expand")
    network: Mlp | Experts = Mlp(width=fields.whole("shared_intermediate_size", 1 << 24))
    if fields.whole("num_local_experts", 1 << 16, low=0):
        network = experts(
            fields,
            Routed(
                count=("num_local_experts",),
                width="intermediate_size",
                shared_width="shared_intermediate_size",
            ),
        )
    fields.skip("intermediate_size")
    fields.skip("num_experts_per_tok")
    layers = tuple(
        Layer(
            mixers=(full if kind == "full" or state is None else state,),
            mlps=(network,),
            norm_elements=2 * hidden,
        )
        for kind in kinds
    )
    return finish(fields, layers, final_norm_elements=hidden, rotary_head=full.head_dim)


def read_jamba(fields: Watched) -> Shape:
    hidden = hidden_size(fields)
    full = grouped(fields, Rules())
    state = _mamba(fields, hidden, fields.whole("mamba_expand", 64, 2) * hidden, "mamba_", 1)
    total = fields.whole("num_experts", 1 << 16, 16)
    width = fields.whole("intermediate_size", 1 << 24)
    routed = Experts(count=total, used=fields.whole("num_experts_per_tok", total), width=width)
    attends = _every(fields, "attn_layer")
    has_experts = _every(fields, "expert_layer")
    layers = tuple(
        Layer(
            mixers=(full if attends(index) else state,),
            mlps=(routed if total > 1 and has_experts(index) else Mlp(width=width),),
            norm_elements=2 * hidden,
        )
        for index in range(num_layers(fields))
    )
    return finish(fields, layers, final_norm_elements=hidden)


def _every(fields: Watched, name: str) -> Callable[[int], bool]:
    period, offset = fields.whole(f"{name}_period", 4096), fields.whole(f"{name}_offset", 4096, low=0)
    return lambda index: index % period == offset


_NEMOTRON = {"M": "state", "*": "full", "-": "mlp", "E": "experts"}
_NEMOTRON_TYPES = {
    **dict.fromkeys(("mamba", "linear_attention"), "state"),
    **dict.fromkeys(("attention", "full_attention"), "full"),
    "mlp": "mlp",
    "moe": "experts",
}


def read_nemotron_h(fields: Watched) -> Shape:
    """A pattern of single parts, each with a norm: states, attention, networks, experts."""
    hidden = hidden_size(fields)
    kinds = _nemotron_kinds(fields)
    if fields.has("moe_latent_size"):
        raise fields.fail("moe_latent_size", "null: experts on a narrower state are not counted")
    full = grouped(fields, Rules())
    heads = fields.whole("mamba_num_heads", 1 << 16)
    bias = fields.flag("use_bias")
    state = Mamba2(
        num_heads=heads,
        head_dim=fields.whole("mamba_head_dim", 1 << 14),
        state=fields.whole("ssm_state_size", 1 << 14),
        groups=fields.whole("n_groups", heads),
        kernel=fields.whole("conv_kernel", 64, 4),
        conv_bias=fields.flag("use_conv_bias", True),
        bias=bias,
    )
    fields.skip("expand")
    if fields.flag("mamba_proj_bias") != bias:
        raise fields.fail("mamba_proj_bias", "the same as use_bias")
    plain = fields.flag("mlp_bias")
    network = Mlp(width=fields.whole("intermediate_size", 1 << 24), gated=False, bias=plain, out_bias=plain)
    routed = _nemotron_experts(fields) if "experts" in kinds else None
    if routed is None:
        fields.skip("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
        fields.skip("n_shared_experts", "moe_shared_expert_intermediate_size")
    mixers: dict[str, Mixer] = {"state": state, "full": full}
    layers = tuple(
        Layer(
            mixers=(mixers[kind],) if kind in mixers else (),
            mlps=() if kind in mixers else (routed if kind == "experts" and routed else network,),
            norm_elements=hidden,
        )
        for kind in kinds
    )
    if fields.whole("num_nextn_predict_layers", 64, 0, low=0):
        raise fields.fail("num_nextn_predict_layers", "0: their layout is not known here")
    fields.skip("mtp_layers_block_type")
    return finish(fields, layers, final_norm_elements=hidden)


def _nemotron_kinds(fields: Watched) -> list[str]:
    if fields.has("hybrid_override_pattern"):
        pattern = str(fields.values["hybrid_override_pattern"])
        if not set(pattern) <= set(_NEMOTRON):
            raise fields.fail("hybrid_override_pattern", "letters M, *, - and E")
        fields.whole("num_hidden_layers", len(pattern), len(pattern), low=len(pattern))
        fields.skip("layers_block_type")
        return [_NEMOTRON[letter] for letter in pattern]
    listed = fields.listed(fields.first("layers_block_type", "layer_types"))
    if any(kind not in _NEMOTRON_TYPES for kind in listed):
        raise fields.fail("layers_block_type", "entries among " + ", ".join(_NEMOTRON_TYPES))
    fields.skip("num_hidden_layers")
    return [_NEMOTRON_TYPES[kind] for kind in listed]


def _nemotron_experts(fields: Watched) -> Experts:
    total = fields.whole("n_routed_experts", 1 << 16)
    several = fields.whole("n_shared_experts", 64, 1)
    if several != 1:
        raise fields.fail("n_shared_experts", "1")
    return Experts(
        count=total,
        used=fields.whole("num_experts_per_tok", total),
        width=fields.whole("moe_intermediate_size", 1 << 24),
        gated=False,
        router_bias=total,
        shared_width=fields.whole("moe_shared_expert_intermediate_size", 1 << 24),
    )


STATE_SPACE = {
    "mamba": read_mamba,
    "falcon_mamba": read_mamba,
    "mamba2": read_mamba2,
    "bamba": read_bamba,
    "falcon_h1": read_falcon_h1,
    "granitemoehybrid": read_granite_hybrid,
    "jamba": read_jamba,
    "nemotron_h": read_nemotron_h,
}
