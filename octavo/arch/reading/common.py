"""Decoders whose layers are attention and a feed-forward network or experts: one set of rules for each family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from octavo.arch.mixers import Attention
from octavo.arch.mlps import Experts, Mlp
from octavo.arch.reading.watch import Watched
from octavo.arch.shape import Layer, Mixer, Shape
from octavo.arch.tensors import Matrix

Switch = bool | str
"""What the family always does, or the field that says so; "field=true" is on where the field is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """How a family spells its experts.

    count        fields of their number, the first of them that is there
    width        field of one expert's width
    bias         experts have biases
    router_bias  the router has one per route
    shared       field that counts experts every token passes, each as wide as the others
    shared_width field of their width together, instead of `shared`
    shared_gate  their output is gated
    dense        field that counts dense layers before the first with experts
    """

    count: tuple[str, ...]
    used: str = "num_experts_per_tok"
    width: str = "moe_intermediate_size"
    bias: bool = False
    router_bias: bool = False
    shared: str = ""
    shared_width: str = ""
    shared_bias: Switch = False
    shared_gate: bool = False
    dense: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How one family's config is read where families differ.

    norms         norms of the hidden width per layer
    norm_width    weights of a norm per element: 1 a scale, 2 a scale and an offset, 0 none at all
    qk_norm       "", "head" (one for all query heads, one for all key heads), "row" (a scale for every element)
    qk_switch     the norms above are there when
    windows       what holds without `layer_types`: "none"; "all"; "late" from layer `max_window_layers` on;
                  "switched", which is late where `use_sliding_window` says so; or the number of layers from one
                  that sees everything to the next, the last of each being that one
    every         field of that number
    tied          what a config without `tie_word_embeddings` means
    """

    norms: int = 2
    norm_width: int = 1
    qk_norm: str = ""
    qk_switch: Switch = True
    qkv_bias: Switch = False
    o_bias: Switch = False
    mlp_bias: Switch = False
    head_bias: Switch = False
    gated: bool = True
    mlp_extra: int = 0
    sinks: bool = False
    windows: str | int = "none"
    every: str = "sliding_window_pattern"
    tied: bool = False
    routed: Routed | None = None
    mtp: str = ""


def on(fields: Watched, switch: Switch) -> bool:
    if isinstance(switch, bool):
        return switch
    name, _, default = switch.partition("=")
    return fields.flag(name, default == "true")


def read_plain(fields: Watched, rules: Rules) -> Shape:
    """A decoder of `rules`. Raises LoadError."""
    hidden = hidden_size(fields)
    attentions = grouped_layers(fields, rules)
    mlps = [feed_forward(fields, rules, index) for index in range(len(attentions))]
    norms = rules.norms * rules.norm_width * hidden
    layers = tuple(
        Layer(mixers=(mixer,), mlps=(mlp,), norm_elements=norms)
        for mixer, mlp in zip(attentions, mlps, strict=True)
    )
    return finish(
        fields,
        layers,
        tied=rules.tied,
        final_norm_elements=rules.norm_width * hidden,
        head_bias=on(fields, rules.head_bias),
        mtp_layers=further_layers(fields, rules.mtp, layers, hidden),
        rotary_head=attentions[0].head_dim,
    )


def hidden_size(fields: Watched) -> int:
    return fields.whole("hidden_size", 1 << 20)


def num_layers(fields: Watched, name: str = "num_hidden_layers") -> int:
    return fields.whole(name, 4096)


def grouped_layers(fields: Watched, rules: Rules) -> list[Attention]:
    """The attention of each layer."""
    attention = grouped(fields, rules)
    return [replace(attention, window=width) for width in layer_windows(fields, rules, num_layers(fields))]


def grouped(fields: Watched, rules: Rules) -> Attention:
    heads = fields.whole("num_attention_heads", 1 << 16)
    kv_heads = fields.whole("num_key_value_heads", heads, heads)
    if heads % kv_heads:
        raise fields.fail("num_key_value_heads", f"a divisor of num_attention_heads, which is {heads}")
    width = head_dim(fields, heads)
    norm = {"": 0, "head": 2 * width, "row": (heads + kv_heads) * width}[rules.qk_norm]
    offset = rules.norm_width == 2 and rules.qk_norm == "head"
    return Attention(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width,
        q_bias=on(fields, rules.qkv_bias),
        kv_bias=on(fields, rules.qkv_bias),
        o_bias=on(fields, rules.o_bias),
        norm_elements=norm * (1 + offset) * on(fields, rules.qk_switch),
        has_sinks=rules.sinks,
    )


def head_dim(fields: Watched, heads: int, name: str = "head_dim") -> int:
    """As given, else hidden_size over heads."""
    if fields.has(name):
        return fields.whole(name, 1 << 14)
    width, rest = divmod(hidden_size(fields), heads)
    if rest or not width:
        raise fields.fail(
            "hidden_size", f"a multiple of num_attention_heads, which is {heads}, or {name} beside it"
        )
    return width


def layer_kinds(fields: Watched, count: int, known: Mapping[str, str]) -> list[str] | None:
    """`layer_types` with each entry's meaning, or None when the file has no such list."""
    if not fields.has("layer_types"):
        return None
    listed = fields.listed("layer_types", count)
    if any(str(kind) not in known for kind in listed):
        raise fields.fail("layer_types", f"{count} entries, each one of {', '.join(known)}")
    return [known[kind] for kind in listed]


