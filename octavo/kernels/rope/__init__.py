"""Rotary position embedding: angle tables, and the rotation of queries and keys."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.choose import Impl, fits_all
from octavo.kernels.rope import reference
from octavo.kernels.triton import lazily, refuses


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


IMPLS: tuple[Impl, ...] = (
    Impl("rotate", "triton", lazily("octavo.kernels.rope.cuda", "rotate"), refuses),
    Impl("tables", "reference", reference.tables, fits_all),
    Impl("rotate", "reference", reference.rotate, fits_all),
)
