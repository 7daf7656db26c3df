"""Plain torch over fixed tiles. The contract is in the package.

Keys and values are read in tiles of `KV_TILE` positions counted from position 0. Work is cut into *items*, a few
neighbouring rows of one sequence each, and *pairs*, an item with one of its tiles:

    positions   0 ...... 127 | 128 ...... 255 | 256 ..
    item A      pair (A, 0)    pair (A, 1)
    item B      pair (B, 0)

A pair is a product of fixed shape, so pairs of any sequences go through the library together. Per row: scores of
all tiles, their maximum (exact in any order), exponentials, then sums and weighted values tile by tile in order
of position. A tile that a row does not see adds exact zeros, so company in an item changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.tiles import Ladder, probe_rows, prove

KV_TILE = 128
ROW_TILES = (4, 8, 16, 32, 64, 128, 256)
WORKSPACE_BYTES = 16 << 20

_ladders: dict[tuple[object, ...], Ladder] = {}


@dataclass(frozen=True, slots=True)
class _Item:
    """Rows `row .. row + num_rows - 1` of q, of sequence `seq`, the first at `position`; its KV tiles."""

    seq: int
    row: int
    num_rows: int
    position: int
    first_tile: int
    num_tiles: int


def paged_attention(
    q: Tensor,
    blocks: Tensor,
    tables: Tensor,
    starts: Tensor,
    counts: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    _check(q, blocks, tables, starts, counts, window)
    first_positions, num_rows = starts.tolist(), counts.tolist()
    _check_counts(q, blocks, tables, first_positions, num_rows)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = blocks.shape[3]
    ladder = row_ladder(num_kv_heads, head_dim, q.device)
    group = _group(num_heads // num_kv_heads, ladder.tiles[-1])
    lows = [0 if window is None else max(0, start - window + 1) for start in first_positions]
    ends = [start + count for start, count in zip(first_positions, num_rows, strict=True)]
    pair_bytes = 4 * KV_TILE * (num_heads // group * ladder.tiles[-1] + 2 * num_kv_heads * head_dim)
    for tile, items in _batches(_items(first_positions, num_rows, window, ladder, group), pair_bytes):
        work = _Work(items, tile, tile // group, group, q, tables, lows, ends, window)
        rows = _attend(work, q, blocks, tables, scale)
        out[work.real_rows] = rows.to(q.dtype)
    return out


def row_ladder(num_kv_heads: int, head_dim: int, device: torch.device) -> Ladder:
    """Row counts proven to give equal bits in both products of a pair, at these widths and thread count."""
    key = (num_kv_heads, head_dim, device, torch.get_num_threads())
    if key not in _ladders:
        kv = probe_rows(KV_TILE * num_kv_heads, head_dim, torch.float32, device).view(
            1, KV_TILE, num_kv_heads, -1
        )

        def scores(rows: Tensor) -> Tensor:
            return _same_in_any_batch(rows, kv[:, :, -1].transpose(1, 2))

        def values(rows: Tensor) -> Tensor:
            return _same_in_any_batch(rows, kv[:, :, -1])

        first = prove(scores, probe_rows(4, head_dim, torch.float32, device), ROW_TILES)
        second = prove(values, probe_rows(4, KV_TILE, torch.float32, device).abs(), ROW_TILES)
        both = tuple(tile for tile in first.tiles if tile in second.tiles)
        _ladders[key] = Ladder(both or (1,), f"scores: {first.because}; values: {second.because}")
    return _ladders[key]


def _same_in_any_batch(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows @ matrix, or NaN when the place in a batch, or the size of it, changes a bit."""
    alone = torch.bmm(rows[None], matrix)
    for size in (2, 7, 33):
        many = torch.bmm(rows.repeat(size, 1, 1), matrix.expand(size, -1, -1).clone())
        if not torch.equal(many, alone.expand(size, -1, -1)):
            return torch.full_like(alone[0], torch.nan)
    return alone[0]


def _check(
    q: Tensor, blocks: Tensor, tables: Tensor, starts: Tensor, counts: Tensor, window: int | None
) -> None:
    shapes = f"q {list(q.shape)}, blocks {list(blocks.shape)}, tables {list(tables.shape)}"
    if q.ndim != 3 or blocks.ndim != 5 or blocks.shape[1] != 2 or q.shape[2] != blocks.shape[4]:
        raise ValueError(f"paged_attention: want q [T, H, D] and blocks [B, 2, P, K, D], got {shapes}")
    if q.dtype != blocks.dtype or not blocks.is_contiguous():
        raise ValueError(
            f"paged_attention: want contiguous blocks of q's {q.dtype}, got {blocks.dtype}; {shapes}"
        )
    if q.shape[1] % blocks.shape[3]:
        raise ValueError(
            f"paged_attention: {q.shape[1]} query heads cannot share {blocks.shape[3]} key heads"
        )
    if tables.ndim != 2 or starts.shape != tables.shape[:1] or counts.shape != tables.shape[:1]:
        raise ValueError(
            f"paged_attention: want tables [S, N], starts [S] and counts [S], "
            f"got {list(tables.shape)}, {list(starts.shape)} and {list(counts.shape)}"
        )
    if window is not None and window < 1:
        raise ValueError(f"paged_attention: window must be at least 1, got {window}")


