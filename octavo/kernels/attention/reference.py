"""Plain torch over fixed tiles. The contract is in the package, the cutting in `cut`.

Per row: scores of all tiles, their maximum (exact in any order), exponentials, then sums and weighted values tile
by tile in order of position. A tile that a row does not see adds exact zeros, so company changes nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.attention.cut import KV_TILE, WORKSPACE_BYTES, Batch, Cut
from octavo.kernels.kv_store.fp8 import Fp8Blocks
from octavo.kernels.tiles import ALIGN_BYTES, Ladder, probe_rows, prove

ROW_TILES = (4, 8, 16, 32, 64, 128, 256)

_ladders: dict[tuple[object, ...], Ladder] = {}


@dataclass(frozen=True, slots=True)
class _Recent:
    cut: Cut
    tables: Tensor
    batches: list[Batch]


_recent: tuple[_Recent, ...] = ()
"""The last cuts: every layer of a step asks for the same one, or the same two where windows differ."""


class _Scratch(threading.local):
    """Each thread's memory for what a batch gathers, kept between calls: fresh pages would cost more than the sums."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uninitialised memory, good until the next call with this name."""
        size = math.prod(shape)
        held = self._held.get((name, dtype, device))
        if held is None or held.numel() < size:
            with torch.inference_mode(False):  # usable from inside the mode and from outside
                held = torch.empty(size, dtype=dtype, device=device)
            if held.nbytes <= WORKSPACE_BYTES:
                self._held[name, dtype, device] = held
        return held[:size].view(shape)


_scratch = _Scratch()


