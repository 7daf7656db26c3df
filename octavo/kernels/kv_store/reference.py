"""Plain torch. The contract is in the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def write_kv(blocks: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    check_write(blocks, k, v, slots)
    num_block_tokens = blocks.shape[2]
    rows = blocks.view(-1, *blocks.shape[3:])
    key_rows = slots + slots.div(num_block_tokens, rounding_mode="floor") * num_block_tokens
    rows.index_copy_(0, key_rows, k)
    rows.index_copy_(0, key_rows + num_block_tokens, v)


def check_write(blocks: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    if blocks.ndim != 5 or blocks.shape[1] != 2 or not blocks.is_contiguous():
        raise ValueError(f"write_kv: want contiguous blocks [B, 2, P, K, D], got {list(blocks.shape)}")
    want = (slots.numel(), *blocks.shape[3:])
    if slots.ndim != 1 or slots.dtype != torch.int64 or k.shape != want or v.shape != want:
        raise ValueError(
            f"write_kv: blocks {list(blocks.shape)} and slots {list(slots.shape)} {slots.dtype} want int64 slots [T] "
            f"and k, v {list(want)}, got {list(k.shape)} and {list(v.shape)}"
        )
    if k.dtype != blocks.dtype or v.dtype != blocks.dtype:
        raise ValueError(f"write_kv: blocks are {blocks.dtype}, k is {k.dtype}, v is {v.dtype}")


def copy_blocks(
    blocks: Tensor, sources: Sequence[int], targets: Sequence[int], num_tokens: Sequence[int]
) -> None:
    if blocks.ndim not in (5, 6) or blocks.shape[-4] != 2:
        raise ValueError(
            f"copy_blocks: want blocks [B, 2, P, K, D] or [L, B, 2, P, K, D], got {list(blocks.shape)}"
        )
    if not len(sources) == len(targets) == len(num_tokens):
        raise ValueError(
            f"copy_blocks: {len(sources)} sources, {len(targets)} targets and {len(num_tokens)} token counts"
        )
    by_block = blocks if blocks.ndim == 5 else blocks.transpose(0, 1)
    num_blocks, block_tokens = by_block.shape[0], blocks.shape[-3]
    copies = list(zip(sources, targets, num_tokens, strict=True))
    for source, target, count in copies:
        if not (0 <= source < num_blocks and 0 <= target < num_blocks and 0 <= count <= block_tokens):
            raise ValueError(
                f"copy_blocks: cannot copy {count} tokens from block {source} to block {target}: "
                f"there are {num_blocks} blocks of {block_tokens} tokens"
            )
    for source, target, count in copies:
        if source != target:
            by_block[target].narrow(-3, 0, count).copy_(by_block[source].narrow(-3, 0, count))
