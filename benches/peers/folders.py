"""A model folder in Hugging Face layout from a shape alone: random weights, and a tokenizer that works."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo import bundled

STD = 0.02
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
Config = dict[str, Any]


def write_folder(shape: Path, folder: Path, *, seed: int = 0, device: str = "cpu") -> None:
    """Write config.json, bf16 safetensors and the bundled model's tokenizer to `folder`.

    Weights are normal with standard deviation 0.02, those of norms 1; each tensor is drawn from its own
    generator, seeded by (seed, name), on `device`: another kind gives other numbers. Token ids past the
    tokenizer's have no text; the peers take token ids.
    Raises ValueError for a family that is not known here, or a vocabulary below the tokenizer's.
    """
    config = json.loads(shape.read_text())
    tensors = {name: draw(name, size, seed, device) for name, size in tensor_shapes(config)}
    folder.mkdir(parents=True, exist_ok=True)
    source = bundled.path()
    ends = json.loads((source / "config.json").read_text())
    if config["vocab_size"] < ends["vocab_size"]:
        raise ValueError(
            f"{shape.name}: a vocabulary of {config['vocab_size']} is below the tokenizer's {ends['vocab_size']}"
        )
    eos = ends["eos_token_id"]
    marks = {
        "bos_token_id": ends["bos_token_id"],
        "eos_token_id": eos[0] if isinstance(eos, list) else eos,
        "pad_token_id": ends["pad_token_id"],
    }
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, folder / name)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    _write(folder / "generation_config.json", {**marks, "do_sample": False})
    _write(folder / "config.json", {**config, **marks})


def tensor_shapes(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes of a Llama or Qwen3 checkpoint. Raises ValueError for any other family."""
    family = config["model_type"]
    if family not in ("llama", "qwen3"):
        raise ValueError(f"model_type {family!r}: folders are written for llama and qwen3")
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    q_size = config["num_attention_heads"] * head_dim
    kv_size = config["num_key_value_heads"] * head_dim
    table = (config["vocab_size"], hidden)
    yield "model.embed_tokens.weight", table
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (q_size, hidden)
        yield f"{layer}.self_attn.k_proj.weight", (kv_size, hidden)
        yield f"{layer}.self_attn.v_proj.weight", (kv_size, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, q_size)
        if family == "qwen3":
            yield f"{layer}.self_attn.q_norm.weight", (head_dim,)
            yield f"{layer}.self_attn.k_norm.weight", (head_dim,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (ffn, hidden)
        yield f"{layer}.mlp.up_proj.weight", (ffn, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", table


def draw(name: str, size: tuple[int, ...], seed: int, device: str = "cpu") -> Tensor:
    """One tensor, bf16, on the CPU."""
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(key[:8], "little") >> 1)
    return torch.empty(size, dtype=torch.bfloat16, device=device).normal_(0.0, STD, generator=generator).cpu()


def _write(path: Path, values: Config) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