def paged_attention(
    q: Tensor,
    blocks: Tensor,
    tables: Tensor,
    starts: Tensor,
    counts: Tensor,
    scale: float,
    window: int | None = None,
    only_decodes: bool = False,
    num_positions: int | None = None,
) -> Tensor:
    check(q, blocks, tables, starts, counts, window)
    first_positions, num_rows = tuple(starts.tolist()), tuple(counts.tolist())
    _check_counts(q, blocks, tables, first_positions, num_rows)
    if only_decodes and set(num_rows) - {1}:
        raise ValueError(f"paged_attention: only_decodes wants counts of 1, got {list(num_rows)}")
    if num_positions is not None and num_positions < sum(first_positions) + sum(num_rows):
        raise ValueError(
            f"paged_attention: sequences have {sum(first_positions) + sum(num_rows)} positions, more than the"
            f" {num_positions} of num_positions"
        )
    (num_heads, head_dim), (block_tokens, num_kv_heads) = q.shape[1:], blocks.shape[2:4]
    ladder = row_ladder(num_kv_heads, head_dim, q.device)
    group = _group(num_heads // num_kv_heads, ladder.tiles[-1])
    cut = Cut(first_positions, num_rows, window, block_tokens, group, num_heads // group, ladder)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for batch in _batches(cut, tables):
        rows = _attend(batch, q, blocks, scale, window, group)
        out.index_copy_(0, batch.targets, rows.to(q.dtype))
    return out


def row_ladder(num_kv_heads: int, head_dim: int, device: torch.device) -> Ladder:
    """Row counts proven to give equal bits in both products of a pair, at these widths and thread count."""
    width = _aligned_width(head_dim)
    key = (num_kv_heads, width, device, torch.get_num_threads())
    if key not in _ladders:
        probes = probe_rows(KV_TILE * num_kv_heads, width, torch.float32, device)
        kv = probes.view(1, KV_TILE, num_kv_heads, width)
        queries = probe_rows(4, width, torch.float32, device)
        weights = probe_rows(4, KV_TILE, torch.float32, device).abs()
        first = prove(lambda rows: _in_any_batch(rows, kv, turned=True), queries, ROW_TILES)
        second = prove(lambda rows: _in_any_batch(rows, kv, turned=False), weights, ROW_TILES)
        both = tuple(tile for tile in first.tiles if tile in second.tiles)
        _ladders[key] = Ladder(both or (1,), f"scores: {first.because}; values: {second.because}")
    return _ladders[key]


def _aligned_width(head_dim: int) -> int:
    """Heads are padded to this, so that every matrix of a batch starts at a 64-byte border, wherever it stands."""
    floats = ALIGN_BYTES // 4
    return -(-head_dim // floats) * floats


def _in_any_batch(rows: Tensor, kv: Tensor, *, turned: bool) -> Tensor:
    """The product of one pair, or NaN where the size of the batch, or the place in it, changes a bit."""
    alone: Tensor | None = None
    for size in (1, 2, 7, 33):
        out = rows.new_empty(1, size, len(rows), kv.shape[1 if turned else 3])
        many = kv.expand(size, -1, -1, -1).contiguous()
        _per_head(rows.repeat(1, size, 1, 1), many, [kv.shape[2] - 1], turned=turned, out=out)
        alone = out[0, 0] if alone is None else alone
        if not torch.equal(out[0], alone.expand(size, -1, -1)):
            return torch.full_like(alone, torch.nan)
    assert alone is not None
    return alone


def check(
    q: Tensor,
    blocks: Tensor | Fp8Blocks,
    tables: Tensor,
    starts: Tensor,
    counts: Tensor,
    window: int | None,
) -> None:
    memory = blocks.memory if isinstance(blocks, Fp8Blocks) else blocks
    shapes = f"q {list(q.shape)}, blocks {list(blocks.shape)}, tables {list(tables.shape)}"
    if q.ndim != 3 or len(blocks.shape) != 5 or blocks.shape[1] != 2 or q.shape[2] != blocks.shape[4]:
        raise ValueError(f"paged_attention: want q [T, H, D] and blocks [B, 2, P, K, D], got {shapes}")
    if isinstance(blocks, Tensor) and (q.dtype != blocks.dtype or not blocks.is_contiguous()):
        raise ValueError(
            f"paged_attention: want contiguous blocks of {q.dtype} as q, got {blocks.dtype}; {shapes}"
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
    for name, index in (("tables", tables), ("starts", starts), ("counts", counts)):
        if index.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"paged_attention: want int32 or int64 {name}, got {index.dtype}")
    if not q.device == memory.device == tables.device:
        raise ValueError(
            f"paged_attention: q is on {q.device}, blocks are on {memory.device}, tables on {tables.device}"
        )
    if window is not None and window < 1:
        raise ValueError(f"paged_attention: window must be at least 1, got {window}")


def _check_counts(
    q: Tensor, blocks: Tensor, tables: Tensor, starts: tuple[int, ...], counts: tuple[int, ...]
) -> None:
    if sum(counts) != q.shape[0] or min(counts, default=0) < 0:
        raise ValueError(
            f"paged_attention: counts {list(counts)} do not add up to the {q.shape[0]} rows of q"
        )
    room = tables.shape[1] * blocks.shape[2]
    for seq, (start, count) in enumerate(zip(starts, counts, strict=True)):
        if start < 0 or start + count > room:
            raise ValueError(
                f"paged_attention: sequence {seq} has positions {start} .. {start + count - 1}, "
                f"its table holds {tables.shape[1]} blocks of {blocks.shape[2]} tokens"
            )


def _group(heads_per_kv_head: int, largest_tile: int) -> int:
    """Query heads that share one product: the largest divisor of all that share a KV head which fits in a tile."""
    return next(
        n for n in range(heads_per_kv_head, 0, -1) if heads_per_kv_head % n == 0 and n <= largest_tile
    )


def _batches(cut: Cut, tables: Tensor) -> list[Batch]:
    global _recent
    for known in _recent:
        if known.cut == cut and known.tables.device == tables.device and torch.equal(known.tables, tables):
            return known.batches
    batches = cut.batches(tables)
    _recent = (_Recent(cut, tables.clone(), batches), *_recent[:1])
    return batches


def _attend(batch: Batch, q: Tensor, blocks: Tensor, scale: float, window: int | None, group: int) -> Tensor:
    """The rows `batch.targets`, [*, H, D] float32."""
    (num_heads, head_dim), num_kv_heads = q.shape[1:], blocks.shape[3]
    num_groups, room = num_heads // group, batch.tile // group
    heads = [g * num_kv_heads // num_groups for g in range(num_groups)]
    rows = q.index_select(0, batch.rows).to(torch.float32).mul_(scale)
    rows = rows.view(batch.num_items, room, num_groups, group, head_dim).permute(2, 0, 1, 3, 4)
    tiles = rows.new_zeros(num_groups, batch.num_items, batch.tile, _aligned_width(head_dim))
    tiles[:, :, : room * group, :head_dim] = rows.reshape(num_groups, batch.num_items, room * group, head_dim)
    queries = tiles.index_select(1, batch.item_of_pair)
    scores = _scratch.take("scores", (*queries.shape[:3], KV_TILE), torch.float32, q.device)
    for some, keys in _gather(batch, blocks, side=0):
        _per_head(queries[:, some], keys, heads, turned=True, out=scores[:, some])
    hidden = batch.hidden(window)
    scores.masked_fill_(hidden, -torch.inf)
    weights = scores.sub_(_peaks(scores, batch)).exp_()
    parts = torch.empty_like(queries)
    for some, values in _gather(batch, blocks, side=1):
        _per_head(weights[:, some], values, heads, turned=False, out=parts[:, some])
    mixed = _over_tiles(parts, batch)
    if not math.isfinite(float(mixed.sum())):
        mixed = _mix_apart(weights, blocks, heads, hidden, batch)
    mixed.div_(_over_tiles(weights.sum(-1, keepdim=True), batch))
    mixed = mixed[:, :, : room * group, :head_dim].unflatten(2, (room, group))
    return mixed.permute(1, 2, 0, 3, 4).reshape(-1, num_heads, head_dim).index_select(0, batch.places)


def _gather(batch: Batch, blocks: Tensor, side: int) -> Iterator[tuple[slice, Tensor]]:
    """Keys (side 0) or values (side 1), some pairs after others: (which, [pairs, C, K, aligned D] float32).

    The tensor is scratch memory, good until the next is asked for.
    """
    block_tokens, num_kv_heads, head_dim = blocks.shape[2:]
    flat = blocks.view(-1, num_kv_heads * head_dim)
    places = batch.slots + (batch.slots.div(block_tokens, rounding_mode="floor") + side) * block_tokens
    width = _aligned_width(head_dim)
    most = max(1, WORKSPACE_BYTES // (4 * KV_TILE * num_kv_heads * width))
    for first in range(0, len(places), most):
        some = places[first : first + most]
        shape = (*some.shape, num_kv_heads, head_dim)
        yield slice(first, first + len(some)), _wide_rows(flat, some.flatten(), shape, width)


def _wide_rows(flat: Tensor, rows: Tensor, shape: tuple[int, ...], width: int) -> Tensor:
    """The named rows as float32 of this shape, its last dimension padded with zeros to `width`."""
    plain = flat.dtype == torch.float32 and width == shape[-1]
    raw = _scratch.take("wide" if plain else "raw", (len(rows), flat.shape[1]), flat.dtype, flat.device)
    torch.index_select(flat, 0, rows, out=raw)
    if plain:
        return raw.view(shape)
    wide = _scratch.take("wide", (*shape[:-1], width), torch.float32, flat.device)
    wide[..., : shape[-1]] = raw.view(shape)
    wide[..., shape[-1] :] = 0
    return wide


def _per_head(rows: Tensor, matrices: Tensor, heads: list[int], *, turned: bool, out: Tensor) -> None:
    """Multiply rows [groups, pairs, M, .] by the KV head of each group, turned for keys, to `out`.

    matrices  [pairs, C, K, D]
    """
    for g, head in enumerate(heads):
        matrix = matrices[:, :, head]
        torch.bmm(rows[g], matrix.transpose(1, 2) if turned else matrix, out=out[g])


def _peaks(scores: Tensor, batch: Batch) -> Tensor:
    """The largest score of each row over all its tiles, for every pair, [groups, pairs, M, 1]."""
    highest = scores.amax(-1, keepdim=True)
    peak = highest[:, : batch.num_items].clone()
    for first, num in batch.ranges[1:]:
        peak[:, :num] = peak[:, :num].maximum(highest[:, first : first + num])
    return peak.index_select(1, batch.item_of_pair)


def _over_tiles(parts: Tensor, batch: Batch) -> Tensor:
    """Sum [groups, pairs, ...] over each item's tiles in order of position, from +0, so that no sum is ever -0."""
    total = parts.new_zeros(parts.shape[0], batch.num_items, *parts.shape[2:])
    for first, num in batch.ranges:
        total[:, :num] += parts[:, first : first + num]
    return total


def _mix_apart(weights: Tensor, blocks: Tensor, heads: list[int], hidden: Tensor, batch: Batch) -> Tensor:
    """Weighted values where some are not finite: those make NaN of the rows that see them, and of no others.

    A weight of zero times NaN is NaN, so they are taken out first and put back where they are seen.
    """
    seen = (~hidden).to(torch.float32).expand(weights.shape).contiguous()
    mixed = weights.new_empty(*weights.shape[:3], _aligned_width(blocks.shape[4]))
    spoilt = torch.empty_like(mixed)
    for some, values in _gather(batch, blocks, side=1):
        odd = ~values.isfinite()
        _per_head(weights[:, some], values.masked_fill(odd, 0.0), heads, turned=False, out=mixed[:, some])
        _per_head(seen[:, some], odd.to(torch.float32), heads, turned=False, out=spoilt[:, some])
    return _over_tiles(mixed, batch).masked_fill_(_over_tiles(spoilt, batch) > 0, torch.nan)