def _check_counts(q: Tensor, blocks: Tensor, tables: Tensor, starts: list[int], counts: list[int]) -> None:
    if sum(counts) != q.shape[0] or min(counts, default=0) < 0:
        raise ValueError(f"paged_attention: counts {counts} do not add up to the {q.shape[0]} rows of q")
    room = tables.shape[1] * blocks.shape[2]
    for seq, (start, count) in enumerate(zip(starts, counts, strict=True)):
        if start < 0 or start + count > room:
            raise ValueError(
                f"paged_attention: sequence {seq} has positions {start} .. {start + count - 1}, "
                f"its table holds {tables.shape[1]} blocks of {blocks.shape[2]} tokens"
            )


def _group(heads_per_kv_head: int, largest_tile: int) -> int:
    """Query heads that share one product: the largest divisor of the group that fits in a tile."""
    return next(
        n for n in range(heads_per_kv_head, 0, -1) if heads_per_kv_head % n == 0 and n <= largest_tile
    )


def _items(
    starts: list[int], counts: list[int], window: int | None, ladder: Ladder, group: int
) -> dict[int, list[_Item]]:
    """Cut every sequence's rows into items, by the row tile each needs."""
    by_tile: dict[int, list[_Item]] = {}
    most = ladder.tiles[-1] // group
    row = 0
    for seq, (start, count) in enumerate(zip(starts, counts, strict=True)):
        for done in range(0, count, most):
            num_rows, position = min(most, count - done), start + done
            first = 0 if window is None else max(0, position - window + 1) // KV_TILE
            last = (position + num_rows - 1) // KV_TILE
            item = _Item(seq, row + done, num_rows, position, first, last - first + 1)
            by_tile.setdefault(ladder.fit(num_rows * group), []).append(item)
        row += count
    return by_tile


def _batches(by_tile: dict[int, list[_Item]], pair_bytes: int) -> Iterator[tuple[int, list[_Item]]]:
    """Items that go through the library together: one row tile, most KV tiles first, within the workspace."""
    for tile, items in by_tile.items():
        batch: list[_Item] = []
        num_pairs = 0
        for item in sorted(items, key=lambda item: -item.num_tiles):
            if batch and (num_pairs + item.num_tiles) * pair_bytes > WORKSPACE_BYTES:
                yield tile, batch
                batch, num_pairs = [], 0
            batch.append(item)
            num_pairs += item.num_tiles
        if batch:
            yield tile, batch


class _Work:
    """Index arrays of one batch of items.

    Pairs are ordered by tile, then item; items by number of tiles, falling. So the pairs of every item's j-th tile
    are one range, and belong to the first items.

    ranges         (first pair, number of items) for j = 0, 1 ...
    item_of_pair   [pairs]
    rows           [items, R]    rows of q; a short item repeats its last
    seqs           [pairs, 1]
    kv_positions   [pairs, C]    may lie outside of what the sequence owns
    readable       [pairs, C]    the nearest position that it owns and that may be read
    seen           [pairs, M, C] which positions each row of the tile sees
    real_rows      [T of this batch] rows of q that the batch computes, in order of items
    places         their places in the flattened [items, R]
    """

    def __init__(
        self,
        items: Sequence[_Item],
        tile: int,
        rows_per_item: int,
        group: int,
        q: Tensor,
        tables: Tensor,
        lows: Sequence[int],
        ends: Sequence[int],
        window: int | None,
    ) -> None:
        device = q.device
        self.tile, self.group, self.rows_per_item = tile, group, rows_per_item
        self.ranges: list[tuple[int, int]] = []
        pairs: list[tuple[int, int]] = []
        for j in range(items[0].num_tiles):
            active = [(i, item.first_tile + j) for i, item in enumerate(items) if item.num_tiles > j]
            self.ranges.append((len(pairs), len(active)))
            pairs += active
        of_pair = torch.tensor(pairs, device=device)
        self.item_of_pair = of_pair[:, 0]
        facts = torch.tensor(
            [
                (item.seq, item.row, item.num_rows - 1, item.position, lows[item.seq], ends[item.seq] - 1)
                for item in items
            ],
            device=device,
        )
        seqs, first_rows, last, positions, low, high = facts.unsqueeze(-1).unbind(1)
        slot = torch.arange(rows_per_item, device=device)
        inside = torch.minimum(slot, last)
        self.rows = first_rows + inside
        self.real_rows = self.rows[slot <= last]
        self.places = (slot <= last).flatten().nonzero().squeeze(1)
        self.seqs = seqs[self.item_of_pair]
        self.kv_positions = of_pair[:, 1:] * KV_TILE + torch.arange(KV_TILE, device=device)
        self.readable = torch.minimum(
            torch.maximum(self.kv_positions, low[self.item_of_pair]), high[self.item_of_pair]
        )
        row_positions = (positions + inside).repeat_interleave(group, dim=1)
        padding = row_positions[:, -1:].expand(-1, tile - row_positions.shape[1])
        row_positions = torch.cat((row_positions, padding), dim=1)[self.item_of_pair].unsqueeze(-1)
        distance = row_positions - self.kv_positions.unsqueeze(1)
        self.seen = distance >= 0
        if window is not None:
            self.seen &= distance < window


