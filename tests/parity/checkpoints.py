"""Tiny random checkpoints of every family, variant and rope scaling, written by transformers.

`make(variant, folder)` writes one; `VARIANTS` names them. Shapes are odd on purpose, biases and norm weights
are random too, so that leaving one out shows.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

transformers.utils.logging.disable_progress_bar()

VOCAB = 101
EOS = 2
WINDOW = 7
ORIGINAL_POSITIONS = 24

_CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
_HEADS = {"mha": 4, "gqa": 2, "mqa": 1}


@dataclass(frozen=True)
class Variant:
    """One checkpoint: family, key-value heads, tied or not, and further config fields.

    old_style  rewrite config.json as it was before transformers 5: rope_theta, rope_scaling, torch_dtype
    """

    family: str
    heads: str = "gqa"
    tied: bool = False
    more: dict[str, Any] = field(default_factory=dict)
    old_style: bool = False


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


_STRETCHED = {"original_max_position_embeddings": ORIGINAL_POSITIONS}
_LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **_STRETCHED}

VARIANTS: dict[str, Variant] = {
    "llama-mha": Variant("llama", "mha", tied=False),
    "llama-gqa": Variant("llama", "gqa", tied=True),
    "llama-mqa": Variant("llama", "mqa", tied=False),
    "mistral-mha": Variant("mistral", "mha", tied=True, more={"sliding_window": WINDOW}),
    "mistral-gqa": Variant("mistral", "gqa", tied=False, more={"sliding_window": WINDOW}),
    "mistral-mqa": Variant("mistral", "mqa", tied=True, more={"sliding_window": None}),
    "qwen2-mha": Variant("qwen2", "mha", tied=False),
    "qwen2-gqa": Variant("qwen2", "gqa", tied=True),
    "qwen2-mqa": Variant("qwen2", "mqa", tied=False),
    "qwen3-mha": Variant("qwen3", "mha", tied=True, more={"head_dim": 16}),
    "qwen3-gqa": Variant("qwen3", "gqa", tied=False, more={"head_dim": 16}),
    "qwen3-mqa": Variant("qwen3", "mqa", tied=True, more={"head_dim": 10}),
    "llama-biases": Variant("llama", more={"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": Variant("llama", more={"head_dim": 20}),
    "qwen3-biases": Variant("qwen3", more={"head_dim": 16, "attention_bias": True}),
    "qwen2-window": Variant(
        "qwen2", more={"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    ),
    "qwen3-window": Variant(
        "qwen3",
        more={
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "llama-linear": Variant("llama", more=_rope("linear", factor=3.0)),
    "llama-dynamic": Variant(
        "llama", more={**_rope("dynamic", factor=3.0), "max_position_embeddings": ORIGINAL_POSITIONS}
    ),
    "llama-yarn": Variant("llama", more=_rope("yarn", factor=4.0, **_STRETCHED)),
    "llama-yarn-smooth": Variant(
        "llama",
        more=_rope("yarn", factor=4.0, truncate=False, beta_fast=3.0, beta_slow=0.5, **_STRETCHED),
    ),
    "llama-yarn-mscale": Variant(
        "llama", more=_rope("yarn", factor=4.0, mscale=1.0, mscale_all_dim=0.6, **_STRETCHED)
    ),
    "llama-yarn-factor": Variant("llama", more=_rope("yarn", factor=4.0, attention_factor=1.3, **_STRETCHED)),
    "llama-llama3": Variant("llama", more=_rope("llama3", **_LLAMA3)),
    "llama-linear-old": Variant("llama", more=_rope("linear", factor=3.0), old_style=True),
    "llama-yarn-old": Variant("llama", more=_rope("yarn", factor=4.0, **_STRETCHED), old_style=True),
    "llama-llama3-old": Variant("llama", more=_rope("llama3", **_LLAMA3), old_style=True),
    "llama-old": Variant("llama", "mha", old_style=True),
}


def make(variant: str, folder: Path, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB") -> Path:
    """Write the checkpoint `variant` into `folder` and return it. The same name gives the same weights."""
    chosen = VARIANTS[variant]
    config_class, model_class = _CLASSES[chosen.family]
    fields: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 77,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": _HEADS[chosen.heads],
        "max_position_embeddings": 96,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": chosen.tied,
        "bos_token_id": 1,
        "eos_token_id": EOS,
    }
    model = model_class(config_class(**{**fields, **chosen.more}))
    _randomise(model, zlib.crc32(variant.encode()))
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    if chosen.old_style:
        _write_old_style(folder / "config.json")
    return folder


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights that keep a signal at its size from layer to layer, and attention that prefers some tokens."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * math.sqrt(1.5 / parameter.shape[1]))


def _write_old_style(file: Path) -> None:
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    file.write_text(json.dumps(config))


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint as transformers runs it, with its plainest attention."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )
    return model.eval()
