"""Tiled online softmax over paged keys and values. The contract is in the package.

Positions are cut into parts of PART, counted from position 0. Within a part a row's maximum, sum and weighted values
are built tile by tile, from nothing; the parts are then merged in order. A row that is alone with its sequence (a
decode) has its parts computed side by side and merged by another kernel; the rows of a chunk share one program that
goes through the parts itself. Both run the same instructions on tiles of the same size, so a row's bits are the same.

Tile: ROWS rows (tokens x query heads of one key-value head) by COLUMNS positions. Whatever a row does not see enters
as a weight of exactly zero, and a tile or part without anything to see leaves its sums as they were.

A row's weights are rounded to q's dtype before they meet the values; the sum that divides them is that of the weights
before rounding. Budget: that of the contract, plus 1 rounding unit of q's dtype.

Keys and values may lie in e4m3 (`octavo.kernels.kv_store.fp8`). Codes of keys are multiplied as they are, and their
exponents, powers of two, scale the scores; values are made numbers of q's dtype before they are multiplied.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.attention.reference import check
from octavo.kernels.kv_store.fp8 import Fp8Blocks
from octavo.kernels.triton import MAX_SEQUENCES, launch

ROWS = 64
COLUMNS = 64
PART = 256
WARPS = 4
STAGES = 2


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
    """Reads nothing back from the device: counts that do not add up to T are the caller's fault."""
    check(q, blocks, tables, starts, counts, window)
    (num_rows, num_heads, head_dim), num_seqs = q.shape, len(counts)
    if num_seqs > MAX_SEQUENCES:
        raise ValueError(f"paged_attention: at most {MAX_SEQUENCES} sequences at a time, got {num_seqs}")
    q = q.contiguous()
    out = torch.empty_like(q)
    if not num_rows:
        return out
    block_tokens, num_kv_heads = blocks.shape[2:4]
    group = num_heads // num_kv_heads
    room = tables.shape[1] * block_tokens
    num_parts = most_parts(num_seqs, room, num_positions)
    memory = blocks.memory if isinstance(blocks, Fp8Blocks) else blocks
    common = {
        "P": block_tokens,
        "K": num_kv_heads,
        "G": group,
        "D": head_dim,
        "NUM_SEQS": counts_read(num_seqs),
        "WINDOWED": window is not None,
        "PART": PART,
        "BLOCK": memory.stride(0),
        "FP8": isinstance(blocks, Fp8Blocks),
    }
    tiles = {"ROWS": ROWS, "COLUMNS": COLUMNS, "num_warps": WARPS, "num_stages": STAGES}
    arrays = (q, memory, tables, starts, counts)
    numbers = (num_seqs, tables.stride(0), scale * math.log2(math.e), window or 0)
    is_whole = room <= PART
    sums = values = out
    if not is_whole:
        sums = torch.empty(num_parts, num_heads, 2, dtype=torch.float32, device=q.device)
        values = torch.empty(num_parts, num_heads, head_dim, dtype=torch.float32, device=q.device)
    launch(
        _alone, (num_seqs if is_whole else num_parts, num_kv_heads),
        *arrays, out, sums, values, *numbers, **common, **tiles, WHOLE=is_whole,
    )  # fmt: skip
    if not is_whole:
        launch(
            _merged, (num_seqs, num_heads),
            starts, counts, sums, values, out, num_seqs, window or 0,
            H=num_heads, D=head_dim, NUM_SEQS=common["NUM_SEQS"], WINDOWED=window is not None, PART=PART,
            num_warps=1,
        )  # fmt: skip
    tokens_per_tile = ROWS // group
    num_tiles = num_rows // tokens_per_tile + min(num_seqs, num_rows // 2)
    if num_tiles and not only_decodes:
        launch(_chunks, (num_tiles, num_kv_heads), *arrays, out, *numbers, **common, **tiles)
    return out


