"""Products with codes by library products with the numbers they stand for. The contract is in the package."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.linear import reference
from octavo.kernels.linear.codes import Codes

BLOCK_ITEMS = 1 << 20
"""Weights that are made numbers at a time."""


@dataclass(frozen=True, slots=True)
class PackedCodes:
    """A weight in codes as `linear_codes` wants it.

    dtype  of the activations
    bias   [O] of it, or None
    """

    codes: Codes
    bias: Tensor | None
    dtype: torch.dtype

    @property
    def out_features(self) -> int:
        return self.codes.num_out

    @property
    def in_features(self) -> int:
        return self.codes.num_in

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + (0 if self.bias is None else self.bias.nbytes)


def pack(codes: Codes, bias: Tensor | None, dtype: torch.dtype) -> PackedCodes:
    check_bias(codes, bias, dtype)
    return PackedCodes(codes, None if bias is None else bias.contiguous(), dtype)


def linear_codes(x: Tensor, weight: PackedCodes) -> Tensor:
    check_rows(x, weight.codes, weight.dtype)
    out = x.new_empty(len(x), weight.out_features)
    wide = x.to(torch.float32)
    step = max(1, BLOCK_ITEMS // max(weight.in_features, 1))
    for first in range(0, weight.out_features, step):
        last = min(first + step, weight.out_features)
        numbers = weight.codes.numbers(first, last)
        if weight.codes.format == "int4":
            numbers = numbers.to(weight.dtype).to(torch.float32)
        bias = None if weight.bias is None else weight.bias[first:last].to(torch.float32)
        out[:, first:last] = reference.linear(wide, reference.Packed(numbers.contiguous(), bias))
    return out


def check_bias(codes: Codes, bias: Tensor | None, dtype: torch.dtype) -> None:
    if bias is not None and (bias.shape != (codes.num_out,) or bias.dtype != dtype):
        raise ValueError(
            f"pack_codes: want a bias [{codes.num_out}] of {dtype}, got {list(bias.shape)} {bias.dtype}"
        )


def check_rows(x: Tensor, codes: Codes, dtype: torch.dtype) -> None:
    device = codes.codes.device
    if x.ndim != 2 or x.shape[1] != codes.num_in or x.dtype != dtype or x.device != device:
        raise ValueError(
            f"linear_codes: want x [T, {codes.num_in}] {dtype} on {device},"
            f" got {list(x.shape)} {x.dtype} on {x.device}"
        )
