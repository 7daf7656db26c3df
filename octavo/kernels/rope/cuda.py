"""One program per row and head. The contract is in the package."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    num_rows, num_heads, head_dim = q.shape
    if k.shape[::2] != q.shape[::2] or k.dtype != q.dtype or head_dim % 2:
        raise ValueError(
            f"rotate: q is {list(q.shape)} {q.dtype}, k {list(k.shape)} {k.dtype}; want equal rows and even widths"
        )
    if cos.shape != (num_rows, head_dim // 2) or sin.shape != cos.shape or cos.dtype != torch.float32:
        raise ValueError(
            f"rotate: want float32 cos and sin {[num_rows, head_dim // 2]}, got {list(cos.shape)} {cos.dtype}"
        )
    q, k = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k))
    cos, sin = cos.contiguous(), sin.contiguous()
    turned_q, turned_k = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    if num_rows:
        _rotate[(num_rows, num_heads + k.shape[1])](
            q,
            k,
            cos,
            sin,
            turned_q,
            turned_k,
            num_heads,
            k.shape[1],
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            HALF=head_dim // 2,
            BLOCK=max(8, triton.next_power_of_2(head_dim // 2)),
            num_warps=1,
        )
    return turned_q, turned_k


@triton.jit
def _rotate(
    q, k, cos, sin, turned_q, turned_k, num_heads, num_kv_heads, q_row, q_head, k_row, k_head,
    HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    if head < num_heads:
        source = q + row * q_row + head * q_head
        target = turned_q + (row * num_heads + head) * (2 * HALF)
    else:
        source = k + row * k_row + (head - num_heads) * k_head
        target = turned_k + (row * num_kv_heads + head - num_heads) * (2 * HALF)
    pair = tl.arange(0, BLOCK)
    inside = pair < HALF
    first = tl.load(source + pair, mask=inside, other=0.0)
    second = tl.load(source + HALF + pair, mask=inside, other=0.0)
    x, y = first.to(tl.float32), second.to(tl.float32)
    c = tl.load(cos + row * HALF + pair, mask=inside, other=0.0)
    s = tl.load(sin + row * HALF + pair, mask=inside, other=0.0)
    tl.store(target + pair, (x * c - y * s).to(first.dtype), mask=inside)
    tl.store(target + HALF + pair, (y * c + x * s).to(first.dtype), mask=inside)
