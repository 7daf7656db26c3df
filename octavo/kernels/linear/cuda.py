"""Tiles of tensor-core products with one order of summation. The contract is in the package.

The inner width is cut into segments, as many as the weight's shape asks for to keep the device busy when rows are few.
A segment is summed from nothing, step by step; segments are added in order. With few rows, segments are computed side
by side and added by another kernel; with many, one program goes through them itself. Row counts change which of the two
runs and how high the tiles are, neither of which touches the order in which a row's products are added.

A weight may lie in codes (`octavo.kernels.linear.codes`): a program reads a tile of them and makes numbers of x's dtype
in registers, which the tensor cores multiply as they multiply others. int8 and e4m3 codes are such numbers exactly, and
their scale multiplies the finished sum; an int4 weight is scale * code + minimum, rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.linear.codes import GROUP as CODE_GROUP
from octavo.kernels.linear.codes import Codes
from octavo.kernels.linear.reference_codes import check_bias
from octavo.kernels.triton import launch

CODES: tl.constexpr = tl.constexpr(CODE_GROUP)
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
CODE_FEW = Tile(64, 64, 128, 4, 4)
CODE_SOME = Tile(128, 64, 64, 4, 4)
CODE_MANY = Tile(128, 128, 64, 8, 3)

PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A weight as `linear` and `linear_codes` want it.

    weight       [O, I], contiguous; may be shared (tied embeddings). Or codes, as bytes
    bias         [O] or None
    in_features  I
    segment      inputs that are summed together
    dtype        of the activations
    format       PLAIN, or that of the codes
    scales       [O] float32; of int4 [O, groups] int32, each the bits of a scale and, above them, of a minimum
    """

    weight: Tensor
    bias: Tensor | None
    in_features: int
    segment: int
    dtype: torch.dtype
    format: str = PLAIN
    scales: Tensor | None = None

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def num_segments(self) -> int:
        return triton.cdiv(self.in_features, self.segment)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in (self.weight, self.scales, self.bias) if one is not None)

    @property
    def note(self) -> str:
        return f"{self.num_segments} segments of {self.segment} inputs"

    def tile(self, num_rows: int) -> Tile:
        if self.format == PLAIN:
            few, some, many = FEW, SOME, MANY if self.num_segments == 1 else MANY_SEGMENTS
        else:
            few, some, many = CODE_FEW, CODE_SOME, CODE_MANY
        return few if num_rows <= few.rows else some if num_rows <= FEW_ROWS else many


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
        weight=weight.contiguous(),
        bias=None if bias is None else bias.contiguous(),
        in_features=num_in,
        segment=segment_of(num_out, num_in),
        dtype=weight.dtype,
    )


def pack_codes(codes: Codes, bias: Tensor | None, dtype: torch.dtype) -> Packed:
    check_bias(codes, bias, dtype)
    scales = codes.scales
    if codes.format == "int4":
        scales = scales.view(torch.int32).squeeze(2)
    return Packed(
        weight=codes.codes.view(torch.uint8) if codes.format == "fp8" else codes.codes,
        bias=None if bias is None else bias.contiguous(),
        in_features=codes.num_in,
        segment=segment_of(codes.num_out, codes.num_in),
        dtype=dtype,
        format=codes.format,
        scales=scales,
    )


