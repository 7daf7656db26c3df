"""Row tiles: library matrix products run at a few fixed row counts that give a row the same bits.

A library chooses its kernel, and with it the order of a sum, by the shape of the product, sometimes by the
row's place and by how its memory is aligned. So products here run at fixed row counts, on rows that start at
64-byte borders, and a row count is used only after a trial on this very machine: every place in the tile gave
the same bits as every other, and the same as the anchor's. Where no tile passes, rows are multiplied one at a
time, which is invariant by construction and slow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGN_BYTES = 64
ANCHORS = (32, 16, 64)
TILES = (4, 8, 16, 32, 48, 64, 96, 128, 192, 256)

Product = Callable[[Tensor], Tensor]
"""[t, I] rows to [t, O] rows; called with aligned, contiguous rows."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """Row counts proven to give equal bits, ascending, and how that is known.

    tiles    (1,) when rows have to go one at a time; otherwise all but the smallest are multiples of it
    because  for `doctor`
    """

    tiles: tuple[int, ...]
    because: str

    def fit(self, num_rows: int) -> int:
        """The smallest tile that holds `num_rows`, or the largest there is."""
        return next((tile for tile in self.tiles if tile >= num_rows), self.tiles[-1])


def prove(product: Product, probes: Tensor, tiles: Sequence[int] = TILES) -> Ladder:
    """Find the tiles under which a row's bits never change.

    probes  [n, I] rows of wide dynamic range, so that another order of summation shows in the bits
    """
    for anchor in ANCHORS:
        want = torch.stack([product(_aligned(row.expand(anchor, -1)))[0] for row in probes])
        if _passes(product, probes, want, anchor):
            break
    else:
        return Ladder((1,), f"no tile of {ANCHORS} rows gave every place the same bits: one row at a time")
    proven = tuple(tile for tile in tiles if tile == anchor or _passes(product, probes, want, tile))
    failed = [str(tile) for tile in tiles if tile not in proven]
    because = f"tiles of {', '.join(map(str, proven))} rows gave equal bits at every place"
    if failed:
        because += f"; {', '.join(failed)} did not"
    return Ladder(proven, because)


def probe_rows(num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Fixed rows whose entries span several powers of two."""
    generator = torch.Generator().manual_seed(0x0C7A)
    rows = torch.randn(num_rows, width, generator=generator)
    spread = torch.randint(-6, 7, (num_rows, width), generator=generator)
    return torch.ldexp(rows, spread).to(device=device, dtype=dtype)


def is_aligned(x: Tensor) -> bool:
    return x.is_contiguous() and x.data_ptr() % ALIGN_BYTES == 0


def _aligned(rows: Tensor) -> Tensor:
    return rows.clone(memory_format=torch.contiguous_format)


def _passes(product: Product, probes: Tensor, want: Tensor, tile: int) -> bool:
    """Every probe at every place among equal neighbours, then all of them mixed, against `want`."""
    for row, expected in zip(probes, want, strict=True):
        if not torch.equal(product(_aligned(row.expand(tile, -1))), expected.expand(tile, -1)):
            return False
    place = torch.arange(tile, device=probes.device) % len(probes)
    return torch.equal(product(_aligned(probes[place])), want[place])
