"""Families with latent attention, and those whose experts are laid out their own way."""

from __future__ import annotations

from dataclasses import replace

from octavo.arch.mixers import LatentAttention
from octavo.arch.mlps import Experts, Mlp
from octavo.arch.reading.common import (
    Routed,
    Rules,
    experts,
    feed_forward,
    finish,
    further_layers,
    grouped,
    hidden_size,
    layer_kinds,
    num_layers,
)
from octavo.arch.reading.watch import Watched
from octavo.arch.shape import Layer, Shape


def read_latent(fields: Watched) -> Shape:
    """DeepSeek-V2, V3 and V3.2, Kimi K2, GLM-4.7-Flash, GLM-5, MiniCPM3."""
    hidden = hidden_size(fields)
    attention = latent(fields)
    kind = fields.values.get("model_type")
    is_balanced = kind != "deepseek_v2"
    rules = Rules(
        mlp_bias="mlp_bias",
        routed=None
        if kind == "minicpm3"
        else Routed(
            count=("n_routed_experts",),
            router_bias=is_balanced,
            shared="n_shared_experts",
            dense="first_k_dense_replace",
        ),
    )
    mixers = indexed(fields, attention) if kind in _INDEXED else [attention] * num_layers(fields)
    layers = tuple(
        Layer(mixers=(mixer,), mlps=(feed_forward(fields, rules, index),), norm_elements=2 * hidden)
        for index, mixer in enumerate(mixers)
    )
    shape = finish(
        fields,
        layers,
        tied=kind == "minicpm3",
        final_norm_elements=hidden,
        mtp_layers=further_layers(fields, "num_nextn_predict_layers", layers, hidden),
        rotary_head=attention.rope_dim,
    )
    if "attention_bias" in fields.values and attention.has_bias and attention.q_rank is None:
        raise fields.fail("attention_bias", "false where q_lora_rank is null")
    return shape


def latent(fields: Watched) -> LatentAttention:
    fields.skip("num_key_value_heads")  # every query head has keys of its own once they are expanded
    fields.skip("head_dim")
    fields.skip("qk_head_dim")
    return LatentAttention(
        num_heads=fields.whole("num_attention_heads", 1 << 16),
        q_rank=fields.whole("q_lora_rank", 1 << 20) if fields.has("q_lora_rank") else None,
        kv_rank=fields.whole("kv_lora_rank", 1 << 20),
        nope_dim=fields.whole("qk_nope_head_dim", 1 << 14),
        rope_dim=fields.whole("qk_rope_head_dim", 1 << 14),
        value_dim=fields.whole("v_head_dim", 1 << 14),
        has_bias=fields.flag("attention_bias"),
    )


_INDEXED = ("deepseek_v32", "glm_moe_dsa")


def indexed(fields: Watched, attention: LatentAttention) -> list[LatentAttention]:
    """Layers that see the positions an indexer picks, their own or that of a layer before them."""
    count = num_layers(fields)
    layer_kinds(fields, count, {"indexed_attention": "indexed"})
    with_own = replace(
        attention,
        picks=fields.whole("index_topk", 1 << 30, 2048),
        index_heads=fields.whole("index_n_heads", 1 << 16, 32),
        index_dim=fields.whole("index_head_dim", 1 << 14, 128),
    )
    kinds = ["full"] * count
    if fields.has("indexer_types"):
        kinds = fields.listed("indexer_types", count)
    elif fields.has("index_topk_pattern") or fields.whole("index_topk_freq", 4096, 1) != 1:
        raise fields.fail("indexer_types", f"{count} entries, each full or shared")
    if any(kind not in ("full", "shared") for kind in kinds):
        raise fields.fail("indexer_types", f"{count} entries, each full or shared")
    shared = replace(with_own, index_heads=0)
    return [with_own if kind == "full" else shared for kind in kinds]


def read_llama4(fields: Watched) -> Shape:
    """Stretches of positions that see only themselves, and experts in every so many layers."""
    hidden, count = hidden_size(fields), num_layers(fields)
    plain = grouped(fields, Rules(qkv_bias="attention_bias", o_bias="attention_bias"))
    fields.flag("use_qk_norm")  # a norm without weights
    kinds = layer_kinds(fields, count, {"chunked_attention": "chunk", "full_attention": "full"})
    if kinds is None:
        kinds = ["chunk" if turned else "full" for turned in _turned(fields, count)]
    width = fields.whole("attention_chunk_size", 1 << 30) if fields.has("attention_chunk_size") else None
    wide = fields.whole("intermediate_size", 1 << 24)
    routed = Experts(
        count=fields.whole("num_local_experts", 1 << 16),
        used=fields.whole("num_experts_per_tok", 1 << 16),
        width=wide,
        shared_width=wide,
    )
    dense = Mlp(width=fields.whole("intermediate_size_mlp", 1 << 24))
    step = fields.whole("interleave_moe_layer_step", count, 1)
    with_experts = fields.listed("moe_layers") if fields.has("moe_layers") else range(step - 1, count, step)
    layers = tuple(
        Layer(
            mixers=(replace(plain, chunk=width if kind == "chunk" else None),),
            mlps=(routed if index in with_experts else dense,),
            norm_elements=2 * hidden,
        )
        for index, kind in enumerate(kinds)
    )
    return finish(fields, layers, final_norm_elements=hidden, rotary_head=plain.head_dim)


