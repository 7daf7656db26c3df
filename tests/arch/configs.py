"""Configs as published, to be changed field by field."""

from __future__ import annotations

from typing import Any


def config(**changes: Any) -> dict[str, Any]:
    """Llama-2-7B's, with changes; a field set to `...` is left out."""
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


def qwen2(**changes: Any) -> dict[str, Any]:
    return config(**{"architectures": ["Qwen2ForCausalLM"], "rope_theta": 1e6, **changes})


def mistral(**changes: Any) -> dict[str, Any]:
    fields = {"architectures": ["MistralForCausalLM"], "rope_theta": 1e4, "sliding_window": 4096}
    return config(**{**fields, **changes})


def qwen3(**changes: Any) -> dict[str, Any]:
    fields = {"architectures": ["Qwen3ForCausalLM"], "rope_theta": 1e6, "head_dim": 128}
    return config(**{**fields, **changes})


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
