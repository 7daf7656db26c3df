"""Plain torch. The contract is in the package."""

from __future__ import annotations

import torch
from torch import Tensor


def check(op: str, x: Tensor, weight: Tensor) -> None:
    """Raises ValueError unless `weight` is [E] for rows of width E, in x's dtype."""
    if x.ndim < 1 or weight.ndim != 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"{op}: want x [..., E] and weight [E], got {list(x.shape)} and {list(weight.shape)}"
        )
    if x.dtype != weight.dtype:
        raise ValueError(f"{op}: x is {x.dtype}, weight is {weight.dtype}")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    check("rms_norm", x, weight)
    wide = x.contiguous().to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    check("add_rms_norm", x, weight)
    if x.shape != residual.shape or x.dtype != residual.dtype:
        raise ValueError(
            f"add_rms_norm: x is {list(x.shape)} {x.dtype}, residual is {list(residual.shape)} {residual.dtype}"
        )
    total = x + residual
    return rms_norm(total, weight, eps), total
