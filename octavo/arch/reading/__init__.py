"""From a `config.json` to a `Shape`: which rules a family goes by, and what lies around its text model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.arch.reading.common import read_plain
from octavo.arch.reading.latent import LATENT
from octavo.arch.reading.linear import LINEAR
from octavo.arch.reading.mamba import STATE_SPACE
from octavo.arch.reading.older import OLDER
from octavo.arch.reading.plain import DEFAULTS, PLAIN
from octavo.arch.reading.stored import read_dtype, read_stored
from octavo.arch.reading.vision import read_vision
from octavo.arch.reading.watch import Watched
from octavo.arch.shape import Shape

_SPECIAL = {**OLDER, **LATENT, **LINEAR, **STATE_SPACE}

_ALIASES = {
    "kimi_k25": "kimi_k2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
    "glm4v_moe_text": "glm4_moe",
}
"""Text models inside models of text and images that go by another name there."""

_BY_ARCHITECTURE = {
    "LLaMAForCausalLM": "llama",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""For configs without a `model_type`."""


def families() -> tuple[str, ...]:
    """Every `model_type` of a text model that can be read."""
    return tuple(sorted({*PLAIN, *_SPECIAL}))


def read(config: Mapping[str, Any], source: str) -> Shape:
    """A Shape of any known family. Raises LoadError."""
    outer = Watched(config, source)
    text = outer.inner("text_config") or outer
    kind = _kind(text)
    values = {**DEFAULTS.get(kind, {}), **text.values, "model_type": kind}
    if text is not outer and outer.has("tie_word_embeddings"):
        values.setdefault("tie_word_embeddings", outer.values["tie_word_embeddings"])
    fields = Watched(values, source, text.prefix)
    shape = read_plain(fields, PLAIN[kind]) if kind in PLAIN else _SPECIAL[kind](fields)
    fields.refuse_unread(kind)
    vision, notes = read_vision(outer)
    return replace(
        shape,
        vision=vision,
        notes=notes,
        dtype=read_dtype(text) or read_dtype(outer),
        stored=read_stored(outer) or read_stored(text),
    )


def _kind(fields: Watched) -> str:
    """The family, by `model_type`, or by `architectures` where that is missing."""
    if not fields.has("model_type") and fields.has("architectures"):
        listed = fields.listed("architectures")
        if len(listed) == 1 and listed[0] in _BY_ARCHITECTURE:
            return _BY_ARCHITECTURE[listed[0]]
    kind = fields.values.get("model_type")
    kind = _ALIASES.get(kind, kind) if isinstance(kind, str) else kind
    if kind not in PLAIN and kind not in _SPECIAL:
        raise fields.fail("model_type", "one of " + ", ".join(families()))
    return str(kind)
