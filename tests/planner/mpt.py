"""MPT models as MosaicML's llm-foundry trained them on many devices."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.arch import Shape

SIZES = {  # MosaicML llm-foundry, scripts/train/yamls/pretrain/mpt-*.yaml: (layers, width, heads)
    "125m": (12, 768, 12), "350m": (24, 1024, 16), "760m": (24, 1536, 12), "1b": (24, 2048, 16), "3b": (32, 2560, 20),
    "7b": (32, 4096, 32), "13b": (40, 5120, 40), "30b": (48, 7168, 56), "70b": (80, 8192, 64),
}  # fmt: skip


def shape_of(row: Mapping[str, str]) -> Shape:
    """Of a line of the published table, with biases and with learned positions as long as the sequences."""
    layers, width, heads = SIZES[row["model"]]
    config = {
        "model_type": "mpt", "d_model": width, "n_heads": heads, "n_layers": layers,
        "max_seq_len": int(row["seq_len"]), "vocab_size": 50368, "no_bias": False, "attn_config": {"alibi": False},
    }  # fmt: skip
    return Shape.from_config(config)
