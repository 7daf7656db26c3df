"""A model in numbers: layers, heads, windows and positions, read from a Hugging Face `config.json`.

Nothing here touches a tensor. `Arch` is what the planner counts with, what the loader checks a checkpoint
against, and what the model code builds from. A field that would change the computation is honoured or
refused by name; none is dropped in silence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo.arch.families import (
    FAMILIES,
    Family,
    find_family,
    head_dim,
    num_kv_heads,
    refuse_unsupported,
    windows,
)
from octavo.arch.fields import Fields, read_json
from octavo.arch.mixers import Attention
from octavo.arch.mlps import Mlp
from octavo.arch.rope import ROPE_KINDS, Rope, parse_rope
from octavo.arch.shape import Layer, Shape

__all__ = ["DTYPE_BYTES", "FAMILIES", "ROPE_KINDS", "Arch", "Family", "Rope", "Shape"]

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LLAMA_THETA = 10000.0  # what the first Llama configs, which do not name it, were trained with


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """One decoder-only transformer.

    max_positions   longest sequence the positions are made for, stretching included
    windows         per layer: a row at position p sees positions above p - window; None sees all
    dtype           what the config says the weights are stored as, or None
    end_token_ids   from config.json, and from generation_config.json where one lies beside it
    notes           what the folder asks for and will not get, for people to read
    """

    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    tie_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    rope: Rope
    dtype: str | None = None
    end_token_ids: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str = "config.json") -> Arch:
        """Read the fields of a `config.json`, old or new style. `source` names it in errors.

        Raises LoadError that names the field, its value and what is supported.
        """
        fields = Fields(config, source)
        family = find_family(fields)
        refuse_unsupported(fields, family)
        num_layers = fields.whole("num_hidden_layers", 4096)
        hidden_size = fields.whole("hidden_size", 1 << 20)
        num_heads = fields.whole("num_attention_heads", 1 << 16)
        vocab_size = fields.whole("vocab_size", 1 << 28)
        rope = parse_rope(fields, LLAMA_THETA if "rope_theta" in family.may_miss else None)
        attention_bias = "attention_bias" in family.bias_fields and fields.flag("attention_bias")
        return cls(
            family=family.name,
            num_layers=num_layers,
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads(fields, family, num_heads),
            head_dim=head_dim(fields, family, hidden_size, num_heads),
            ffn_size=fields.whole("intermediate_size", 1 << 24),
            vocab_size=vocab_size,
            max_positions=rope.max_positions(fields.whole("max_position_embeddings", 1 << 30)),
            norm_eps=fields.number("rms_norm_eps", low=0.0, is_open=True),
            tie_embeddings=fields.flag("tie_word_embeddings"),
            qkv_bias=attention_bias or family.always_qkv_bias,
            o_bias=attention_bias,
            mlp_bias="mlp_bias" in family.bias_fields and fields.flag("mlp_bias"),
            qk_norm=family.qk_norm,
            windows=windows(fields, family, num_layers),
            rope=rope,
            dtype=_dtype(fields),
            end_token_ids=_end_token_ids(fields, vocab_size),
            notes=_notes(fields),
        )

    @classmethod
    def from_file(cls, path: str | Path) -> Arch:
        """Read a config file, or the `config.json` of a folder.

        End tokens of a `generation_config.json` beside it are added: chat models list theirs there.
        """
        file = Path(path)
        file = file / "config.json" if file.is_dir() else file
        fields = read_json(file)
        arch = cls.from_config(fields.values, fields.source)
        beside = file.with_name("generation_config.json")
        if file.name == "config.json" and beside.is_file():
            more = _end_token_ids(read_json(beside), arch.vocab_size)
            arch = replace(arch, end_token_ids=arch.end_token_ids | more)
        return arch

    @property
    def window_tokens(self) -> int | None:
        """The widest window when every layer has one, so that older blocks can be freed; else None."""
        widths = [width for width in self.windows if width is not None]
        return max(widths) if len(widths) == self.num_layers else None

    @property
    def shape(self) -> Shape:
        """The same model as everything that is counted sees it."""
        return _shape(self)

    def num_layer_parameters(self) -> int:
        """Weights of one layer: attention, MLP and their norms."""
        return self.shape.num_layer_parameters()

    def num_embedding_parameters(self) -> int:
        """Weights of the input embedding; an untied output head has as many again."""
        return self.shape.embedding.num_elements()

    def num_parameters(self) -> int:
        """All weights, exactly; tied embeddings are counted once."""
        return self.shape.num_parameters()

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of all weights stored as `dtype`, a key of DTYPE_BYTES."""
        return self.num_parameters() * DTYPE_BYTES[dtype]

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of one token's keys and values over all layers, stored densely as `dtype`."""
        return self.shape.kv_elements_per_token() * DTYPE_BYTES[dtype]

    def digest(self) -> bytes:
        """SHA-256 of the fields that change keys and values: not limits, end tokens or notes."""
        fields = asdict(self)
        for name in ("max_positions", "dtype", "end_token_ids", "notes"):
            del fields[name]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).digest()


@lru_cache(maxsize=64)
def _shape(arch: Arch) -> Shape:
    """All layers but for their windows are alike in the families that run."""
    qkv_bias = arch.qkv_bias
    mixers = [
        Attention(
            num_heads=arch.num_heads,
            num_kv_heads=arch.num_kv_heads,
            head_dim=arch.head_dim,
            window=window,
            q_bias=qkv_bias,
            kv_bias=qkv_bias,
            o_bias=arch.o_bias,
            norm_elements=2 * arch.head_dim * arch.qk_norm,
        )
        for window in arch.windows
    ]
    mlp = Mlp(width=arch.ffn_size, bias=arch.mlp_bias, out_bias=arch.mlp_bias)
    return Shape(
        family=arch.family,
        hidden_size=arch.hidden_size,
        vocab_size=arch.vocab_size,
        layers=tuple(
            Layer(mixers=(mixer,), mlps=(mlp,), norm_elements=2 * arch.hidden_size) for mixer in mixers
        ),
        tie_embeddings=arch.tie_embeddings,
        max_positions=arch.max_positions,
        final_norm_elements=arch.hidden_size,
        rotary_size=arch.head_dim,
        dtype=arch.dtype,
    )


def _dtype(fields: Fields) -> str | None:
    """`dtype` (new) or `torch_dtype` (old)."""
    name = "dtype" if fields.has("dtype") else "torch_dtype"
    if not fields.has(name):
        return None
    value = str(fields.values[name]).removeprefix("torch.")
    if value not in DTYPE_BYTES:
        raise fields.fail(name, "one of " + ", ".join(DTYPE_BYTES))
    return value


def _end_token_ids(fields: Fields, vocab_size: int) -> frozenset[int]:
    value = fields.values.get("eos_token_id")
    listed = [] if value is None else value if isinstance(value, list) else [value]
    for token in listed:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise fields.fail("eos_token_id", f"token ids from 0 to {vocab_size - 1}, or null")
    return frozenset(listed)


def _notes(fields: Fields) -> tuple[str, ...]:
    if fields.has("auto_map"):
        return (f"{fields.source}: auto_map names code in the model folder; no such code is ever executed",)
    return ()
