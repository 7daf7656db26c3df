"""Llama 1 to 3.x, the form that the other families are told apart from.

Pre-normalised layers, rotary positions in two halves, grouped key-value heads, gated SiLU. Biases on all of
q, k, v and o, and on the MLP, where the config says so.
"""

from __future__ import annotations

from octavo.arch import Arch
from octavo.models.parts import DecoderParts, LayerParts, Projection, Weight


def parts(arch: Arch) -> DecoderParts:
    """Tensor names and shapes of a Llama checkpoint."""
    table = (arch.vocab_size, arch.hidden_size)
    return DecoderParts(
        embedding=Weight("model.embed_tokens.weight", table),
        layers=tuple(layer_parts(arch, f"model.layers.{i}") for i in range(arch.num_layers)),
        final_norm=Weight("model.norm.weight", (arch.hidden_size,)),
        head=None if arch.tie_embeddings else Weight("lm_head.weight", table),
    )


def layer_parts(arch: Arch, prefix: str) -> LayerParts:
    """One layer, its tensor names starting with `prefix`."""
    hidden, ffn = arch.hidden_size, arch.ffn_size
    q_size, kv_size = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim

    def attention(name: str, out_size: int, in_size: int, has_bias: bool) -> Projection:
        return Projection.of(f"{prefix}.self_attn.{name}", out_size, in_size, has_bias=has_bias)

    def mlp(name: str, out_size: int, in_size: int) -> Projection:
        return Projection.of(f"{prefix}.mlp.{name}", out_size, in_size, has_bias=arch.mlp_bias)

    return LayerParts(
        attention_norm=Weight(f"{prefix}.input_layernorm.weight", (hidden,)),
        q=attention("q_proj", q_size, hidden, arch.qkv_bias),
        k=attention("k_proj", kv_size, hidden, arch.qkv_bias),
        v=attention("v_proj", kv_size, hidden, arch.qkv_bias),
        o=attention("o_proj", hidden, q_size, arch.o_bias),
        mlp_norm=Weight(f"{prefix}.post_attention_layernorm.weight", (hidden,)),
        gate=mlp("gate_proj", ffn, hidden),
        up=mlp("up_proj", ffn, hidden),
        down=mlp("down_proj", hidden, ffn),
    )
