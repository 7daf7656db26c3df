"""Tiles of tensor-core products with one order of summation. The contract is in the package.

The inner width is cut into segments, as many as the weight's shape asks for to keep the device busy when rows are few.
A segment is summed from nothing, step by step; segments are added in order. With few rows, segments are computed side
by side and added by another kernel; with many, one program goes through them itself. Row counts change which of the two
runs and how high the tiles are, neither of which touches the order in which a row's products are added.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch

WANTED_PROGRAMS = 264
"""Two for each multiprocessor of the largest devices at hand."""
MIN_SEGMENT = 512
STEP = 64
"""Products summed per step of the loop; a segment is a multiple of it."""
FEW_ROWS = 128


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program computes: rows by outputs, `step` inputs at a time."""

    rows: int
    outputs: int
    step: int
    num_warps: int
    num_stages: int


FEW = Tile(64, 64, 128, 4, 4)
SOME = Tile(128, 64, 64, 4, 4)
MANY = Tile(128, 256, 64, 8, 3)
MANY_SEGMENTS = Tile(128, 128, 64, 8, 3)


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight as `linear` wants it.

    weight    [O, I], contiguous; may be shared (tied embeddings)
    bias      [O] or None
    segment   inputs that are summed together
    """

    weight: Tensor
    bias: Tensor | None
    segment: int

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def num_segments(self) -> int:
        return triton.cdiv(self.in_features, self.segment)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def note(self) -> str:
        return f"{self.num_segments} segments of {self.segment} inputs"


def pack(weight: Tensor, bias: Tensor | None = None) -> Packed:
    if weight.ndim != 2 or (
        bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype)
    ):
        raise ValueError(
            f"pack: want a weight [O, I] and a bias [O] of its dtype, got {list(weight.shape)} {weight.dtype}"
            f" and {None if bias is None else (list(bias.shape), bias.dtype)}"
        )
    num_out, num_in = weight.shape
    return Packed(
        weight.contiguous(), None if bias is None else bias.contiguous(), segment_of(num_out, num_in)
    )


def segment_of(num_out: int, num_in: int) -> int:
    """Inputs of a segment: of the weight's shape alone."""
    wanted = triton.cdiv(WANTED_PROGRAMS, triton.cdiv(num_out, FEW.outputs))
    number = max(1, min(wanted, num_in // MIN_SEGMENT, 8))
    whole = triton.cdiv(num_in, number)
    return triton.cdiv(whole, 2 * STEP) * 2 * STEP


def linear(x: Tensor, weight: Packed) -> Tensor:
    num_out, num_in = weight.weight.shape
    if (
        x.ndim != 2
        or x.shape[1] != num_in
        or x.dtype != weight.weight.dtype
        or x.device != weight.weight.device
    ):
        raise ValueError(
            f"linear: want x [T, {num_in}] {weight.weight.dtype} on {weight.weight.device},"
            f" got {list(x.shape)} {x.dtype} on {x.device}"
        )
    x = x.contiguous()
    num_rows = x.shape[0]
    out = torch.empty(num_rows, num_out, dtype=x.dtype, device=x.device)
    if not num_rows:
        return out
    if num_rows <= FEW_ROWS:
        tile = FEW if num_rows <= FEW.rows else SOME
        _few(x, weight, out, tile)
    else:
        _many(x, weight, out, MANY if weight.num_segments == 1 else MANY_SEGMENTS)
    return out


def _few(x: Tensor, weight: Packed, out: Tensor, tile: Tile) -> None:
    (num_rows, num_out), num_segments = out.shape, weight.num_segments
    if num_segments == 1:
        _many(x, weight, out, tile)
        return
    partial = torch.empty(num_segments, num_rows, num_out, dtype=torch.float32, device=x.device)
    _launch(x, weight, partial, tile, num_segments)
    block = 1024
    launch(
        _add_segments, (triton.cdiv(num_rows * num_out, block),),
        partial, weight.bias, out, num_rows * num_out, num_out,
        SEGMENTS=num_segments, HAS_BIAS=weight.bias is not None, BLOCK=block,
    )  # fmt: skip


def _many(x: Tensor, weight: Packed, out: Tensor, tile: Tile) -> None:
    _launch(x, weight, out, tile, 1)


def _launch(x: Tensor, weight: Packed, out: Tensor, tile: Tile, side_by_side: int) -> None:
    (num_rows, num_in), num_out = x.shape, weight.out_features
    row_tiles, out_tiles = triton.cdiv(num_rows, tile.rows), triton.cdiv(num_out, tile.outputs)
    launch(
        _product,
        (row_tiles * out_tiles, side_by_side),
        x,
        weight.weight,
        weight.bias,
        out,
        num_rows,
        num_out,
        num_in,
        SEGMENT=weight.segment,
        SEGMENTS=weight.num_segments,
        APART=side_by_side > 1,
        HAS_BIAS=weight.bias is not None,
        EVEN=num_in % weight.segment == 0,
        ROWS=tile.rows,
        OUTPUTS=tile.outputs,
        STEP=tile.step,
        GROUP=8,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


@triton.jit
def _product(
    x, weight, bias, out, num_rows, num_out, num_in,
    SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, APART: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One tile of the result; or, APART, of one segment's share of it, in float32.

    Programs that run together take GROUP tiles of rows for each tile of outputs, so that both are in the cache.
    """
    row_tiles, out_tiles = tl.cdiv(num_rows, ROWS), tl.cdiv(num_out, OUTPUTS)
    program = tl.program_id(0)
    group_first = program // (GROUP * out_tiles) * GROUP
    group_rows = tl.minimum(row_tiles - group_first, GROUP)
    within = program % (GROUP * out_tiles)
    row = (group_first + within % group_rows) * ROWS + tl.arange(0, ROWS)
    output = within // group_rows * OUTPUTS + tl.arange(0, OUTPUTS)
    step = tl.arange(0, STEP)
    x_rows = x + row.to(tl.int64)[:, None] * num_in + step[None, :]
    w_rows = weight + output.to(tl.int64)[:, None] * num_in + step[None, :]
    has_row, has_output = (row < num_rows)[:, None], (output < num_out)[:, None]
    if APART:
        total = _segment(
            x_rows, w_rows, has_row, has_output, tl.program_id(1) * SEGMENT, num_in,
            SEGMENT, EVEN, ROWS, OUTPUTS, STEP,
        )  # fmt: skip
        place = (tl.program_id(1).to(tl.int64) * num_rows + row)[:, None] * num_out + output[None, :]
        tl.store(out + place, total, mask=has_row & (output < num_out)[None, :])
    else:
        total = _segment(x_rows, w_rows, has_row, has_output, 0, num_in, SEGMENT, EVEN, ROWS, OUTPUTS, STEP)
        for segment in range(1, SEGMENTS):
            total += _segment(
                x_rows,
                w_rows,
                has_row,
                has_output,
                segment * SEGMENT,
                num_in,
                SEGMENT,
                EVEN,
                ROWS,
                OUTPUTS,
                STEP,
            )
        if HAS_BIAS:
            shift = tl.load(bias + output, mask=output < num_out, other=0.0)
            total += shift.to(tl.float32)[None, :]
        place = row.to(tl.int64)[:, None] * num_out + output[None, :]
        tl.store(out + place, total.to(out.dtype.element_ty), mask=has_row & (output < num_out)[None, :])


@triton.jit
def _segment(
    x_rows, w_rows, has_row, has_output, first, num_in,
    SEGMENT: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Products of inputs first .. first + SEGMENT - 1, summed in order from zero."""
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for at in range(first, first + SEGMENT, STEP):
        if EVEN:
            left = tl.load(x_rows + at, mask=has_row, other=0.0)
            right = tl.load(w_rows + at, mask=has_output, other=0.0)
        else:
            has_input = (at + tl.arange(0, STEP) < num_in)[None, :]
            left = tl.load(x_rows + at, mask=has_row & has_input, other=0.0)
            right = tl.load(w_rows + at, mask=has_output & has_input, other=0.0)
        total = tl.dot(left, tl.trans(right), total)
    return total


@triton.jit
def _add_segments(
    partial,
    bias,
    out,
    num_items,
    num_out,
    SEGMENTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The segments' shares, added in order."""
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = item < num_items
    total = tl.load(partial + item, mask=inside, other=0.0)
    for segment in tl.static_range(1, SEGMENTS):
        total += tl.load(partial + (item + segment * num_items), mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + item % num_out, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + item, total.to(out.dtype.element_ty), mask=inside)
