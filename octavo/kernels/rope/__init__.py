"""Rotary position embedding: angle tables, the rotation of queries and keys, and what comes before and after it."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.choose import Impl, fits_all
from octavo.kernels.kv_store.fp8 import Fp8Blocks
from octavo.kernels.rope import reference
from octavo.kernels.triton import lazily, refuses_fp8_heads, refuses_heads


def tables(inv_freq: Tensor, positions: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles.

    inv_freq   [D/2] float32, radians per position, already scaled for long contexts
    positions  [T] integers, on inv_freq's device
    scale      multiplies both tables (YaRN's attention temperature), 1 otherwise

    Returns (cos, sin), each [T, D/2] float32. The angle is the float32 product of position and frequency.
    """
    return reference.tables(inv_freq, positions, scale)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate pairs (i, i + D/2) of every head by the row's angles.

    q         [T, H, D]
    k         [T, K, D], q's dtype; views with gaps between rows are fine
    cos, sin  [T, D/2] float32, from `tables`

    Returns fresh (q, k) of the same shapes and dtype, computed in float32 and rounded once.
    Raises ValueError when shapes or dtypes do not agree or D is odd.
    Budget: 1 rounding unit of the dtype plus 3 of float32, of the pair's length.
    Source: Su et al. 2021 (arXiv 2104.09864), half-split form as Llama checkpoints store it.
    """
    return reference.rotate(q, k, cos, sin)


def rotate_and_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    blocks: Tensor | Fp8Blocks,
    slots: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """From projected heads to what attention reads: norms where there are weights, rotation, keys and values stored.

    q               [T, H, D]
    k, v            [T, K, D], q's dtype; views with gaps between rows are fine (one product makes all three)
    cos, sin        [T, D/2] float32, from `tables`
    blocks          [B, 2, P, K, D] of that dtype, contiguous: keys at 0, values at 1; written in place. Or Fp8Blocks:
                    what would have been stored is rounded to them
    slots           [T] int64, distinct but in block 0, which nobody reads; every other slot keeps its bits
    q_norm, k_norm  [D] weights of each head's `rms_norm`, both or neither

    Returns fresh queries [T, H, D]. What is stored and returned is `rms_norm`, then `rotate`, then `write_kv`, each
    rounded as its own contract says; a row's bits depend on nothing but that row.
    Raises ValueError when shapes or dtypes do not agree, IndexError (on the CPU) for a slot outside the pool.
    """
    return reference.rotate_and_write(q, k, v, cos, sin, blocks, slots, q_norm, k_norm, eps)


IMPLS: tuple[Impl, ...] = (
    Impl(
        "rotate_and_write",
        "triton",
        lazily("octavo.kernels.rope.cuda", "rotate_and_write"),
        refuses_heads,
    ),
    Impl("tables", "reference", reference.tables, fits_all),
    Impl("rotate_and_write", "reference", reference.rotate_and_write, fits_all),
)

FP8_IMPLS: tuple[Impl, ...] = (
    Impl(
        "rotate_and_write fp8",
        "triton",
        lazily("octavo.kernels.rope.cuda", "rotate_and_write"),
        refuses_fp8_heads,
    ),
    Impl("rotate_and_write fp8", "reference", reference.rotate_and_write, fits_all),
)
"""With keys and values in e4m3."""
