"""Rounding units and comparisons shared by the kernel tests. No code of the package."""

from __future__ import annotations

import torch
from torch import Tensor

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half the spacing of numbers at 1: the largest relative error of one rounding."""

F32 = UNIT[torch.float32]
DTYPES = (torch.float32, torch.bfloat16)


def seeded(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal byte for byte: NaN equals itself, -0 differs from +0."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
    return torch.equal(left.contiguous().view(kind), right.contiguous().view(kind))


def assert_within(got: Tensor, want: Tensor, bound: Tensor) -> None:
    """|got - want| <= bound element by element, in float64; NaN never passes."""
    excess = (got.double() - want).abs() - bound
    worst = excess.flatten().argmax()
    assert bool((excess <= 0).all()), (
        f"off by {excess.flatten()[worst]:.3g} over a bound of {bound.expand_as(excess).flatten()[worst]:.3g}"
    )
