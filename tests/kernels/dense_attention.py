"""The oracle of paged attention: one row at a time in float64, on keys and values that were never paged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.kernels.numbers import F32, UNIT, seeded


@dataclass
class Case:
    """Sequences of `lengths` tokens, of which the last `counts` are rows of this call.

    q  [T, H, D]; keys, values  one [length, K, D] per sequence
    """

    lengths: list[int]
    counts: list[int]
    q: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    @property
    def starts(self) -> list[int]:
        return [length - count for length, count in zip(self.lengths, self.counts, strict=True)]


def random_case(
    lengths: list[int], counts: list[int], H: int, K: int, D: int, dtype: torch.dtype, seed: int
) -> Case:
    keys = [seeded(n, K, D, seed=seed + 10 * i, dtype=dtype) for i, n in enumerate(lengths)]
    values = [seeded(n, K, D, seed=seed + 10 * i + 1, dtype=dtype) for i, n in enumerate(lengths)]
    return Case(lengths, counts, seeded(sum(counts), H, D, seed=seed + 2, dtype=dtype), keys, values)


def page(case: Case, P: int, seed: int, window: int | None = None, spare: int = 3) -> tuple[Tensor, ...]:
    """Scatter into blocks in random order; returns (blocks, tables, starts, counts).

    Whatever the call may not read is NaN: spare blocks, the tail of each last block, positions that every
    row's window has passed. Table entries that may not be read name no block at all.
    """
    order = torch.Generator().manual_seed(seed)
    num_blocks = [-(-length // P) for length in case.lengths]
    total = sum(num_blocks) + spare
    ids = torch.randperm(total, generator=order).tolist()
    dtype, (K, D) = case.q.dtype, case.keys[0].shape[1:]
    blocks = torch.full((total, 2, P, K, D), torch.nan, dtype=dtype)
    tables = torch.full((len(case.lengths), max(num_blocks) + 2), -7, dtype=torch.int32)
    for s, (length, start) in enumerate(zip(case.lengths, case.starts, strict=True)):
        lowest = 0 if window is None else max(0, start - window + 1)
        for n in range(num_blocks[s]):
            if (n + 1) * P <= lowest:
                continue
            block = ids.pop()
            tables[s, n] = block
            for offset in range(P):
                position = n * P + offset
                if lowest <= position < length:
                    blocks[block, 0, offset] = case.keys[s][position]
                    blocks[block, 1, offset] = case.values[s][position]
    return (
        blocks,
        tables,
        torch.tensor(case.starts, dtype=torch.int32),
        torch.tensor(case.counts, dtype=torch.int32),
    )


def dense(case: Case, scale: float, window: int | None = None) -> tuple[Tensor, Tensor]:
    """(attention, how far a float32 computation may be from it), each [T, H, D] float64.

    The bound is the contract's. A score's error, (D + 5) units of m, enters the exponent, so it is a relative error
    of a weight; numerator and denominator both carry it, and each adds n terms; then a division.
    """
    T, H, D = case.q.shape
    out, bound = torch.empty(T, H, D, dtype=torch.float64), torch.empty(T, H, D, dtype=torch.float64)
    row = 0
    for s, (start, count) in enumerate(zip(case.starts, case.counts, strict=True)):
        for position in range(start, start + count):
            first = 0 if window is None else max(0, position - window + 1)
            for h in range(H):
                head = h * case.keys[s].shape[1] // H
                keys = case.keys[s][first : position + 1, head].double()
                values = case.values[s][first : position + 1, head].double()
                query = case.q[row, h].double()
                out[row, h] = (keys @ query * scale).softmax(0) @ values
                mass = (keys.abs() @ query.abs() * scale).max()
                in_float32 = 2 * (len(keys) + (D + 5) * mass + 5) * F32
                bound[row, h] = values.abs().max() * (in_float32 + UNIT[case.q.dtype])
            row += 1
    return out, bound
