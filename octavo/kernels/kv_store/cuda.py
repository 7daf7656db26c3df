"""One program per row. The contract is in the package."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.kv_store.reference import check_write


def write_kv(blocks: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    check_write(blocks, k, v, slots)
    num_rows, num_kv_heads, head_dim = k.shape
    if not num_rows:
        return
    k, v = (x if x.stride(2) == 1 and x.stride(1) == head_dim else x.contiguous() for x in (k, v))
    items = num_kv_heads * head_dim
    _write[(num_rows,)](
        blocks,
        k,
        v,
        slots,
        blocks.shape[2],
        k.stride(0),
        v.stride(0),
        ITEMS=items,
        BLOCK=max(16, triton.next_power_of_2(items)),
    )


@triton.jit
def _write(blocks, k, v, slots, block_tokens, k_row, v_row, ITEMS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    item = tl.arange(0, BLOCK)
    inside = item < ITEMS
    keys = blocks + ((slot // block_tokens) * 2 * block_tokens + slot % block_tokens) * ITEMS
    tl.store(keys + item, tl.load(k + row * k_row + item, mask=inside), mask=inside)
    values = keys + block_tokens.to(tl.int64) * ITEMS
    tl.store(values + item, tl.load(v + row * v_row + item, mask=inside), mask=inside)