def _turned(fields: Watched, count: int) -> list[bool]:
    """Layers whose queries and keys positions turn; those see their own stretch only."""
    if fields.values.get("no_rope_layers"):
        return [bool(turned) for turned in fields.listed("no_rope_layers", count)]
    every = fields.whole("no_rope_layer_interval", 4096, 4)
    return [(index + 1) % every != 0 for index in range(count)]


def read_ernie_moe(fields: Watched) -> Shape:
    """Experts from one layer to another, every so many."""
    hidden, count = hidden_size(fields), num_layers(fields)
    attention = grouped(fields, Rules(qkv_bias="use_bias", o_bias="use_bias"))
    has_bias = fields.flag("use_bias")
    routed = experts(
        fields,
        Routed(
            count=("moe_num_experts", "num_experts"),
            used=fields.first("moe_k", "num_experts_per_tok"),
            router_bias=fields.flag("moe_use_aux_free", True),
            shared="moe_num_shared_experts",
            shared_bias=has_bias,
        ),
    )
    width = fields.whole("intermediate_size", 1 << 24)
    dense = Mlp(width=width, bias=has_bias, out_bias=has_bias)
    first = fields.whole("moe_layer_start_index", 4096, 1, low=0)
    last = fields.whole("moe_layer_end_index", 4096, -1, low=-1)
    every = fields.whole("moe_layer_interval", 4096, 1)
    last = count - 1 if last == -1 else last
    layers = tuple(
        Layer(
            mixers=(attention,),
            mlps=(routed if first <= index <= last and (index + 1) % every == 0 else dense,),
            norm_elements=2 * hidden,
        )
        for index in range(count)
    )
    return finish(
        fields,
        layers,
        tied=True,
        final_norm_elements=hidden,
        head_bias=has_bias,
        rotary_head=attention.head_dim,
    )


def read_hunyuan_moe(fields: Watched) -> Shape:
    """Numbers of experts may be lists with an entry per layer; one shared network as wide as an expert."""
    hidden, count = hidden_size(fields), num_layers(fields)
    attention = grouped(fields, Rules(qk_norm="head", qkv_bias="attention_bias", o_bias="attention_bias"))
    if fields.flag("use_cla"):
        raise fields.fail("use_cla", "false: layers that share keys and values are not counted")
    if not fields.flag("use_qk_norm", True):
        raise fields.fail("use_qk_norm", "true")
    fields.skip("attention_head_dim", "use_mixed_mlp_moe", "cla_share_factor", "norm_type")
    width = fields.whole("intermediate_size", 1 << 24)
    if fields.has("moe_intermediate_size") and set(_each(fields, "moe_intermediate_size", count)) != {width}:
        raise fields.fail("moe_intermediate_size", f"{width} in every layer, as intermediate_size says")
    shared = _each(fields, "num_shared_expert", count) if fields.has("num_shared_expert") else [1] * count
    layers = tuple(
        Layer(
            mixers=(attention,),
            mlps=(Experts(count=total, used=used, width=width, shared_width=width * several),),
            norm_elements=2 * hidden,
        )
        for total, used, several in zip(
            _each(fields, "num_experts", count), _each(fields, "moe_topk", count), shared, strict=True
        )
    )
    return finish(fields, layers, final_norm_elements=hidden, rotary_head=attention.head_dim)


def _each(fields: Watched, name: str, count: int) -> list[int]:
    """A number for each layer, from a number or a list."""
    if isinstance(fields.values.get(name), list):
        listed = fields.listed(name)
        same = len(listed) == 1 and len(set(listed)) == 1
        listed = listed * count if same else listed
        if len(listed) != count or any(not isinstance(value, int) or value < 1 for value in listed):
            raise fields.fail(name, f"a whole number, or a list of {count}")
        return listed
    return [fields.whole(name, 1 << 24)] * count


LATENT = {
    "deepseek_v2": read_latent,
    "deepseek_v3": read_latent,
    "deepseek_v32": read_latent,
    "glm_moe_dsa": read_latent,
    "kimi_k2": read_latent,
    "glm4_moe_lite": read_latent,
    "minicpm3": read_latent,
    "llama4_text": read_llama4,
    "ernie4_5_moe": read_ernie_moe,
    "hunyuan_v1_moe": read_hunyuan_moe,
}
