"""Products of the compiled kernels against float64, and a row's bits in any company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.native_program import ISAS, ON_PAIRS, ON_TILES, THREADS, gated, multiply, packed, seen
from tests.kernels.numbers import DTYPES, F32, UNIT, assert_within, same_bits, seeded
from tests.kernels.test_linear import product_and_bound

FORMATS = [
    ("float32", 64), ("bfloat16", 64), ("int8", 64), ("int4", 32), ("int4", 64), ("int4", 128),
    ("w4a16", 32), ("w4a16", 64), ("w4a16", 128),
]  # fmt: skip
SHAPES = [(1, 1), (7, 3), (33, 16), (65, 37), (130, 50), (300, 95)]
"""(I, O)"""
ROUNDED = ("int8", "int4")


def codes_of(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows as whole numbers times a scale: (codes, scale [T, 1], how far a code may be off at a rounding tie)."""
    top = x.float().abs().amax(-1, keepdim=True)
    scale = top / 127
    ratio = torch.where(top > 0, x.double() * 127 / top.double(), 0.0)
    codes = ratio.round()
    # two float32 roundings of the ratio may carry it over the middle between two codes
    unsure = ((ratio - ratio.floor() - 0.5).abs() <= 3 * F32 * ratio.abs()).double()
    return codes, scale.double(), unsure


