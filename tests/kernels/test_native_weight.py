"""Weights in panels: what they hold of what was put in, whatever pieces it came in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.native_program import ISAS, THREADS, cpu, packed, seen
from tests.kernels.numbers import DTYPES, F32, UNIT, assert_within, same_bits, seeded

FORMATS = [("float32", 64), ("bfloat16", 64), ("int8", 64), ("int4", 32), ("int4", 64), ("int4", 128)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (37, 19), (50, 131)])
def test_numbers_are_kept_or_rounded_once(
    isa: str, dtype: torch.dtype, format: str, shape: tuple[int, int]
) -> None:
    rows = seeded(*shape, seed=1, dtype=dtype)
    rows[0, 0] = -0.0
    want = rows.to(getattr(torch, format)).float()
    assert same_bits(seen(packed(isa, format, rows), shape[0]), want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_within_half_a_step(isa: str, dtype: torch.dtype) -> None:
    """One scale per output, max|w| / 127; the largest weight is met."""
    rows = seeded(37, 131, seed=1, dtype=dtype)
    rows[5] *= 1e-6
    rows[6] = 0
    found, top = seen(packed(isa, "int8", rows), 37), rows.double().abs().amax(1, keepdim=True)
    assert_within(found, rows.double(), top / 127 / 2 + 4 * F32 * top)
    assert_within(found.abs().amax(1, keepdim=True), top, 2 * F32 * top)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_is_no_worse_than_the_whole_range(isa: str, group: int) -> None:
    """16 levels per group. The search may only lower the squared error below that of the group's own range.

    With the range kept, a weight is off by half a step, plus 8-bit rounding of the scale (15 steps of it) and of the
    minimum.
    """
    rows = seeded(37, 300, seed=1)
    rows[6] = 0
    found = seen(packed(isa, "int4", rows, group=group), 37)
    assert found[6].abs().max() <= 15e-20
    for first in range(0, 300, group):
        part = rows[:, first : first + group].double()
        got = found[:, first : first + group]
        low, high = part.amin(1, keepdim=True).clamp(max=0), part.amax(1, keepdim=True).clamp(min=0)
        step = (high - low) / 15
        each = step / 2 + UNIT[torch.bfloat16] * (high - low + low.abs()) + 16 * F32 * (high - low)
        assert ((got.double() - part).square().sum(1) <= (each.square() * part.shape[1]).squeeze(1)).all()
        assert all(len(levels.unique()) <= 16 for levels in got)
        # the range is shrunk to no less than three quarters
        assert ((got.double() - part).abs() <= each + 0.25 * torch.maximum(high, -low)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_w4a16_holds_what_int4_does(isa: str, group: int) -> None:
    rows = seeded(37, 131, seed=1)
    one, other = (packed(isa, format, rows, group=group) for format in ("int4", "w4a16"))
    assert same_bits(seen(one, 37), seen(other, 37))
    assert one.nbytes == other.nbytes


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("format", "group"), FORMATS)
@pytest.mark.parametrize("num_parts", [1, 2])
def test_filled_in_pieces_is_filled_at_once(isa: str, format: str, group: int, num_parts: int) -> None:
    rows = [seeded(53, 70, seed=i) for i in range(num_parts)]
    whole, parts = (cpu.Weight(isa, format, 53 * num_parts, 70, num_parts, False, group) for _ in range(2))
    for part, one in enumerate(rows):
        assert whole.fill(part, 0, one, 1)
    for first, last in ((32, 53), (0, 16), (16, 32)):
        for part, one in enumerate(rows):
            assert parts.fill(part, first, one[first:last], 2)
    assert whole.nbytes == parts.nbytes
    for part in range(num_parts):
        want = seen(whole, 53, part)
        assert same_bits(seen(parts, 53, part), want)
        some = torch.empty(9, 70)
        parts.read(part, 29, some)
        assert same_bits(some, want[29:38])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("format", "group"), FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_threads", THREADS)
def test_what_is_not_finite_is_said(
    isa: str, format: str, group: int, dtype: torch.dtype, num_threads: int
) -> None:
    rows = seeded(37, 70, seed=1, dtype=dtype)

    def fill(bad: Tensor) -> bool:
        return cpu.Weight(isa, format, 37, 70, 1, False, group).fill(0, 0, bad, num_threads)

    assert fill(rows)
    assert fill(rows * 1e30)
    for value in (torch.nan, torch.inf, -torch.inf):
        for at in ((0, 0), (15, 69), (36, 3), (20, 64)):
            bad = rows.clone()
            bad[at] = value
            assert not fill(bad)


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_finite_in_the_format_is_said(isa: str) -> None:
    """The largest float32 is no bfloat16."""
    rows = seeded(20, 65, seed=1)
    rows[3, 7] = torch.finfo(torch.float32).max
    assert not cpu.Weight(isa, "bfloat16", 20, 65).fill(0, 0, rows)
    assert cpu.Weight(isa, "float32", 20, 65).fill(0, 0, rows)
    assert cpu.Weight(isa, "int8", 20, 65).fill(0, 0, rows)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("format", "group"), FORMATS)
def test_the_ends_of_the_range(isa: str, format: str, group: int) -> None:
    """Rows of zeros give exact zeros or next to them; what is said to be finite is read as finite."""
    for size in (0.0, 1e-45, 1e-40, 1e-37, 1e-30, 1e30, 5e37):
        found = seen(packed(isa, format, seeded(20, 65, seed=1) * size, group=group), 20)
        assert found.isfinite().all()
        if size <= 1e-37:
            assert found.abs().max() <= (15e-20 if format == "int4" else 1e-36)
    rows = seeded(20, 65, seed=1)
    rows[0, 0], rows[0, 1] = 3e38, -3e38
    weight = cpu.Weight(isa, format, 20, 65, 1, False, group)
    assert not weight.fill(0, 0, rows) or seen(weight, 20).isfinite().all()


@pytest.mark.parametrize("isa", ISAS)
def test_sizes(isa: str) -> None:
    """Panels of 16 outputs, inputs padded to 64; int8 has a scale and a sum per output, int4 a line per group."""
    sizes = {"float32": 4 * 128, "bfloat16": 2 * 128, "int8": 128 + 8, "int4": 64 + 2 * 4}
    for format, each in sizes.items():
        weight = cpu.Weight(isa, format, 37, 70)
        assert (weight.nbytes, weight.num_out, weight.num_in) == (48 * each, 37, 70)
        assert cpu.Weight(isa, format, 37, 70, 1, True).nbytes == 48 * (each + 4)
    assert cpu.Weight(isa, "int4", 37, 70, 1, False, 32).nbytes == 48 * (64 + 4 * 4)
    assert cpu.Weight(isa, "int4", 37, 70, 1, False, 128).nbytes == 48 * (64 + 4)
