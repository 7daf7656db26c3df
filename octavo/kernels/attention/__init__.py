"""Causal attention over paged keys and values, for prefill chunks and decodes alike."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.attention import reference, reference_fp8
from octavo.kernels.choose import Impl, fits_all
from octavo.kernels.kv_store.fp8 import Fp8Blocks
from octavo.kernels.triton import lazily, refuses_fp8_heads, refuses_heads


def paged_attention(
    q: Tensor,
    blocks: Tensor | Fp8Blocks,
    tables: Tensor,
    starts: Tensor,
    counts: Tensor,
    scale: float,
    window: int | None = None,
    only_decodes: bool = False,
    num_positions: int | None = None,
) -> Tensor:
    """Attention of every row over the cached positions of its sequence, up to its own.

    q       [T, H, D]        queries, already rotated: first all rows of sequence 0, then those of sequence 1 ...
    blocks  [B, 2, P, K, D]  keys at 0, values at 1, those of this chunk included; contiguous, only read.
                             Or Fp8Blocks: the numbers that they hold
    tables  [S, N] int32     block ids of each sequence in order; q, blocks and tables share a device
    starts  [S] int32        position of each sequence's first row
    counts  [S] int32        its number of rows, 0 or more; they add up to T
    scale                    multiplies the scores, usually D ** -0.5
    window                   a row at position p sees positions p - window + 1 .. p; None: 0 .. p
    only_decodes             every count is 1: saves a device from finding that out
    num_positions            at least the sum of starts and counts: a device takes work space for so many, and for
                             full tables where it is not told

    Of a sequence only positions max(0, start - window + 1) .. start + count - 1 are read; table entries for
    others may be anything, and so may the slots they name (freed blocks, NaN).

    Returns a fresh [T, H, D] in q's dtype; sums are taken in float32. Batch invariant: a row's bits depend on
    nothing but the row and the positions it sees; not on the chunk, the company, the block ids, P or the two last. A
    non-finite value at a position makes the rows that see it NaN and leaves all others as they are.
    Raises ValueError when shapes, dtypes or counts do not agree, or H is not a multiple of K; IndexError (on
    the CPU) for a block id outside the pool.
    Budget, as a share of the largest value seen: 1 rounding unit of q's dtype, plus 2 (n + (D + 5) m + 5) units
    of float32 for a row of n positions whose largest sum(|q k|) * scale is m.
    Source: paging, Kwon et al. 2023 (arXiv 2309.06180) sec. 4.1; grouped heads, arXiv 2305.13245.
    """
    if isinstance(blocks, Fp8Blocks):
        return reference_fp8.paged_attention(
            q, blocks, tables, starts, counts, scale, window, only_decodes, num_positions
        )
    return reference.paged_attention(
        q, blocks, tables, starts, counts, scale, window, only_decodes, num_positions
    )


IMPLS: tuple[Impl, ...] = (
    Impl(
        "paged_attention", "triton", lazily("octavo.kernels.attention.cuda", "paged_attention"), refuses_heads
    ),
    Impl("paged_attention", "reference", reference.paged_attention, fits_all),
)

FP8_IMPLS: tuple[Impl, ...] = (
    Impl(
        "paged_attention fp8",
        "triton",
        lazily("octavo.kernels.attention.cuda", "paged_attention"),
        refuses_fp8_heads,
    ),
    Impl("paged_attention fp8", "reference", reference_fp8.paged_attention, fits_all),
)
"""With keys and values in e4m3."""