def rounded_product(
    format: str, group: int, x: Tensor, matrix: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Product of quantized rows with what the weight holds, and how far the kernel may be from it.

    Sums of codes are whole numbers, and exact. int8: two products and a conversion. int4: every group adds a scaled
    sum and a minimum, then one product; the reading of a weight rounds once, too.
    """
    codes, scale, unsure = codes_of(x)
    wide = matrix.double().t()
    want, mass = codes * scale @ wide, (codes * scale).abs() @ wide.abs()
    num_groups = -(-x.shape[1] // group) if format == "int4" else 1
    if format == "int4":  # scale * code and minimum cancel each other: both are at most the range of a group
        mass = (codes * scale).abs() @ _range(matrix, group).double().t()
    bound = (unsure * scale) @ wide.abs() + (2 * num_groups + 5) * F32 * mass
    if bias is not None:
        want, mass = want + bias.double(), mass + bias.double().abs()
        bound = bound + F32 * mass
    return want, bound + UNIT[dtype] * (want.abs() + bound)


def _range(matrix: Tensor, group: int) -> Tensor:
    """Of every weight, 15 steps plus the minimum of its group, at most three times the largest in it."""
    padded = torch.nn.functional.pad(matrix.abs(), (0, -matrix.shape[1] % group))
    top = padded.unflatten(1, (-1, group)).amax(-1, keepdim=True).expand(-1, -1, group).flatten(1)
    return 4 * top[:, : matrix.shape[1]]


def coded_product(group: int, x: Tensor, matrix: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """In every group products with codes and the row itself are summed, one rounding for each input; then a scaled sum
    and a minimum are added. The reading of a weight rounds once, too."""
    wide = x.double()
    want = wide @ matrix.double().t()
    mass = wide.abs() @ _range(matrix, group).double().t()
    bound = (group + 2 * -(-x.shape[1] // group) + 2) * F32 * mass
    if bias is not None:
        want = want + bias.double()
        bound = bound + F32 * (mass + bias.double().abs())
    return want, bound + UNIT[x.dtype] * (want.abs() + bound)


def wanted(format: str, group: int, x: Tensor, matrix: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    if format in ROUNDED:
        return rounded_product(format, group, x, matrix, bias, x.dtype)
    if format == "w4a16":
        return coded_product(group, x, matrix, bias)
    return product_and_bound(x, matrix, bias)


def as_multiplied(isa: str, format: str, x: Tensor) -> Tensor:
    """Tile registers, and products of pairs, multiply bfloat16 with nothing else; w4a16 says so by its name."""
    only = format == "w4a16" or (format == "bfloat16" and isa in (*ON_TILES, *ON_PAIRS))
    return x.bfloat16().to(x.dtype) if only else x


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("format", "group"), FORMATS)
@pytest.mark.parametrize("biased", [False, True])
def test_equals_the_product_in_float64(
    isa: str, format: str, group: int, biased: bool, dtype: torch.dtype
) -> None:
    for width, num_out in SHAPES:
        weight = packed(
            isa, format, seeded(num_out, width, seed=1, dtype=dtype), group=group,
            bias=seeded(num_out, seed=3, dtype=dtype) if biased else None,
        )  # fmt: skip
        bias = seeded(num_out, seed=3, dtype=dtype) if biased else None
        matrix = seen(weight, num_out)
        for num_rows in (1, 2, 5, 13, 33, 130):
            x = seeded(num_rows, width, seed=num_rows, dtype=dtype)
            got = multiply(isa, weight, x, num_threads=1 + num_rows % 2)
            x = as_multiplied(isa, format, x)
            assert_within(got, *wanted(format, group, x, matrix, bias))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("format", "group"), FORMATS)
def test_so_many_panels_that_a_thread_takes_several(
    isa: str, format: str, group: int, dtype: torch.dtype
) -> None:
    weight = packed(isa, format, seeded(777, 333, seed=1, dtype=dtype), group=group)
    matrix, x = seen(weight, 777), seeded(25, 333, seed=2, dtype=dtype)
    want, bound = wanted(format, group, as_multiplied(isa, format, x), matrix, None)
    whole = multiply(isa, weight, x)
    assert_within(whole, want, bound)
    for num_threads in THREADS:
        for count in (1, 3, 24):
            assert same_bits(multiply(isa, weight, x[:count], num_threads=num_threads), whole[:count])


def whole_numbers(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scale [N, 1] of rows, each step in float32 as the format says: max / 127, and rows times 127 / max."""
    top = rows.float().abs().amax(-1, keepdim=True)
    full = torch.full_like(top, 127.0)
    return (rows.float() * (full / top)).round().double(), top / full


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_known_to_the_bit(isa: str, dtype: torch.dtype) -> None:
    """Sums of codes are exact in any order; then one conversion and two products in float32."""
    for width, num_out in ((1, 1), (65, 37), (300, 95), (2050, 20)):
        rows = seeded(num_out, width, seed=1, dtype=dtype)
        codes, scale = whole_numbers(rows)
        weight = packed(isa, "int8", rows)
        assert torch.equal(seen(weight, num_out), codes.float() * scale)
        for num_rows in (1, 7, 33):
            x = seeded(num_rows, width, seed=num_rows, dtype=dtype)
            x_codes, x_scale = whole_numbers(x)
            sums = (x_codes @ codes.t()).float() + 0.0
            assert same_bits(multiply(isa, weight, x), (sums * (scale.t() * x_scale)).to(dtype))


def normal(x: Tensor) -> Tensor:
    return torch.where(x.abs() < torch.finfo(torch.float32).tiny, 0.0, x)


def sum_of_pairs(x: Tensor, rows: Tensor) -> Tensor:
    """Of every pair of inputs the second product is added, then the first, each sum rounded once to float32; numbers
    below the normal ones are taken, and given, as 0 (Intel SDM volume 2, VDPBF16PS).

    A product has 16 bits. Where it is near half a unit of the sum, float64 holds both, so that rounding from there is
    rounding once.
    """
    sums = torch.zeros(len(x), len(rows))
    x, rows = normal(x.double()), normal(rows.double())
    for first in range(0, x.shape[1], 2):
        for k in (first + 1, first):
            if k < x.shape[1]:
                sums = normal((sums.double() + x[:, k, None] * rows[None, :, k]).float())
    return sums


@pytest.mark.parametrize("isa", ON_PAIRS)
@pytest.mark.parametrize("scale", [1.0, 2.0**-60, 2.0**-63, 2.0**-128])
def test_products_of_pairs_are_known_to_the_bit(isa: str, scale: float) -> None:
    """At the smaller scales products, or the numbers themselves, are below the normal ones."""
    if isa not in ISAS:
        pytest.skip(f"{isa} does not run here")
    for width, num_out in ((1, 1), (65, 37), (300, 95)):
        rows = (seeded(num_out, width, seed=1) * scale).bfloat16()
        weight = packed(isa, "bfloat16", rows)
        for num_rows in (1, 13, 40):
            x = (seeded(num_rows, width, seed=num_rows) * scale).bfloat16()
            found = multiply(isa, weight, x)
            assert torch.equal(found, sum_of_pairs(x, rows).bfloat16())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("format", "group"), FORMATS)
def test_added_to_what_is_there_and_put_in_a_column(
    isa: str, format: str, group: int, dtype: torch.dtype
) -> None:
    """The product is rounded before it is added, as ops one by one would; columns beside it keep their bits."""
    weight = packed(isa, format, seeded(37, 65, seed=1, dtype=dtype), group=group)
    for num_rows in (1, 7, 31):
        x = seeded(num_rows, 65, seed=2, dtype=dtype)
        plain = multiply(isa, weight, x)
        before = seeded(num_rows, 60, seed=4, dtype=dtype)
        stored = multiply(isa, weight, x, onto=before, width=60, column=11)
        assert same_bits(stored[:, 11:48], plain)
        added = multiply(isa, weight, x, onto=before, width=60, column=11, finish="add", num_threads=2)
        total = (before[:, 11:48].float() + plain.float()).to(dtype)
        assert same_bits(added[:, 11:48], total)
        for found in (stored, added):
            assert same_bits(found[:, :11], before[:, :11])
            assert same_bits(found[:, 48:], before[:, 48:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "int4", "w4a16"])
