"""Writing and copying keys and values in paged blocks.

A slot is one token's place in one layer: `slot = block_id * P + offset`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from octavo.kernels.kv_store import reference


def write_kv(blocks: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Store each row's keys and values in its slot.

    blocks  [B, 2, P, K, D], contiguous: keys at 0, values at 1; written in place
    k, v    [T, K, D], blocks' dtype
    slots   [T] int64, distinct; every other slot keeps its bits

    Raises ValueError when shapes or dtypes do not agree, IndexError (on the CPU) for a slot outside the pool.
    """
    reference.write_kv(blocks, k, v, slots)


def copy_blocks(
    blocks: Tensor, sources: Sequence[int], targets: Sequence[int], num_tokens: Sequence[int]
) -> None:
    """Copy the first `num_tokens[i]` slots of block `sources[i]` to block `targets[i]`, in order.

    blocks  [B, 2, P, K, D], or [L, B, 2, P, K, D] to copy in all layers at once; written in place

    A later copy sees what an earlier one wrote. Slots past `num_tokens` of a target keep their bits.
    Raises ValueError for unequal lengths, a block outside the pool, or more tokens than a block holds.
    """
    reference.copy_blocks(blocks, sources, targets, num_tokens)
