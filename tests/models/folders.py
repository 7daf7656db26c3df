"""A tiny model folder, whole, for tests that break it in one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.arch import Arch
from octavo.models.registry import parts_of

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 30,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def tensors(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random values for every tensor of the model."""
    generator = torch.Generator().manual_seed(1)
    weights = parts_of(Arch.from_config(config)).weights()
    return {weight.name: torch.randn(weight.shape, generator=generator).to(dtype) for weight in weights}


def write_config(folder: Path, **changes: Any) -> dict[str, Any]:
    config = {**CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return config


def write_model(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, Tensor]:
    """config.json and model.safetensors; returns the tensors."""
    held = tensors(write_config(folder, **changes), dtype)
    save_file(held, folder / "model.safetensors")
    return held


def write_shards(folder: Path, held: dict[str, Tensor], num_shards: int = 3) -> dict[str, str]:
    """The tensors dealt out over several files, and the index; returns its weight map."""
    names = sorted(held)
    weight_map: dict[str, str] = {}
    for i in range(num_shards):
        shard = f"model-{i + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {name: held[name] for name in names[i::num_shards]}
        save_file(part, folder / shard)
        weight_map.update(dict.fromkeys(part, shard))
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: Any) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def write_raw(file: Path, header: Any, body: bytes = b"", header_bytes: int | None = None) -> None:
    """A safetensors file byte by byte."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if header_bytes is None else header_bytes
    file.write_bytes(length.to_bytes(8, "little") + text + body)