@pytest.mark.parametrize("biased", [False, True])
def test_gate(isa: str, format: str, biased: bool, dtype: torch.dtype) -> None:
    """silu(gate) * up of products rounded to the dtype, silu rounded as well: those products are known to the bit."""
    gate, up = (seeded(37, 65, seed=i, dtype=dtype) for i in (1, 2))
    biases = (seeded(37, seed=3, dtype=dtype), seeded(37, seed=4, dtype=dtype)) if biased else None
    weight = gated(isa, format, gate, up, biases=biases)
    apart = [
        packed(isa, format, rows, bias=biases[i] if biases else None) for i, rows in enumerate((gate, up))
    ]
    for part, alone in enumerate(apart):
        assert same_bits(seen(weight, 37, part), seen(alone, 37))
    for num_rows in (1, 2, 9, 40):
        x = (seeded(num_rows, 65, seed=5) / 4).to(dtype)
        left, right = (multiply(isa, alone, x).double() for alone in apart)
        silu = left * torch.sigmoid(left)
        near = 8 * F32 * silu.abs()  # exp within 2 units, a sum and a quotient
        bound = (near + UNIT[dtype] * (silu.abs() + near)) * right.abs()
        want = silu * right
        got = multiply(isa, weight, x, finish="gate", num_threads=2)
        assert_within(got, want, bound + UNIT[dtype] * (want.abs() + bound) + 2.0**-133)


COUNTS = [*range(1, 41), 121, 241]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "int4", "w4a16"])
def test_a_rows_bits_never_depend_on_its_company(isa: str, format: str, dtype: torch.dtype) -> None:
    """Any number of rows, any place among them, neighbours that are not finite, one thread or two."""
    width, num_out = (65, 37) if isa == "emulated" else (300, 95)
    weight = packed(isa, format, seeded(num_out, width, seed=1, dtype=dtype))
    x = seeded(241, width, seed=2, dtype=dtype)
    whole = multiply(isa, weight, x)
    assert same_bits(multiply(isa, weight, x, num_threads=2), whole)
    for count in COUNTS:
        start = count * 7 % (242 - count)
        rows = slice(start, start + count)
        assert same_bits(multiply(isa, weight, x[rows], num_threads=1 + count % 2), whole[rows]), count
    order = torch.randperm(241, generator=torch.Generator().manual_seed(0))
    assert same_bits(multiply(isa, weight, x[order]), whole[order])
    for count in (3, 13, 40, 241):
        spoilt = x[:count].clone()
        spoilt[1::3], spoilt[2::3] = torch.nan, torch.inf
        assert same_bits(multiply(isa, weight, spoilt, num_threads=2)[::3], whole[:count:3]), count


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "int4", "w4a16"])
@pytest.mark.parametrize("num_threads", THREADS)
def test_a_row_that_is_not_finite_comes_out_so(
    isa: str, format: str, dtype: torch.dtype, num_threads: int
) -> None:
    weight = packed(isa, format, seeded(37, 65, seed=1, dtype=dtype))
    for value in (torch.nan, torch.inf, -torch.inf):
        for count in (1, 5, 14, 40):
            for column in (0, 31, 64):
                x = seeded(count, 65, seed=2, dtype=dtype)
                x[count // 2, column] = value
                got = multiply(isa, weight, x, num_threads=num_threads)
                bad = got[count // 2]
                assert not bad.isfinite().any()
                if format in ROUNDED or value != value:
                    assert bad.isnan().all()
                assert got[torch.arange(count) != count // 2].isfinite().all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", ROUNDED)
def test_zeros_and_the_ends_of_the_range(isa: str, format: str) -> None:
    """Rows of zeros give zeros; rows of the largest and of very small numbers are as near as any."""
    weight = packed(isa, format, seeded(20, 65, seed=1))
    matrix = seen(weight, 20)
    assert multiply(isa, weight, torch.zeros(3, 65)).eq(0).all()
    for size in (1e-30, 1e-20, 1e20, 1e35):
        x = seeded(4, 65, seed=2) * size
        assert_within(multiply(isa, weight, x), *rounded_product(format, 64, x, matrix, None, torch.float32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", ROUNDED)
def test_rows_too_small_for_a_scale_are_zeros(isa: str, format: str) -> None:
    """127 over their largest number would be no float32."""
    weight = packed(isa, format, seeded(20, 65, seed=1))
    for size in (1e-32, 1e-37, 1e-40, 1e-45):
        x = seeded(5, 65, seed=2)
        want = multiply(isa, weight, x)
        x[1::2] *= size
        got = multiply(isa, weight, x)
        assert got[1::2].eq(0).all()
        assert same_bits(got[::2], want[::2])