def segment_of(num_out: int, num_in: int) -> int:
    """Inputs of a segment: of the weight's shape alone."""
    wanted = triton.cdiv(WANTED_PROGRAMS, triton.cdiv(num_out, FEW.outputs))
    number = max(1, min(wanted, num_in // MIN_SEGMENT, 8))
    whole = triton.cdiv(num_in, number)
    return triton.cdiv(whole, 2 * STEP) * 2 * STEP


def linear(x: Tensor, weight: Packed) -> Tensor:
    num_in, device = weight.in_features, weight.weight.device
    if x.ndim != 2 or x.shape[1] != num_in or x.dtype != weight.dtype or x.device != device:
        raise ValueError(
            f"linear: want x [T, {num_in}] {weight.dtype} on {device}, got {list(x.shape)} {x.dtype} on {x.device}"
        )
    x = x.contiguous()
    num_rows, num_segments = x.shape[0], weight.num_segments
    out = torch.empty(num_rows, weight.out_features, dtype=x.dtype, device=x.device)
    if not num_rows:
        return out
    if num_rows > FEW_ROWS or num_segments == 1:
        _launch(x, weight, out, 1)
        return out
    partial = torch.empty(num_segments, *out.shape, dtype=torch.float32, device=x.device)
    _launch(x, weight, partial, num_segments)
    block = 1024
    launch(
        _add_segments, (triton.cdiv(out.numel(), block),),
        partial, weight.scales, weight.bias, out, out.numel(), weight.out_features,
        SEGMENTS=num_segments, SCALED=weight.format in ("int8", "fp8"), HAS_BIAS=weight.bias is not None, BLOCK=block,
    )  # fmt: skip
    return out


linear_codes = linear


def _launch(x: Tensor, weight: Packed, out: Tensor, side_by_side: int) -> None:
    (num_rows, num_in), num_out, tile = x.shape, weight.out_features, weight.tile(len(x))
    row_tiles, out_tiles = triton.cdiv(num_rows, tile.rows), triton.cdiv(num_out, tile.outputs)
    launch(
        _product,
        (row_tiles * out_tiles, side_by_side),
        x,
        weight.weight,
        weight.scales,
        weight.bias,
        out,
        num_rows,
        num_out,
        num_in,
        FORMAT=weight.format,
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


@triton.jit(do_not_specialize=["num_rows"])
def _product(
    x, weight, scales, bias, out, num_rows, num_out, num_in, FORMAT: tl.constexpr,
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
    x_rows = x + row.to(tl.int64)[:, None] * num_in
    width, groups = num_in, 0
    if FORMAT == "int4":
        groups = tl.cdiv(num_in, CODES)
        width = groups * (CODES // 2)
    w_rows, s_rows = weight + output.to(tl.int64)[:, None] * width, scales
    if FORMAT == "int4":
        s_rows = scales + output.to(tl.int64)[:, None] * groups
    has_row, has_output = (row < num_rows)[:, None], (output < num_out)[:, None]
    first = tl.program_id(1) * SEGMENT if APART else 0
    total = _segment(
        x_rows,
        w_rows,
        s_rows,
        has_row,
        has_output,
        first,
        num_in,
        width,
        FORMAT,
        SEGMENT,
        EVEN,
        ROWS,
        OUTPUTS,
        STEP,
    )
    if APART:
        place = (tl.program_id(1).to(tl.int64) * num_rows + row)[:, None] * num_out + output[None, :]
        tl.store(out + place, total, mask=has_row & (output < num_out)[None, :])
    else:
        for segment in range(1, SEGMENTS):
            total += _segment(
                x_rows, w_rows, s_rows, has_row, has_output, segment * SEGMENT, num_in, width,
                FORMAT, SEGMENT, EVEN, ROWS, OUTPUTS, STEP,
            )  # fmt: skip
        if FORMAT == "int8" or FORMAT == "fp8":
            total *= tl.load(scales + output, mask=output < num_out, other=0.0)[None, :]
        if HAS_BIAS:
            shift = tl.load(bias + output, mask=output < num_out, other=0.0)
            total += shift.to(tl.float32)[None, :]
        place = row.to(tl.int64)[:, None] * num_out + output[None, :]
        tl.store(out + place, total.to(out.dtype.element_ty), mask=has_row & (output < num_out)[None, :])


@triton.jit
def _segment(
    x_rows, w_rows, s_rows, has_row, has_output, first, num_in, width, FORMAT: tl.constexpr,
    SEGMENT: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Products of inputs first .. first + SEGMENT - 1, summed in order from zero."""
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for at in range(first, first + SEGMENT, STEP):
        step = at + tl.arange(0, STEP)[None, :]
        has_input = has_row if EVEN else has_row & (step < num_in)
        left = tl.load(x_rows + step, mask=has_input, other=0.0)
        if FORMAT == "int4":
            right = _int4(w_rows, s_rows, has_output, at, width, left.dtype, EVEN, OUTPUTS, STEP)
        else:
            has_weight = has_output if EVEN else has_output & (step < width)
            right = _number(tl.load(w_rows + step, mask=has_weight, other=0), left.dtype, FORMAT)
        total = tl.dot(left, tl.trans(right), total)
    return total


@triton.jit
def _number(code, dtype: tl.constexpr, FORMAT: tl.constexpr):
    """What a code is before its scale: exact. By float32, to which a float16 is widened faster than to bfloat16."""
    if FORMAT == "fp8":
        code = code.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(tl.float32)
    return code.to(dtype)


@triton.jit
def _int4(
    w_rows, s_rows, has_output, at, width, dtype: tl.constexpr,
    EVEN: tl.constexpr, OUTPUTS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Weights [OUTPUTS, STEP] of inputs at .. at + STEP - 1."""
    step = at // 2 + tl.arange(0, STEP // 2)[None, :]
    group = at // CODES + tl.arange(0, STEP // CODES)[None, :]
    has_code = has_output if EVEN else has_output & (step < width)
    has_group = has_output if EVEN else has_output & (group < width // (CODES // 2))
    pair = tl.load(w_rows + step, mask=has_code, other=0)
    both = tl.load(s_rows + group, mask=has_group, other=0)
    scale = (both << 16).to(tl.float32, bitcast=True)[:, :, None]
    least = ((both >> 16) << 16).to(tl.float32, bitcast=True)[:, :, None]
    code = tl.interleave(pair & 15, pair >> 4).to(tl.float32)
    code = tl.reshape(code, [OUTPUTS, STEP // CODES, CODES])
    return tl.reshape(tl.fma(code, scale, least), [OUTPUTS, STEP]).to(dtype)


@triton.jit
def _add_segments(
    partial, scales, bias, out, num_items, num_out,
    SEGMENTS: tl.constexpr, SCALED: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The segments' shares, added in order."""
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = item < num_items
    total = tl.load(partial + item, mask=inside, other=0.0)
    for segment in tl.static_range(1, SEGMENTS):
        total += tl.load(partial + (item + segment * num_items), mask=inside, other=0.0)
    if SCALED:
        total *= tl.load(scales + item % num_out, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + item % num_out, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + item, total.to(out.dtype.element_ty), mask=inside)