def counts_read(num_seqs: int) -> int:
    """Sequences whose counts a program reads: a power of four, so that few kernels are compiled while requests wait."""
    return max(16, 4 ** math.ceil(math.log2(num_seqs) / 2))


def most_parts(num_seqs: int, room: int, num_positions: int | None) -> int:
    """Parts that so many sequences can have: each the part it ends in, and whole ones before it.

    room           positions that one sequence's table can name
    num_positions  of all sequences together, where that is known
    """
    most = num_seqs * triton.cdiv(room, PART)
    return most if num_positions is None else min(most, num_positions // PART + num_seqs)


@triton.jit
def _tile(
    q, blocks, kv_head, table, first, end, positions, lowest, window, scale, top, total, mixed,
    P: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, FP8: tl.constexpr,
    COLUMNS: tl.constexpr, WINDOWED: tl.constexpr, CLEANS: tl.constexpr,
):  # fmt: skip
    """Take in positions first .. first + COLUMNS - 1, of which those from `end` on do not exist.

    BLOCK   items from one block to the next
    CLEANS  some row does not see some position: a value there that is no number must not reach it
    """
    column = first + tl.arange(0, COLUMNS)
    width = tl.arange(0, D)
    exists = column < end
    if WINDOWED:
        exists = exists & (column >= lowest)
    block = tl.load(table + column // P, mask=exists, other=0).to(tl.int64)
    place = blocks + (block * BLOCK + (column % P) * (K * D) + kv_head * D)
    k = tl.load(place[:, None] + width[None, :], mask=exists[:, None], other=0)
    v = tl.load(place[:, None] + P * K * D + width[None, :], mask=exists[:, None], other=0)
    if FP8:
        power = blocks + (block * BLOCK + 2 * P * K * D + (column % P) * K + kv_head)
        k_scale = _power(tl.load(power, mask=exists, other=0))
        v_scale = _power(tl.load(power + P * K, mask=exists, other=0))
        k = k.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(tl.float32).to(q.dtype)
        v = v.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(tl.float32)
        v = (v * v_scale[:, None]).to(q.dtype)
    sees = (column[None, :] <= positions[:, None]) & exists[None, :]
    if WINDOWED:
        sees = sees & (column[None, :] > positions[:, None] - window)
    scores = tl.dot(q, tl.trans(k)) * scale
    if FP8:
        scores = scores * k_scale[None, :]
    scores = tl.where(sees, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1))
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(scores - base[:, None])
    fade = tl.exp2(top - base)
    total = tl.fma(total, fade, tl.sum(weights, axis=1))
    if CLEANS:
        wide = v.to(tl.float32)
        finite = tl.abs(wide) < float("inf")
        broken = tl.max(tl.where(finite, 0, 1), axis=1) > 0
        weights = tl.where(sees & broken[None, :], float("nan"), weights)
        v = tl.where(finite, v, 0.0)
    mixed = tl.dot(weights.to(v.dtype), v, mixed * fade[:, None])
    return new_top, total, mixed


@triton.jit
def _power(exponent):
    """2^(exponent - 127)."""
    return (exponent.to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _part(
    q, blocks, kv_head, table, part, end, positions, all_see, lowest, window, scale,
    P: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, FP8: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, PART: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """(maximum [ROWS], sum [ROWS], weighted values [ROWS, D]) over one part.

    all_see  positions below it are seen by every row (only without a window)
    """
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, D], tl.float32)
    begin = part * PART
    end_of_part = tl.minimum(begin + PART, end)
    plain = begin
    if not WINDOWED:
        plain = begin + tl.maximum(tl.minimum(all_see, end_of_part) - begin, 0) // COLUMNS * COLUMNS
        for first in range(begin, plain, COLUMNS):
            top, total, mixed = _tile(
                q, blocks, kv_head, table, first, end, positions, lowest, window, scale, top, total, mixed,
                P, K, D, BLOCK, FP8, COLUMNS, WINDOWED, False,
            )  # fmt: skip
    for first in range(plain, end_of_part, COLUMNS):
        top, total, mixed = _tile(
            q, blocks, kv_head, table, first, end, positions, lowest, window, scale, top, total, mixed,
            P, K, D, BLOCK, FP8, COLUMNS, WINDOWED, True,
        )  # fmt: skip
    return top, total, mixed


@triton.jit
def _merge(top, total, part_top, part_total):
    """Two neighbours' maximum and sum, and what to multiply their values with; one that saw nothing changes no bit."""
    new_top = tl.maximum(top, part_top)
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    fade, part_fade = tl.exp2(top - base), tl.exp2(part_top - base)
    total = tl.fma(total, fade, part_total * part_fade)
    return new_top, total, fade, part_fade


@triton.jit
def _row_before(counts, seq, num_seqs, NUM_SEQS: tl.constexpr):
    """Rows of the sequences before `seq`."""
    index = tl.arange(0, NUM_SEQS)
    return tl.sum(tl.load(counts + index, mask=(index < num_seqs) & (index < seq), other=0), axis=0)


@triton.jit
def _parts(
    starts, counts, num_seqs, window, NUM_SEQS: tl.constexpr, WINDOWED: tl.constexpr, PART: tl.constexpr
):
    """Of each sequence with one row how many parts it has, [NUM_SEQS]; 0 of all others."""
    index = tl.arange(0, NUM_SEQS)
    alone = tl.load(counts + index, mask=index < num_seqs, other=0) == 1
    position = tl.load(starts + index, mask=alone, other=0)
    first = tl.maximum(position - window + 1, 0) // PART if WINDOWED else 0
    return tl.where(alone, position // PART + 1 - first, 0)


@triton.jit(do_not_specialize=["num_seqs", "table_stride"])
def _alone(
    q, blocks, tables, starts, counts, out, sums, mixes, num_seqs, table_stride, scale, window,
    P: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, NUM_SEQS: tl.constexpr,
    WINDOWED: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr, FP8: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One part of a sequence that has one row: all query heads of one key-value head.

    Parts stand one after another, those of sequence 0 first; programs beyond the last have nothing to do. WHOLE: a
    sequence is one part, and what comes of it is the result.
    """
    slot, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    seq, nth = tl.program_id(0), 0
    if not WHOLE:
        parts = _parts(starts, counts, num_seqs, window, NUM_SEQS, WINDOWED, PART)
        seq = tl.sum((tl.cumsum(parts, axis=0) <= seq).to(tl.int32), axis=0)
        nth = tl.program_id(0) - tl.sum(tl.where(tl.arange(0, NUM_SEQS) < seq, parts, 0), axis=0)
    if seq >= num_seqs:
        return
    if tl.load(counts + seq) != 1:
        return
    position = tl.load(starts + seq)
    lowest = tl.maximum(position - window + 1, 0) if WINDOWED else 0
    part = lowest // PART + nth
    row = _row_before(counts, seq, num_seqs, NUM_SEQS).to(tl.int64)
    head, width = tl.arange(0, ROWS), tl.arange(0, D)
    place = (row * K + kv_head) * G + head
    own = head < G
    rows = tl.load(q + place[:, None] * D + width[None, :], mask=own[:, None], other=0.0)
    positions = tl.zeros([ROWS], tl.int32) + position
    top, total, mixed = _part(
        rows, blocks, kv_head, tables + seq.to(tl.int64) * table_stride, part, position + 1, positions,
        position + 1, lowest, window, scale, P, K, D, BLOCK, FP8, ROWS, COLUMNS, PART, WINDOWED,
    )  # fmt: skip
    if WHOLE:
        result = (mixed / total[:, None]).to(q.dtype.element_ty)
        tl.store(out + place[:, None] * D + width[None, :], result, mask=own[:, None])
    else:
        place = (slot * K + kv_head) * G + head
        tl.store(sums + place * 2, top, mask=own)
        tl.store(sums + place * 2 + 1, total, mask=own)
        tl.store(mixes + place[:, None] * D + width[None, :], mixed, mask=own[:, None])


@triton.jit(do_not_specialize=["num_seqs"])
def _merged(
    starts, counts, sums, mixes, out, num_seqs, window,
    H: tl.constexpr, D: tl.constexpr, NUM_SEQS: tl.constexpr, WINDOWED: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """The parts of one row's head, in order."""
    seq, head = tl.program_id(0), tl.program_id(1)
    if tl.load(counts + seq) != 1:
        return
    parts = _parts(starts, counts, num_seqs, window, NUM_SEQS, WINDOWED, PART)
    own = tl.arange(0, NUM_SEQS)
    first = tl.sum(tl.where(own < seq, parts, 0), axis=0).to(tl.int64)
    width = tl.arange(0, D)
    top, total = float("-inf"), 0.0
    mixed = tl.zeros([D], tl.float32)
    for nth in range(tl.sum(tl.where(own == seq, parts, 0), axis=0)):
        slot = (first + nth) * H + head
        part_top, part_total = tl.load(sums + slot * 2), tl.load(sums + slot * 2 + 1)
        part_mixed = tl.load(mixes + slot * D + width)
        top, total, fade, part_fade = _merge(top, total, part_top, part_total)
        mixed = tl.fma(mixed, tl.zeros([D], tl.float32) + fade, part_mixed * part_fade)
    row = _row_before(counts, seq, num_seqs, NUM_SEQS).to(tl.int64)
    tl.store(out + (row * H + head) * D + width, (mixed / total).to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["num_seqs", "table_stride"])
def _chunks(
    q, blocks, tables, starts, counts, out, num_seqs, table_stride, scale, window,
    P: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, NUM_SEQS: tl.constexpr,
    WINDOWED: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr, FP8: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of rows of a sequence that has several; programs beyond the last tile have nothing to do."""
    TOKENS: tl.constexpr = ROWS // G
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    index = tl.arange(0, NUM_SEQS)
    all_counts = tl.load(counts + index, mask=index < num_seqs, other=0)
    tiles = tl.where(all_counts > 1, (all_counts + TOKENS - 1) // TOKENS, 0)
    seq = tl.sum((tl.cumsum(tiles, axis=0) <= tile).to(tl.int32), axis=0)
    if seq >= num_seqs:
        return
    token = (tile - tl.sum(tl.where(index < seq, tiles, 0), axis=0)) * TOKENS
    before = tl.sum(tl.where(index < seq, all_counts, 0), axis=0).to(tl.int64)
    start, count = tl.load(starts + seq), tl.load(counts + seq)
    tokens = token + tl.arange(0, ROWS) // G
    own = (tl.arange(0, ROWS) < TOKENS * G) & (tokens < count)
    positions = start + tl.minimum(tokens, count - 1)
    width = tl.arange(0, D)
    place = ((before + tokens) * K + kv_head) * G + tl.arange(0, ROWS) % G
    rows = tl.load(q + place[:, None] * D + width[None, :], mask=own[:, None], other=0.0)
    end = start + tl.minimum(token + TOKENS, count)
    lowest = tl.maximum(start + token - window + 1, 0) if WINDOWED else 0
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, D], tl.float32)
    for part in range(lowest // PART, (end + PART - 1) // PART):
        part_top, part_total, part_mixed = _part(
            rows, blocks, kv_head, tables + seq.to(tl.int64) * table_stride, part, end, positions,
            start + token + 1, lowest, window, scale, P, K, D, BLOCK, FP8, ROWS, COLUMNS, PART, WINDOWED,
        )  # fmt: skip
        top, total, fade, part_fade = _merge(top, total, part_top, part_total)
        mixed = tl.fma(
            mixed, tl.zeros([ROWS, D], tl.float32) + fade[:, None], part_mixed * part_fade[:, None]
        )
    result = (mixed / total[:, None]).to(q.dtype.element_ty)
    tl.store(out + place[:, None] * D + width[None, :], result, mask=own[:, None])
