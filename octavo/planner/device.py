"""Bytes that steps need on a device whose kernels are Triton's, beside weights and KV: an upper bound."""

from __future__ import annotations

from octavo.arch import Arch
from octavo.planner.memory import PROMPT_ROWS

GRAPH_SEQS = 512
"""Sequences of the largest recorded step."""
GRAPH_POSITIONS = 1 << 20
"""Positions of all its sequences together."""

ATTENTION_PART = 256
"""Positions whose weighted values are kept apart; see `octavo.kernels.attention.cuda`."""
PARTIAL_BYTES = 128 * 4 * 2 * 264 * 64
"""Of a product of few rows, whose inputs are cut into segments: float32, and twice the outputs of 264 programs."""
DRAW_BYTES = 256 << 20
"""Of rows that are drawn from together; see `octavo.decode.batched`."""
LIBRARY_BYTES = 256 << 20
"""Set aside for compiled kernels, recorded graphs, cuBLAS's own work space and what the allocator rounds up. Not
measured."""


def device_workspace_bytes(
    arch: Arch,
    element: int,
    *,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    max_model_len: int,
) -> int:
    """Peak bytes of a step carried out op by op, of recorded steps and their arrays, and of libraries.

    element  bytes of one activation
    """
    positions = max_num_seqs * max_model_len
    drawn = min(max_num_seqs, max_num_batched_tokens)
    eager = _layers(arch, element, max_num_batched_tokens, drawn, positions)
    head = max_num_batched_tokens * arch.hidden_size * element + _head(arch, element, drawn)
    scored = min(PROMPT_ROWS, max_num_batched_tokens) * arch.vocab_size * (element + 4)
    return max(eager, head + scored + DRAW_BYTES) + graph_bytes(
        arch, element, max_num_seqs=max_num_seqs, max_model_len=max_model_len
    ) + LIBRARY_BYTES  # fmt: skip


def graph_bytes(arch: Arch, element: int, *, max_num_seqs: int, max_model_len: int) -> int:
    """What recorded steps keep: arrays of block ids twice, logits, and the memory of the largest."""
    seqs = min(max_num_seqs, GRAPH_SEQS)
    positions = min(max_num_seqs * max_model_len, GRAPH_POSITIONS)
    arrays = seqs * (2 * 4 * max_model_len + 64) + 1024  # blocks of one token at worst
    recorded = max(_layers(arch, element, seqs, seqs, positions), _head(arch, element, seqs))
    return arrays + seqs * arch.vocab_size * 4 + recorded


def _layers(arch: Arch, element: int, num_rows: int, num_alone: int, num_positions: int) -> int:
    """At the widest point of a layer; `num_alone` sequences with one row keep parts of their attention apart."""
    q_size, kv_size = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    parts = num_positions // ATTENTION_PART + num_alone
    apart = parts * arch.num_heads * (arch.head_dim + 2) * 4
    attention = num_rows * ((3 * arch.hidden_size + 3 * q_size + 2 * kv_size) * element + 8 * arch.head_dim)
    mlp = num_rows * (3 * arch.hidden_size + 3 * arch.ffn_size) * element
    return max(attention + apart, mlp) + PARTIAL_BYTES


def _head(arch: Arch, element: int, num_rows: int) -> int:
    """Logits as the product gives them, and in float32."""
    return num_rows * arch.vocab_size * (element + 4) + PARTIAL_BYTES
