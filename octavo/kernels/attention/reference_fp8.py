"""Attention over keys and values in e4m3, by the plain reference. The contract is in the package."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.attention import reference
from octavo.kernels.kv_store.fp8 import Fp8Blocks


def paged_attention(
    q: Tensor,
    blocks: Fp8Blocks,
    tables: Tensor,
    starts: Tensor,
    counts: Tensor,
    scale: float,
    window: int | None = None,
    only_decodes: bool = False,
    num_positions: int | None = None,
) -> Tensor:
    """In float32 on the numbers of those blocks that some table names."""
    is_block = (tables >= 0) & (tables < len(blocks.memory))
    ids = torch.cat((tables.new_zeros(1), tables[is_block])).unique().to(torch.int64)
    places = torch.searchsorted(ids, tables.to(torch.int64)).to(torch.int32)
    places = torch.where(is_block, places, len(ids)).to(torch.int32)
    numbers = blocks.numbers(ids)
    mixed = reference.paged_attention(
        q.to(torch.float32), numbers, places, starts, counts, scale, window, only_decodes, num_positions
    )
    return mixed.to(q.dtype)
