"""One program per row. The contract is in the package."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch

NARROW = 1024
"""Rows up to this width go several to a program: heads are many and short."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    _check(x, weight)
    rows, out = _flat(x), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(rows, None, weight, out, None, eps)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    _check(x, weight)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"add_rms_norm: x is {list(x.shape)} {x.dtype}, residual {list(residual.shape)} {residual.dtype}"
        )
    out, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    _launch(_flat(x), _flat(residual), weight, out, total, eps)
    return out, total


def _check(x: Tensor, weight: Tensor) -> None:
    if weight.shape != x.shape[-1:] or weight.dtype != x.dtype:
        raise ValueError(
            f"rms_norm: x is {list(x.shape)} {x.dtype}, weight {list(weight.shape)} {weight.dtype}"
        )


def _flat(x: Tensor) -> Tensor:
    """[rows, E]; a copy only where two strides cannot say where the rows are."""
    return x.reshape(-1, x.shape[-1])


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, out: Tensor, total: Tensor | None, eps: float
) -> None:
    num_rows, width = x.shape
    if not num_rows:
        return
    if x.stride(1) != 1:
        x = x.contiguous()
    if residual is not None and residual.stride(1) != 1:
        residual = residual.contiguous()
    block = max(16, triton.next_power_of_2(width))
    launch(
        _norm,
        (num_rows,),
        x,
        residual,
        weight,
        out,
        total,
        width,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        eps,
        BLOCK=block,
        ADDS=residual is not None,
        num_warps=1 if block <= NARROW // 4 else 4 if block <= 2 * NARROW else 8,
    )


@triton.jit
def _norm(
    x,
    residual,
    weight,
    out,
    total,
    width,
    x_stride,
    residual_stride,
    eps,
    BLOCK: tl.constexpr,
    ADDS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0)
    if ADDS:
        more = tl.load(residual + row * residual_stride + column, mask=inside, other=0.0)
        values = (values.to(tl.float32) + more.to(tl.float32)).to(values.dtype)
        tl.store(total + row * width + column, values, mask=inside)
    wide = values.to(tl.float32)
    square = tl.sum(wide * wide, axis=0) / width
    normed = (wide * (1.0 / tl.sqrt(square + eps))).to(values.dtype)
    scales = tl.load(weight + column, mask=inside, other=0.0)
    scaled = (normed.to(tl.float32) * scales.to(tl.float32)).to(values.dtype)
    tl.store(out + row * width + column, scaled, mask=inside)
