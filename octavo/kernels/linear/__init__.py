"""Matrix products with weights."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.choose import Impl, fits_all
from octavo.kernels.linear import library, reference, reference_codes
from octavo.kernels.linear.codes import FORMATS, Codes
from octavo.kernels.linear.reference import Packed
from octavo.kernels.linear.reference_codes import PackedCodes
from octavo.kernels.triton import lazily, refuses, refuses_fp8


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


def pack_codes(codes: Codes, bias: Tensor | None, dtype: torch.dtype) -> PackedCodes:
    """Prepare a weight in codes for `linear_codes`, once, at load.

    codes  kept, not copied
    bias   [O] of `dtype`, that of the activations, or None

    Raises ValueError when shapes or dtypes do not agree.
    """
    return reference_codes.pack(codes, bias, dtype)


def linear_codes(x: Tensor, weight: PackedCodes) -> Tensor:
    """x @ weight.T + bias, where the weight is given in codes and x stays as it is.

    x  [T, I], the dtype and device of the packing; views are copied

    The weight is what the codes stand for (`Codes.numbers`), in int4 rounded to x's dtype. Returns, promises and raises
    as `linear` does.
    Budget: I + 4 float32 rounding units of sum(|x| |w|) + |bias|, plus 1 unit of the dtype of the result.
    """
    return reference_codes.linear_codes(x, weight)


_CUDA = "octavo.kernels.linear.cuda"

IMPLS: tuple[Impl, ...] = (
    Impl("linear", "library", library.linear, library.refuses, library.pack, is_batch_invariant=False),
    Impl("linear", "triton", lazily(_CUDA, "linear"), refuses, lazily(_CUDA, "pack")),
    Impl("linear", "reference", reference.linear, fits_all, reference.pack),
)


def _impls_of(format: str) -> tuple[Impl, ...]:
    op, fits = f"linear {format}", refuses_fp8 if format == "fp8" else refuses
    return (
        Impl(op, "triton", lazily(_CUDA, "linear_codes"), fits, lazily(_CUDA, "pack_codes")),
        Impl(op, "reference", reference_codes.linear_codes, fits_all, reference_codes.pack),
    )


CODES_IMPLS: tuple[Impl, ...] = tuple(impl for format in FORMATS for impl in _impls_of(format))
"""Products with codes of each format: ops "linear int8" and so on."""

__all__ = [
    "CODES_IMPLS", "FORMATS", "IMPLS", "Codes", "Packed", "PackedCodes", "linear", "linear_codes", "pack", "pack_codes",
]  # fmt: skip
