"""The library's own product (cuBLAS). The contract is in the package, and is kept but for its promise on bits.

The library chooses its kernel, and with it the order of a sum, by the number of rows: a row's bits depend on how many
others there are. Products of 16-bit numbers are summed in float32 here, whatever the process has chosen elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from octavo.kernels.choose import Need
from octavo.kernels.triton import DTYPES


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight as `linear` wants it.

    weight  [O, I], contiguous; may be shared (tied embeddings)
    bias    [O] of its dtype, or None
    """

    weight: Tensor
    bias: Tensor | None

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


def refuses(need: Need) -> str | None:
    """On a processor the kernels that keep the promise are as fast: see docs/kernels.md."""
    if need.device != "cuda":
        return f"runs on cuda, not on {need.device}"
    if need.dtype not in DTYPES:
        return f"takes bfloat16 and float16, not {str(need.dtype).removeprefix('torch.')}"
    return None


def pack(weight: Tensor, bias: Tensor | None = None) -> Packed:
    if weight.ndim != 2 or (
        bias is not None
        and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype or bias.device != weight.device)
    ):
        raise ValueError(
            f"pack: want a weight [O, I] and a bias [O] of its dtype and device, got {list(weight.shape)}"
            f" {weight.dtype} and {None if bias is None else (list(bias.shape), bias.dtype)}"
        )
    return Packed(weight.contiguous(), None if bias is None else bias.contiguous())


def linear(x: Tensor, weight: Packed) -> Tensor:
    matrix = weight.weight
    if x.ndim != 2 or x.shape[1] != matrix.shape[1] or x.dtype != matrix.dtype or x.device != matrix.device:
        raise ValueError(
            f"linear: want x [T, {matrix.shape[1]}] {matrix.dtype} on {matrix.device},"
            f" got {list(x.shape)} {x.dtype} on {x.device}"
        )
    with _sums_in_float32():
        return functional.linear(x, matrix, weight.bias)


_NARROW_SUMS = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
_NARROW_STEPS = "allow_fp16_accumulation"


@contextmanager
def _sums_in_float32() -> Iterator[None]:
    """By default the library may add parts of a sum in the numbers' own 16 bits: torch, "Numerical accuracy", 2025."""
    settings: Any = torch.backends.cuda.matmul
    found = [(name, _found(settings, name)) for name in _NARROW_SUMS]
    found.append((_NARROW_STEPS, getattr(settings, _NARROW_STEPS)))
    for name, _ in found:
        setattr(settings, name, False)
    try:
        yield
    finally:
        for name, value in found:
            setattr(settings, name, value)


def _found(settings: Any, name: str) -> Any:
    """What sets it again as it is; where sums may be split is part of it from torch 2.10 on."""
    splits = getattr(settings, f"{name}_split_k", None)
    return getattr(settings, name) if splits is None else (getattr(settings, name), splits)