ATTENTION_KINDS = {"full_attention": "full", "sliding_attention": "window", "attention": "full"}


STATE_KINDS = {
    **dict.fromkeys(("full_attention", "attention", "hybrid"), "full"),
    **dict.fromkeys(("linear_attention", "mamba", "conv", "recurrent"), "state"),
}


def layer_windows(fields: Watched, rules: Rules, count: int) -> list[int | None]:
    """Window of each layer, None for all that see everything."""
    if rules.windows == "none":
        layer_kinds(fields, count, {"full_attention": "full"})
        return [None] * count
    switched = fields.flag("use_sliding_window", rules.windows != "switched")
    width = (
        fields.whole("sliding_window", 1 << 30) if switched and fields.values.get("sliding_window") else None
    )
    first = fields.whole("max_window_layers", 1 << 30, 0, low=0)
    every = _every(fields, rules)
    kinds = layer_kinds(fields, count, ATTENTION_KINDS)
    if kinds is None:
        kinds = [_kind(rules, index, first, every) for index in range(count)]
    return [width if kind == "window" else None for kind in kinds]


def _every(fields: Watched, rules: Rules) -> int:
    """Layers from one that sees everything to the next; 0 where no such number counts."""
    if not isinstance(rules.windows, int):
        return 0
    name = fields.first(rules.every, "_" + rules.every)
    spelled = fields.values.get(name)
    if isinstance(spelled, str):
        if set(spelled[:-1]) != {"L"} or spelled[-1] != "G":
            raise fields.fail(name, 'a number, or letters such as "LLLG"')
        return len(spelled)
    return fields.whole(name, 4096, rules.windows)


def _kind(rules: Rules, index: int, first: int, every: int) -> str:
    if rules.windows == "all":
        return "window"
    if rules.windows in ("late", "switched"):
        return "window" if index >= first else "full"
    return "full" if (index + 1) % every == 0 else "window"


def feed_forward(fields: Watched, rules: Rules, index: int) -> Mlp | Experts:
    """What follows the attention of layer `index`."""
    bias = on(fields, rules.mlp_bias)
    routed = rules.routed
    if routed is not None and _has_experts(fields, routed, index):
        return experts(fields, routed, rules.gated)
    return Mlp(
        width=fields.whole("intermediate_size", 1 << 24),
        gated=rules.gated,
        bias=bias,
        out_bias=bias,
        extra_elements=rules.mlp_extra,
    )


def _has_experts(fields: Watched, routed: Routed, index: int) -> bool:
    """By `mlp_layer_types`, or by the first so many, a stride and a list of exceptions."""
    if stated(fields, fields.first(*routed.count)) == 0:
        return False
    kinds = fields.values.get("mlp_layer_types")
    if kinds is not None:
        return str(fields.listed("mlp_layer_types", num_layers(fields))[index]) == "sparse"
    if routed.dense and index < stated(fields, routed.dense):
        return False
    fields.whole("moe_layer_freq", 1, 1)
    without = fields.listed("mlp_only_layers") if fields.has("mlp_only_layers") else []
    return (index + 1) % fields.whole("decoder_sparse_step", 4096, 1) == 0 and index not in without


