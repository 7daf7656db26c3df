"""The gated activation of the feed-forward layer."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.activation import reference
from octavo.kernels.choose import Impl, fits_all
from octavo.kernels.triton import lazily, refuses


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, element by element.

    gate, up  [T, F], same shape and dtype; views with gaps between rows are fine

    Returns a fresh [T, F]: silu in float32, rounded to the dtype, then multiplied in it.
    Raises ValueError when shapes or dtypes differ.
    Budget per element: 2 rounding units of the dtype, plus 6 of float32.
    Source: Shazeer 2020 (arXiv 2002.05202), SwiGLU.
    """
    return reference.silu_mul(gate, up)


IMPLS: tuple[Impl, ...] = (
    Impl("silu_mul", "triton", lazily("octavo.kernels.activation.cuda", "silu_mul"), refuses),
    Impl("silu_mul", "reference", reference.silu_mul, fits_all),
)
