"""Element by element. The contract is in the package."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch

BLOCK = 1024


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    if gate.shape != up.shape or gate.dtype != up.dtype or gate.ndim != 2:
        raise ValueError(
            f"silu_mul: gate is {list(gate.shape)} {gate.dtype}, up {list(up.shape)} {up.dtype}; want equal [T, F]"
        )
    gate, up = (x if x.stride(1) == 1 else x.contiguous() for x in (gate, up))
    num_rows, width = gate.shape
    out = torch.empty(num_rows, width, dtype=gate.dtype, device=gate.device)
    if num_rows:
        grid = (num_rows, triton.cdiv(width, BLOCK))
        launch(_silu_mul, grid, gate, up, out, width, gate.stride(0), up.stride(0), BLOCK=BLOCK)
    return out


@triton.jit
def _silu_mul(gate, up, out, width, gate_stride, up_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0)
    y = tl.load(up + row * up_stride + column, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(x.dtype)
    tl.store(out + row * width + column, (silu.to(tl.float32) * y.to(tl.float32)).to(x.dtype), mask=inside)
