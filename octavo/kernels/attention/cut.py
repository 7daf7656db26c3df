"""Cutting a step's attention into products of fixed shape: index arrays only.

Keys and values are read in tiles of `KV_TILE` positions counted from position 0. Rows are cut into *items*, a few
neighbouring rows of one sequence each; an item with one of its tiles is a *pair*:

    positions   0 ...... 127 | 128 ...... 255 | 256 ..
    item A      pair (A, 0)    pair (A, 1)
    item B      pair (B, 0)

Items that need the same row tile go through the library together, whatever sequences they belong to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.tiles import Ladder

KV_TILE = 128
WORKSPACE_BYTES = 8 << 20
"""Bound of the scores of a batch, and of the keys or values gathered at once, unless one product alone needs more.
Larger ones fall out of a processor's cache."""


@dataclass(frozen=True, slots=True)
class Item:
    """Rows `row .. row + num_rows - 1` of q, of sequence `seq`, the first at `position`; its KV tiles."""

    seq: int
    row: int
    num_rows: int
    position: int
    first_tile: int
    num_tiles: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Items that go through the library together. C is KV_TILE, M the row tile, R the rows an item has room for.

    Pairs are ordered by tile, then item; items by number of tiles, falling. So the pairs of every item's j-th tile
    are one range, and belong to the first items.

    tile           M: R rows times the heads that share a product, padded
    num_items      items
    ranges         (first pair, number of pairs) for j = 0, 1 ...
    item_of_pair   [pairs]
    rows           [items * R] rows of q; a short item repeats its last
    slots          [pairs, C] where to read; positions that may not be read name the nearest one that may
    kv_positions   [pairs, 1, C] int32
    row_positions  [pairs, M, 1] int32
    places         places in `rows` of what is not a repetition
    targets        the rows of q there
    """

    tile: int
    num_items: int
    ranges: tuple[tuple[int, int], ...]
    item_of_pair: Tensor
    rows: Tensor
    slots: Tensor
    kv_positions: Tensor
    row_positions: Tensor
    places: Tensor
    targets: Tensor

    def hidden(self, window: int | None) -> Tensor:
        """Which positions a row of the tile does not see, [pairs, M, C]."""
        after = self.kv_positions > self.row_positions
        return (
            after if window is None else after.logical_or_(self.kv_positions <= self.row_positions - window)
        )


@dataclass(frozen=True, slots=True)
class Cut:
    """Everything a call's shapes and positions decide; layers of one step share it.

    starts, counts  first position and number of rows of each sequence
    group           query heads that share a product
    num_groups      products of a pair
    """

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    window: int | None
    block_tokens: int
    group: int
    num_groups: int
    ladder: Ladder

    def batches(self, tables: Tensor) -> list[Batch]:
        return [self._batch(items, tile, tables) for tile, items in self._together()]

    def low(self, seq: int) -> int:
        """The first position of a sequence that may be read."""
        return 0 if self.window is None else max(0, self.starts[seq] - self.window + 1)

    def end(self, seq: int) -> int:
        return self.starts[seq] + self.counts[seq]

    def _items(self) -> Iterator[Item]:
        row = 0
        for seq, (start, count) in enumerate(zip(self.starts, self.counts, strict=True)):
            most = self._most_rows(self.end(seq) - self.low(seq))
            for done in range(0, count, most):
                num_rows, position = min(most, count - done), start + done
                first = 0 if self.window is None else max(0, position - self.window + 1) // KV_TILE
                last = (position + num_rows - 1) // KV_TILE
                yield Item(seq, row + done, num_rows, position, first, last - first + 1)
            row += count

    def _most_rows(self, num_positions: int) -> int:
        """Rows of an item whose scores over so many positions keep within the workspace; at least 1."""
        tiles = self.ladder.tiles
        smallest = self.ladder.fit(self.group)
        affordable = WORKSPACE_BYTES // (4 * self.num_groups * (num_positions + KV_TILE))
        return max([smallest, *(tile for tile in tiles if smallest < tile <= affordable)]) // self.group

    def _together(self) -> Iterator[tuple[int, list[Item]]]:
        """Items of one row tile, most KV tiles first, their scores within the workspace."""
        by_tile: dict[int, list[Item]] = {}
        for item in self._items():
            by_tile.setdefault(self.ladder.fit(item.num_rows * self.group), []).append(item)
        for tile, items in by_tile.items():
            most = WORKSPACE_BYTES // (4 * KV_TILE * self.num_groups * tile)
            batch: list[Item] = []
            num_pairs = 0
            for item in sorted(items, key=lambda item: -item.num_tiles):
                if batch and num_pairs + item.num_tiles > most:
                    yield tile, batch
                    batch, num_pairs = [], 0
                batch.append(item)
                num_pairs += item.num_tiles
            yield tile, batch

    def _batch(self, items: Sequence[Item], tile: int, tables: Tensor) -> Batch:
        device, room = tables.device, tile // self.group
        pairs: list[tuple[int, int]] = []
        ranges: list[tuple[int, int]] = []
        for j in range(items[0].num_tiles):
            now = [(i, (item.first_tile + j) * KV_TILE) for i, item in enumerate(items) if item.num_tiles > j]
            ranges.append((len(pairs), len(now)))
            pairs += now
        item_of_pair, first_positions = torch.tensor(pairs, device=device).unbind(1)
        facts = [
            (item.seq, item.row, item.num_rows - 1, item.position, self.low(item.seq), self.end(item.seq) - 1)
            for item in items
        ]
        seqs, rows, last, positions, low, high = torch.tensor(facts, device=device).unsqueeze(-1).unbind(1)
        kv_positions = first_positions[:, None] + torch.arange(KV_TILE, device=device)
        readable = kv_positions.maximum(low[item_of_pair]).minimum(high[item_of_pair])
        block_ids = tables[seqs[item_of_pair], readable // self.block_tokens].to(torch.int64)
        slots = block_ids * self.block_tokens + readable % self.block_tokens
        place = torch.arange(room, device=device)
        inside = place.minimum(last)
        of_tile = torch.arange(tile, device=device).div(self.group, rounding_mode="floor").minimum(last)
        places = (place <= last).flatten().nonzero().squeeze(1)
        all_rows = (rows + inside).flatten()
        return Batch(
            tile=tile,
            num_items=len(items),
            ranges=tuple(ranges),
            item_of_pair=item_of_pair,
            rows=all_rows,
            slots=slots,
            kv_positions=kv_positions.to(torch.int32).unsqueeze(1),
            row_positions=(positions + of_tile)[item_of_pair].to(torch.int32).unsqueeze(2),
            places=places,
            targets=all_rows[places],
        )
