"""How much of a machine's limit a rate is: bytes that decoding must read, operations that a prompt must do."""

from __future__ import annotations

from octavo.arch import DTYPE_BYTES, Arch
from octavo.planner import codes, panels


def decode_read_bytes(
    arch: Arch, dtype: str, quantization: str | None = None, *, is_compiled: bool = True
) -> int:
    """Weight bytes read for one step of decoding: all of them, but of an input embedding that is not also the
    head only the rows looked up, which are left out. Quantized weights count with their scales.

    is_compiled  they lie as the compiled kernels of a processor keep them; else as ops that run one by one do
    """
    unread = 0 if arch.tie_embeddings else arch.num_embedding_parameters() * DTYPE_BYTES[dtype]
    if quantization is None:
        return arch.weight_bytes(dtype) - unread
    bytes_of = panels.weight_bytes if is_compiled else codes.weight_bytes
    return bytes_of(arch, dtype, quantization) - unread


def prompt_flop(arch: Arch, num_tokens: int) -> int:
    """Operations of matrix products that a prompt costs, a multiply-add counted as two.

    Every token passes the projections of all layers; a token at position p meets p + 1 keys, or its window's;
    only the last token passes the head.
    """
    q_size, kv_size = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    per_token = 2 * arch.hidden_size * (q_size + kv_size) + 3 * arch.hidden_size * arch.ffn_size
    projections = 2 * arch.num_layers * per_token * num_tokens
    met = sum(_keys_met(num_tokens, window) for window in arch.windows)
    return projections + 4 * q_size * met + 2 * arch.hidden_size * arch.vocab_size


def _keys_met(num_tokens: int, window: int | None) -> int:
    """Sum over positions p of the keys a token there attends to: min(p + 1, window)."""
    short = num_tokens if window is None else min(num_tokens, window)
    return short * (short + 1) // 2 + (num_tokens - short) * short
