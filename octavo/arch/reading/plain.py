"""Families whose layers are grouped attention and a network or experts. Source of each row: its model in the
transformers library, with which the tests compare every total."""

from __future__ import annotations

from octavo.arch.reading.common import Routed, Rules

_LLAMA = Rules(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias")
_MIXTRAL = Routed(count=("num_local_experts",), width="intermediate_size")
_QWEN_MOE = Routed(count=("num_experts", "num_local_experts"))
_BALANCED = Routed(
    count=("n_routed_experts", "num_experts"),
    router_bias=True,
    shared="n_shared_experts",
    dense="first_k_dense_replace",
)
_GRANITE_MOE = Rules(qkv_bias="attention_bias", o_bias="attention_bias", routed=_MIXTRAL)

PLAIN = {
    "llama": _LLAMA,
    "mistral": Rules(windows="all"),
    "ministral": Rules(windows="all"),
    "ministral3": Rules(windows="all"),
    "mixtral": Rules(windows="all", routed=_MIXTRAL),
    "qwen2": Rules(qkv_bias="attention_bias=true", windows="switched"),
    "qwen2_moe": Rules(
        qkv_bias="qkv_bias=true",
        windows="switched",
        routed=Routed(
            count=("num_experts", "num_local_experts"),
            shared_width="shared_expert_intermediate_size",
            shared_gate=True,
        ),
    ),
    "qwen3": Rules(qkv_bias="attention_bias", o_bias="attention_bias", qk_norm="head", windows="switched"),
    "qwen3_moe": Rules(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm="head",
        windows="switched",
        routed=_QWEN_MOE,
    ),
    "gemma": Rules(qkv_bias="attention_bias", o_bias="attention_bias", tied=True),
    "gemma2": Rules(norms=4, qkv_bias="attention_bias", o_bias="attention_bias", windows=2, tied=True),
    "gemma3_text": Rules(
        norms=4,
        qk_norm="head",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        windows=6,
        tied=True,
    ),
    "phi": Rules(
        norms=1,
        norm_width=2,
        qk_norm="head",
        qk_switch="qk_layernorm",
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        head_bias=True,
        gated=False,
    ),
    "phi3": Rules(windows="all"),
    "phimoe": Rules(
        norm_width=2,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        head_bias="lm_head_bias",
        windows="all",
        routed=_MIXTRAL,
    ),
    "gpt_neox": Rules(
        norm_width=2, qkv_bias="attention_bias=true", o_bias="attention_bias=true", mlp_bias=True, gated=False
    ),
    "starcoder2": Rules(
        norm_width=2,
        qkv_bias="use_bias=true",
        o_bias="use_bias=true",
        mlp_bias="use_bias=true",
        gated=False,
        windows="all",
        tied=True,
    ),
    "cohere": Rules(
        norms=1,
        qk_norm="row",
        qk_switch="use_qk_norm",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        tied=True,
    ),
    "cohere2": Rules(norms=1, qkv_bias="attention_bias", o_bias="attention_bias", windows=4, tied=True),
    "olmo": Rules(norm_width=0, qkv_bias="attention_bias", o_bias="attention_bias"),
    "olmo2": Rules(qk_norm="row", qkv_bias="attention_bias", o_bias="attention_bias"),
    "olmo3": Rules(qk_norm="row", qkv_bias="attention_bias", o_bias="attention_bias", windows=4),
    "olmoe": Rules(
        qk_norm="row",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        routed=Routed(count=("num_experts", "num_local_experts"), width="intermediate_size"),
    ),
    "granite": _LLAMA,
    "granitemoe": _GRANITE_MOE,
    "granitemoeshared": Rules(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        routed=Routed(
            count=("num_local_experts",), width="intermediate_size", shared_width="shared_intermediate_size"
        ),
    ),
    "glm": Rules(qkv_bias="attention_bias=true"),
    "glm4": Rules(norms=4, qkv_bias="attention_bias=true"),
    "glm4_moe": Rules(
        qkv_bias="attention_bias",
        qk_norm="head",
        qk_switch="use_qk_norm",
        routed=_BALANCED,
        mtp="num_nextn_predict_layers",
    ),
    "gpt_oss": Rules(
        qkv_bias="attention_bias=true",
        o_bias="attention_bias=true",
        sinks=True,
        windows=2,
        routed=Routed(count=("num_local_experts",), width="intermediate_size", bias=True, router_bias=True),
    ),
    "smollm3": Rules(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        windows="switched",
        tied=True,
    ),
    "exaone4": Rules(qk_norm="head", windows=4),
    "exaone_moe": Rules(
        qk_norm="head",
        windows=4,
        routed=Routed(
            count=("num_experts", "num_local_experts"),
            router_bias=True,
            shared="num_shared_experts",
            dense="first_k_dense_replace",
        ),
    ),
    "nemotron": Rules(
        norm_width=2,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        gated=False,
    ),
    "ernie4_5": Rules(qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", tied=True),
    "hunyuan_v1_dense": Rules(qk_norm="head", qkv_bias="attention_bias", o_bias="attention_bias"),
    "seed_oss": Rules(qkv_bias="attention_bias=true", o_bias="attention_out_bias", mlp_bias="mlp_bias"),
    "apertus": Rules(
        qk_norm="head", qkv_bias="attention_bias", o_bias="attention_bias", gated=False, mlp_extra=2
    ),
    "arcee": Rules(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias", gated=False),
    "helium": Rules(qkv_bias="attention_bias", mlp_bias="mlp_bias"),
    "internlm3": Rules(qkv_bias="qkv_bias", o_bias="bias", mlp_bias="bias"),
    "minimax_m2": Rules(
        qk_norm="row",
        routed=Routed(count=("num_local_experts",), width="intermediate_size", router_bias=True),
    ),
    "dots1": Rules(
        qk_norm="head",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        windows="late",
        routed=_BALANCED,
    ),
}

DEFAULTS: dict[str, dict[str, object]] = {
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256},
    "gemma3_text": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "max_position_embeddings": 131072,
    },
    "ernie4_5": {"head_dim": 128},
    "ernie4_5_moe": {"moe_num_shared_experts": 2},
    "glm": {"head_dim": 128},
    "glm4": {"head_dim": 128},
    "helium": {"head_dim": 128},
    "internlm3": {"head_dim": 128},
    "ministral3": {"head_dim": 128},
    "qwen3": {"head_dim": 128},
    "seed_oss": {"head_dim": 128},
    "gpt_oss": {"head_dim": 64, "sliding_window": 128},
}
"""What fields mean that published configs of a family leave out, as transformers fills them in."""
