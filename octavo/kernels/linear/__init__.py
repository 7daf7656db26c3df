"""Matrix products with weights."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.choose import Impl, fits_all
from octavo.kernels.linear import reference
from octavo.kernels.linear.reference import Packed
from octavo.kernels.triton import lazily, refuses


def pack(weight: Tensor, bias: Tensor | None = None) -> Packed:
    """Prepare a weight for `linear`, once, at load.

    weight  [O, I]; kept as it is when contiguous and 64-byte aligned, else copied (then drop your own)
    bias    [O] of the same dtype, or None

    Runs a short trial of the machine's matrix product at this shape (see `octavo.kernels.tiles`); the finding
    is in `Packed.note`. Raises ValueError when shapes, dtypes or devices do not agree.
    """
    return reference.pack(weight, bias)


def linear(x: Tensor, weight: Packed) -> Tensor:
    """x @ weight.T + bias.

    x  [T, I], the weight's dtype and device; views are copied

    Returns a fresh, contiguous [T, O] in x's dtype; products are summed in float32 or wider. A row's bits depend
    on nothing but that row, the weight and the number of threads.
    Raises ValueError when the shape, dtype or device is not the weight's.
    Budget: I + 2 float32 rounding units of sum(|x| |w|) + |bias|, plus 1 unit of the dtype of the result (2 with
    a bias).
    """
    return reference.linear(x, weight)


_CUDA = "octavo.kernels.linear.cuda"

IMPLS: tuple[Impl, ...] = (
    Impl("linear", "triton", lazily(_CUDA, "linear"), refuses, lazily(_CUDA, "pack")),
    Impl("linear", "reference", reference.linear, fits_all, reference.pack),
)

__all__ = ["IMPLS", "Packed", "linear", "pack"]