def experts(fields: Watched, routed: Routed, gated: bool = True) -> Experts:
    count = fields.whole(fields.first(*routed.count), 1 << 16)
    width = fields.whole(routed.width, 1 << 24)
    shared = fields.whole(routed.shared_width, 1 << 24, 0, low=0) if routed.shared_width else 0
    if routed.shared:
        shared = width * stated(fields, routed.shared)
    fields.skip("intermediate_size")  # of dense layers, of which there may be none
    return Experts(
        count=count,
        used=fields.whole(routed.used, count),
        width=width,
        gated=gated,
        bias=routed.bias,
        router_bias=count * routed.router_bias,
        shared_width=shared,
        shared_bias=on(fields, routed.shared_bias),
        shared_gate=routed.shared_gate,
    )


def stated(fields: Watched, name: str) -> int:
    """A number that may be null, which means none, but not missing: families differ in what that would mean."""
    if name not in fields.values:
        raise fields.fail(name, "a whole number, or null for none")
    return fields.whole(name, 1 << 16, 0, low=0)


def further_layers(fields: Watched, name: str, layers: tuple[Layer, ...], hidden: int) -> tuple[Layer, ...]:
    """Layers that predict a further token, each like the last one, after a projection of the hidden state beside the
    next embedding (DeepSeek-AI 2024, arXiv 2412.19437, section 2.2)."""
    count = fields.whole(name, 64, 0, low=0) if name else 0
    join = Matrix(name="mtp join", part="mtp", inputs=2 * hidden, outputs=hidden)
    last = layers[-1]
    layer = Layer(
        mixers=last.mixers, mlps=last.mlps, norm_elements=last.norm_elements + 3 * hidden, others=(join,)
    )
    return (layer,) * count


def finish(
    fields: Watched,
    layers: tuple[Layer, ...],
    *,
    final_norm_elements: int,
    tied: bool = False,
    rotary_head: int = 0,
    max_positions: str = "max_position_embeddings",
    mtp_layers: tuple[Layer, ...] = (),
    mtp_repeats: bool = True,
    **others: Any,
) -> Shape:
    """A Shape with what every config says the same way.

    mtp_repeats  the checkpoint holds embedding and head again for each further-token layer
    """
    return Shape(
        family=str(fields.values.get("model_type")),
        hidden_size=others.pop("hidden", None) or hidden_size(fields),
        vocab_size=fields.whole("vocab_size", 1 << 28),
        layers=layers,
        tie_embeddings=fields.flag("tie_word_embeddings", tied),
        max_positions=fields.whole(max_positions, 1 << 30, 0),
        final_norm_elements=final_norm_elements,
        rotary_size=rotary_size(fields, rotary_head),
        mtp_layers=mtp_layers,
        mtp_copies=len(mtp_layers) * mtp_repeats,
        **others,
    )


def rotary_size(fields: Watched, width: int) -> int:
    """Elements of a head that positions turn: all, or the part that one of several fields names."""
    part = 1.0
    for place in (fields, fields.inner("rope_parameters"), fields.inner("rope_scaling")):
        if place is None:
            continue
        for name in ("partial_rotary_factor", "rotary_pct", "rotary_emb_fraction"):
            if isinstance(place.values.get(name), int | float):
                part = place.number(name, low=0.0)
    if fields.has("rotary_dim"):
        return min(width, fields.whole("rotary_dim", 1 << 14))
    return int(width * part)


def assemble(
    fields: Watched, mixers: Sequence[Mixer], rules: Rules, *, rotary_head: int, mtp: str = ""
) -> Shape:
    """Layers of one mixer and one network each, as `rules` say."""
    hidden = hidden_size(fields)
    layers = tuple(
        Layer(mixers=(mixer,), mlps=(feed_forward(fields, rules, index),), norm_elements=2 * hidden)
        for index, mixer in enumerate(mixers)
    )
    return finish(
        fields,
        layers,
        final_norm_elements=hidden,
        rotary_head=rotary_head,
        mtp_layers=further_layers(fields, mtp, layers, hidden),
        mtp_repeats=False,
    )