def _attend(work: _Work, q: Tensor, blocks: Tensor, tables: Tensor, scale: float) -> Tensor:
    """Rows of the batch in the order of `work.real_rows`, [*, H, D] float32."""
    keys, values = _gather(work, blocks, tables)
    num_heads, head_dim = q.shape[1:]
    num_groups = num_heads // work.group
    kv_head = [g * work.group * keys.shape[2] // num_heads for g in range(num_groups)]
    tiles = q.new_zeros(num_groups, len(work.rows), work.tile, head_dim, dtype=torch.float32)
    rows = q[work.rows].to(torch.float32) * scale
    grouped = rows.view(*work.rows.shape, num_groups, work.group, head_dim).permute(2, 0, 1, 3, 4)
    tiles[:, :, : work.rows_per_item * work.group] = grouped.flatten(2, 3)
    tiles = tiles[:, work.item_of_pair]
    scores = torch.stack(
        [torch.bmm(tiles[g], keys[:, :, kv_head[g]].transpose(1, 2)) for g in range(num_groups)]
    )
    scores.masked_fill_(~work.seen, -torch.inf)
    highest = scores.amax(-1)
    peak = highest[:, : work.ranges[0][1]].clone()
    for first, num in work.ranges[1:]:
        torch.maximum(peak[:, :num], highest[:, first : first + num], out=peak[:, :num])
    weights = scores.sub_(peak[:, work.item_of_pair].unsqueeze(-1)).exp_()
    total = _sum_tiles(weights.sum(-1), work)
    mixed = _mix(weights, values, kv_head, work)
    if not mixed.isfinite().all():
        mixed = _mix_apart(weights, values, kv_head, work)
    mixed /= total.unsqueeze(-1)
    real = mixed[:, :, : work.rows_per_item * work.group]
    by_row = real.unflatten(2, (work.rows_per_item, work.group)).permute(1, 2, 0, 3, 4)
    return by_row.reshape(-1, num_heads, head_dim)[work.places]


def _gather(work: _Work, blocks: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of every pair, each [pairs, C, K, D] float32."""
    block_tokens, num_kv_heads, head_dim = blocks.shape[2:]
    block_ids = tables[work.seqs, work.readable // block_tokens].to(torch.int64)
    slots = (block_ids * (2 * block_tokens) + work.readable % block_tokens).flatten()
    flat = blocks.view(-1, num_kv_heads * head_dim)
    shape = (len(work.seqs), KV_TILE, num_kv_heads, head_dim)
    keys = flat.index_select(0, slots).to(torch.float32).view(shape)
    return keys, flat.index_select(0, slots + block_tokens).to(torch.float32).view(shape)


def _sum_tiles(parts: Tensor, work: _Work) -> Tensor:
    """Sum [groups, pairs, ...] over each item's tiles in order of position, from +0, so that a sum is never -0."""
    total = parts.new_zeros(parts.shape[0], work.ranges[0][1], *parts.shape[2:])
    for first, num in work.ranges:
        total[:, :num] += parts[:, first : first + num]
    return total


def _mix(weights: Tensor, values: Tensor, kv_head: list[int], work: _Work) -> Tensor:
    return _sum_tiles(
        torch.stack([torch.bmm(weights[g], values[:, :, head]) for g, head in enumerate(kv_head)]), work
    )


def _mix_apart(weights: Tensor, values: Tensor, kv_head: list[int], work: _Work) -> Tensor:
    """As `_mix`, where some values are not finite: they reach the rows that see them, and no others.

    A weight of zero times NaN is NaN, so they are taken out first and put back as NaN where they are seen.
    """
    finite = values.isfinite()
    mixed = _mix(weights, values.masked_fill(~finite, 0.0), kv_head, work)
    seen = work.seen.to(torch.float32).expand(weights.shape)
    spoilt = _mix(seen, (~finite).to(torch.float32), kv_head, work)
    return mixed.masked_fill_(spoilt > 0, torch.nan)
