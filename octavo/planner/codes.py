"""Bytes of weights that are rounded at load where ops run one by one: codes and scales.

The kernels stand alone, so the sizes of a group and of its scales stand here a second time; a test holds both together
(`octavo.kernels.linear.codes`).
"""

from __future__ import annotations

from octavo.arch import DTYPE_BYTES, Arch

CODES = {"w8a16": "int8", "w4a16": "int4", "fp8": "fp8"}
"""Quantizations that leave activations as they are, and the codes of the layers' weights."""
HEAD_CODES = "int8"
"""Of the head in all of them, and of an embedding that is the same."""

GROUP, GROUP_SCALE_BYTES, SCALE_BYTES = 64, 4, 4

REFERENCE_BYTES = 32 << 20
"""What the reference of such a product takes beside its rows: weights that have been made numbers again."""


def codes_bytes(num_out: int, num_in: int, format: str) -> int:
    """One weight [num_out, num_in] without its bias."""
    if format == "int4":
        return num_out * -(-num_in // GROUP) * (GROUP // 2 + GROUP_SCALE_BYTES)
    return num_out * (num_in + SCALE_BYTES)


def weight_bytes(arch: Arch, dtype: str, quantization: str) -> int:
    """All weights: layers in the codes of the quantization, the head in int8, the rest in `dtype`."""
    format, item, hidden = CODES[quantization], DTYPE_BYTES[dtype], arch.hidden_size
    q_size, qkv_size = (
        arch.num_heads * arch.head_dim,
        (arch.num_heads + 2 * arch.num_kv_heads) * arch.head_dim,
    )
    shapes = ((qkv_size, hidden), (hidden, q_size), (2 * arch.ffn_size, hidden), (hidden, arch.ffn_size))
    has_bias = (arch.qkv_bias, arch.o_bias, arch.mlp_bias, arch.mlp_bias)
    layer = sum(codes_bytes(*shape, format) for shape in shapes)
    biases = sum(num_out for (num_out, _), has in zip(shapes, has_bias, strict=True) if has)
    layer += (biases + 2 * hidden + 2 * arch.head_dim * arch.qk_norm) * item
    tables = codes_bytes(arch.vocab_size, hidden, HEAD_CODES)
    if not arch.tie_embeddings:
        tables += arch.vocab_size * hidden * item
    return arch.num_layers * layer + tables + hidden * item


def reference_bytes(arch: Arch, num_rows: int) -> int:
    """At most, beside what plain products take: rows and what comes of them in float32, and REFERENCE_BYTES."""
    q_size = arch.num_heads * arch.head_dim
    widest = max(arch.hidden_size, q_size, arch.ffn_size)
    return 8 * num_rows * widest + REFERENCE_BYTES
