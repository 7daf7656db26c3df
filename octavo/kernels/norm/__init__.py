"""Root-mean-square normalisation, alone and after a residual sum. Any leading shape: [T, E] or [T, H, D]."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.choose import Impl, fits_all
from octavo.kernels.norm import reference
from octavo.kernels.triton import lazily, refuses


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale every row to root mean square 1, then by `weight`.

    x       [..., E]
    weight  [E], same dtype
    eps     added to the mean square

    Returns a fresh tensor of x's shape and dtype: sums in float32, rounded to x's dtype, then multiplied by
    `weight` in that dtype (the order that Llama checkpoints were trained with).
    Raises ValueError when shapes or dtypes do not agree.
    Budget per element: 2 rounding units of x's dtype, plus (E/2 + 4) units of float32 for the sum.
    Source: Zhang and Sennrich 2019 (arXiv 1910.07467).
    """
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add `x` to the residual stream and normalise the sum.

    x, residual  [..., E], same shape and dtype; only read

    Returns (rms_norm(x + residual), x + residual); the sum is rounded to x's dtype before it is normalised.
    """
    return reference.add_rms_norm(x, residual, weight, eps)


_CUDA = "octavo.kernels.norm.cuda"

IMPLS: tuple[Impl, ...] = (
    Impl("rms_norm", "triton", lazily(_CUDA, "rms_norm"), refuses),
    Impl("add_rms_norm", "triton", lazily(_CUDA, "add_rms_norm"), refuses),
    Impl("rms_norm", "reference", reference.rms_norm, fits_all),
    Impl("add_rms_norm", "reference", reference.add_rms_norm, fits_all),
)
