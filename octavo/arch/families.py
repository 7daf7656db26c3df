"""What sets the families of decoders apart, as far as `config.json` itself does not say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.arch.fields import Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Rules for reading one family's config.

    windows          "none": full attention only; "all": `sliding_window` holds for every layer;
                     "by_layer": `use_sliding_window`, then `layer_types` or `max_window_layers`
    always_qkv_bias  q, k and v have biases, whatever the config says
    bias_fields      fields that switch biases on: "attention_bias" (q, k, v and o), "mlp_bias"
    qk_norm          q and k are normalised per head before they are turned
    may_miss         fields that may be absent: older configs of the family never had them
    """

    name: str
    architectures: tuple[str, ...]
    windows: str
    always_qkv_bias: bool = False
    bias_fields: tuple[str, ...] = ()
    qk_norm: bool = False
    may_miss: tuple[str, ...] = ("head_dim",)


FAMILIES = (
    Family(
        name="llama",
        architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
        windows="none",
        bias_fields=("attention_bias", "mlp_bias"),
        may_miss=("head_dim", "num_key_value_heads", "rope_theta"),
    ),
    Family(name="mistral", architectures=("MistralForCausalLM",), windows="all"),
    Family(name="qwen2", architectures=("Qwen2ForCausalLM",), windows="by_layer", always_qkv_bias=True),
    Family(
        name="qwen3",
        architectures=("Qwen3ForCausalLM",),
        windows="by_layer",
        bias_fields=("attention_bias",),
        qk_norm=True,
        may_miss=(),
    ),
)

# Fields of other designs that change the computation, with the values under which they change nothing.
_REFUSED: dict[str, tuple[object, ...]] = {
    "num_local_experts": (0, 1),
    "num_experts": (0, 1),
    "n_routed_experts": (0,),
    "num_experts_per_tok": (0,),
    "kv_lora_rank": (0,),
    "partial_rotary_factor": (1,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "attention_chunk_size": (),
    "no_rope_layers": ([],),
    "use_qk_norm": (False,),
    "alibi": (False,),
    "clip_qkv": (),
    "logit_scale": (1,),
    "quantization_config": ({},),
}


def find_family(fields: Fields) -> Family:
    """By `architectures`; a config without it goes by `model_type`."""
    by_architecture = {name: family for family in FAMILIES for name in family.architectures}
    if fields.has("architectures") or not fields.has("model_type"):
        listed = fields.values.get("architectures")
        if not (isinstance(listed, list) and len(listed) == 1 and str(listed[0]) in by_architecture):
            raise fields.fail(
                "architectures", "one of " + ", ".join(f'["{name}"]' for name in by_architecture)
            )
        return by_architecture[listed[0]]
    by_type = {family.name: family for family in FAMILIES}
    kind = fields.values["model_type"]
    if not isinstance(kind, str) or kind not in by_type:
        raise fields.fail("model_type", "one of " + ", ".join(f'"{name}"' for name in by_type))
    return by_type[kind]


def refuse_unsupported(fields: Fields, family: Family) -> None:
    """Raise LoadError for a field that changes the computation in a way this family does not follow."""
    for name, inert in _REFUSED.items():
        if fields.has(name) and fields.values[name] not in inert:
            raise fields.fail(name, f"nothing: {family.name} models with it are not supported")
    if fields.values.get("hidden_act") not in ("silu", "swish"):
        raise fields.fail("hidden_act", '"silu"')
    if family.always_qkv_bias:
        if not fields.flag("attention_bias", True):
            raise fields.fail(
                "attention_bias", f"true: q, k and v of {family.name} models always have biases"
            )
    elif "attention_bias" not in family.bias_fields and fields.flag("attention_bias"):
        raise fields.fail("attention_bias", f"false: {family.name} models have no such bias")
    if "mlp_bias" not in family.bias_fields and fields.flag("mlp_bias"):
        raise fields.fail("mlp_bias", f"false: {family.name} models have no such bias")


def num_kv_heads(fields: Fields, family: Family, num_heads: int) -> int:
    """Null, and a missing field where the family may miss it, mean one key-value head per query head."""
    given = "num_key_value_heads" in fields.values
    if not fields.has("num_key_value_heads") and (given or "num_key_value_heads" in family.may_miss):
        return num_heads
    count = fields.whole("num_key_value_heads", num_heads)
    if num_heads % count:
        raise fields.fail("num_key_value_heads", f"a divisor of num_attention_heads, which is {num_heads}")
    return count


def head_dim(fields: Fields, family: Family, hidden_size: int, num_heads: int) -> int:
    """As given; else hidden_size over heads. Even, because rotary positions turn pairs of dimensions."""
    if fields.has("head_dim") or "head_dim" not in family.may_miss:
        width = fields.whole("head_dim", 1 << 14)
        if width % 2:
            raise fields.fail("head_dim", "an even number, because positions turn pairs of dimensions")
        return width
    width, rest = divmod(hidden_size, num_heads)
    if rest or width % 2 or not width:
        raise fields.fail("hidden_size", f"an even multiple of num_attention_heads, which is {num_heads}")
    return width


def windows(fields: Fields, family: Family, num_layers: int) -> tuple[int | None, ...]:
    """Window per layer; None everywhere unless the family slides and the config switches it on."""
    width: int | None = None
    if family.windows == "all":
        if "sliding_window" not in fields.values:
            raise fields.fail("sliding_window", "a number of tokens, or null for full attention")
        width = fields.whole("sliding_window", 1 << 30) if fields.has("sliding_window") else None
    elif family.windows == "by_layer":
        width = fields.whole("sliding_window", 1 << 30) if fields.flag("use_sliding_window") else None
    elif fields.has("sliding_window"):
        raise fields.fail("sliding_window", f"null: {family.name} models attend to everything")
    slides = _sliding_layers(fields, family, num_layers, width is not None)
    return tuple(width if sliding else None for sliding in slides)


def _sliding_layers(fields: Fields, family: Family, num_layers: int, has_window: bool) -> Sequence[bool]:
    names = {"full_attention": False, "sliding_attention": True}
    listed = fields.values.get("layer_types")
    if listed is None:
        if not has_window or family.windows == "all":
            return [has_window] * num_layers
        first = fields.whole("max_window_layers", 1 << 30, low=0)
        return [layer >= first for layer in range(num_layers)]
    if (
        not isinstance(listed, list)
        or len(listed) != num_layers
        or any(str(kind) not in names for kind in listed)
    ):
        raise fields.fail("layer_types", f"{num_layers} entries, each one of {', '.join(names)}")
    slides = [names[kind] for kind in listed]
    if any(slides) and not has_window:
        raise fields.fail("layer_types", "full_attention everywhere: no sliding window is switched on")
    if family.windows == "all" and has_window and not all(slides):
        raise fields.fail(
            "layer_types", f"sliding_attention everywhere: {family.name} has one window for all"
        )
    return slides
