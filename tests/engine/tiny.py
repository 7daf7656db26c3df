"""Tiny checkpoints with random weights, written file by file, and engines on them.

The weights are drawn wide (0.3 and more) so that the logits of neighbouring positions differ and greedy text
does not settle on one token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers

from octavo import LLM

VOCAB = 300
"""256 bytes, 40 pairs of them, and four special tokens."""
END, BOS, USER, ASSISTANT = 296, 297, 298, 299

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "eos_token_id": END,
    "bos_token_id": BOS,
    "torch_dtype": "float32",
}

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a Llama checkpoint."""
    hidden, ffn, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q_size, kv_size = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        found |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.self_attn.q_proj.weight": (q_size, hidden),
            f"{layer}.self_attn.k_proj.weight": (kv_size, hidden),
            f"{layer}.self_attn.v_proj.weight": (kv_size, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, q_size),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.mlp.gate_proj.weight": (ffn, hidden),
            f"{layer}.mlp.up_proj.weight": (ffn, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, ffn),
        }
    found["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], hidden)
    return found


def weights(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, config["torch_dtype"])
    found = {}
    for name, shape in shapes(config).items():
        if len(shape) == 1:
            tensor = 1 + 0.1 * torch.randn(shape, generator=generator)
        else:
            tensor = torch.randn(shape, generator=generator) * (1.0 if "embed" in name else 0.3)
        found[name] = tensor.to(dtype)
    return found


def tokenizer() -> tokenizers.Tokenizer:
    """All bytes, the pairs of lower-case letters with "e", and four special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: index for index, char in enumerate(alphabet)}
    merges = []
    for char in "abcdfghijklmnopqrstuvwxyzABCDFGHIJKLMNO":
        merges.append((char, "e"))
        vocab[f"{char}e"] = len(vocab)
    merges.append(("e", "e"))
    vocab["ee"] = len(vocab)
    assert len(vocab) == END
    made = tokenizers.Tokenizer(models.BPE(vocab, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>", "<begin>", "<user>", "<assistant>"])
    return made


def write_checkpoint(folder: Path, *, seed: int = 0, with_tokenizer: bool = True, **changes: Any) -> Path:
    """Write a model folder in Hugging Face layout and return it."""
    config = CONFIG | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    if with_tokenizer:
        tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"eos_token": "<end>", "bos_token": "<begin>", "chat_template": TEMPLATE})
        )
    return folder


SMALL: dict[str, Any] = {
    "block_size": 8,
    "num_kv_blocks": 129,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "num_threads": 1,
}
"""Settings of a small engine on one thread, so that chunks, evictions and queues happen."""


def engine(folder: Path | str, **settings: Any) -> LLM:
    """A small engine; `settings` go over those of SMALL."""
    return LLM(folder, **(SMALL | settings))
