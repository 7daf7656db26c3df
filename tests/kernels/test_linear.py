from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from octavo.kernels.choose import Need, choose
from octavo.kernels.linear import IMPLS, linear, pack, reference
from octavo.kernels.tiles import Ladder
from tests.kernels.numbers import DTYPES, F32, UNIT, assert_within, same_bits, seeded

SHAPES = [(1, 1), (7, 3), (333, 77), (64, 257), (256, 768), (1025, 129), (4097, 65)]
"""(I, O)"""


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def product_and_bound(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The product in float64, and how far a float32 sum in any order, then rounded, may be from it."""
    wide, matrix = x.double(), weight.double().t()
    want, mass = wide @ matrix, wide.abs() @ matrix.abs()
    if bias is not None:
        want, mass = want + bias.double(), mass + bias.double().abs()
    in_float32 = (x.shape[1] + 2) * F32 * mass
    roundings = 1 if bias is None else 2
    return want, in_float32 + roundings * UNIT[x.dtype] * (
        mass if roundings == 2 else want.abs() + in_float32
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_rows", [0, 1, 5, 33, 261])
def test_equals_the_product_in_float64(
    shape: tuple[int, int], num_rows: int, biased: bool, dtype: torch.dtype
) -> None:
    width, num_out = shape
    weight, x = seeded(num_out, width, seed=1, dtype=dtype), seeded(num_rows, width, seed=2, dtype=dtype)
    bias = seeded(num_out, seed=3, dtype=dtype) if biased else None
    got = linear(x, pack(weight, bias))
    assert got.shape == (num_rows, num_out)
    assert got.dtype == dtype
    assert got.is_contiguous()
    if num_rows:
        assert_within(got, *product_and_bound(x, weight, bias))


FEW_COUNTS = [*range(1, 41), 63, 64, 65, 127, 200, 255, 256, 257, 299]


def assert_rows_alone_equal_rows_together(
    shape: tuple[int, int], dtype: torch.dtype, counts: Sequence[int]
) -> None:
    width, num_out = shape
    x = seeded(300, width, seed=2, dtype=dtype)
    for bias in (None, seeded(num_out, seed=3, dtype=dtype)):
        packed = pack(seeded(num_out, width, seed=1, dtype=dtype), bias)
        whole = linear(x, packed)
        for count in counts:
            for start in {0, (count * 7) % (301 - count), 300 - count}:
                rows = slice(start, start + count)
                assert same_bits(linear(x[rows], packed), whole[rows]), (
                    f"{count} rows from {start}: {packed.note}"
                )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_rows_bits_do_not_depend_on_how_many_rows_come_with_it(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    every_count = shape[0] * shape[1] < 30_000
    assert_rows_alone_equal_rows_together(shape, dtype, range(1, 301) if every_count else FEW_COUNTS)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(333, 77), (256, 768), (1025, 129)])
def test_nor_does_it_with_two_threads(shape: tuple[int, int], dtype: torch.dtype) -> None:
    assert_rows_alone_equal_rows_together(shape, dtype, (1, 2, 3, 5, 17, 40, 300))


@pytest.mark.usefixtures("two_threads")
def test_another_number_of_threads_is_tried_anew() -> None:
    packed = pack(seeded(77, 33, seed=1))
    assert list(packed.ladders) == [2]
    torch.set_num_threads(1)
    linear(seeded(3, 33, seed=2), packed)
    assert list(packed.ladders) == [2, 1]
    assert "1 threads: " in packed.note


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tiles", [(1,), (4,), (16, 48), (32, 256)])
def test_any_ladder_gives_every_row_its_bits(tiles: tuple[int, ...], dtype: torch.dtype) -> None:
    weight, x = seeded(77, 333, seed=1, dtype=dtype), seeded(290, 333, seed=2, dtype=dtype)
    packed = pack(weight)
    packed.ladders = {torch.get_num_threads(): Ladder(tiles, "set by the test")}
    whole = linear(x, packed)
    assert_within(whole, *product_and_bound(x, weight, None))
    order = torch.randperm(290, generator=torch.Generator().manual_seed(0))
    assert same_bits(linear(x[order], packed), whole[order])
    for start, end in ((0, 1), (3, 7), (100, 117), (1, 290)):
        assert same_bits(linear(x[start:end], packed), whole[start:end])


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_that_are_not_numbers_change_nothing(dtype: torch.dtype) -> None:
    packed, x = pack(seeded(65, 129, seed=1, dtype=dtype)), seeded(40, 129, seed=2, dtype=dtype)
    clean = linear(x, packed)
    x[::2] = torch.nan
    x[1] = torch.inf
    got = linear(x, packed)
    assert got[::2].isnan().all()
    assert same_bits(got[3::2], clean[3::2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [3, 300])
def test_views_and_odd_addresses_change_nothing(num_rows: int, dtype: torch.dtype) -> None:
    packed, x = pack(seeded(65, 129, seed=1, dtype=dtype)), seeded(num_rows, 129, seed=2, dtype=dtype)
    want = linear(x, packed)
    shifted = torch.empty(num_rows * 129 + 1, dtype=dtype)[1:].view(num_rows, 129).copy_(x)
    gapped = torch.full((num_rows, 200), torch.nan, dtype=dtype)[:, 50:179].copy_(x)
    turned = x.t().contiguous().t()
    for view in (shifted, gapped, turned):
        assert same_bits(linear(view, packed), want)


def test_the_weights_address_and_layout_change_nothing() -> None:
    weight, x = seeded(65, 129, seed=1), seeded(9, 129, seed=2)
    shifted = torch.empty(65 * 129 + 1)[1:].view(65, 129).copy_(weight)
    want = linear(x, pack(weight))
    assert same_bits(linear(x, pack(shifted)), want)
    assert same_bits(linear(x, pack(weight.t().contiguous().t())), want)


def test_one_copy_of_the_weight() -> None:
    weight, bias = seeded(64, 32, seed=1), seeded(64, seed=2)
    packed = pack(weight, bias)
    assert packed.weight.data_ptr() == weight.data_ptr()
    assert packed.nbytes == (64 * 32 + 64) * 4
    assert (packed.out_features, packed.in_features) == (64, 32)
    assert "gave equal bits" in packed.note or "one row at a time" in packed.note


def test_large_weights_are_tried_themselves_and_stand_for_their_shape_if_varied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reference, "_MAX_TWIN_ELEMENTS", 1000)
    monkeypatch.setattr(reference, "_ladders", {})
    zeros = pack(torch.zeros(70, 129))
    assert reference._ladders == {}  # any order of zeros gives zero: it proves nothing for another weight
    varied = pack(seeded(70, 129, seed=1))
    assert list(reference._ladders.values()) == [varied.ladder()]
    x = seeded(30, 129, seed=2)
    assert linear(x, zeros).eq(0).all()
    assert same_bits(linear(x[3:4], varied), linear(x, varied)[3:4])


def test_a_weight_with_no_rows() -> None:
    assert linear(seeded(5, 3, seed=1), pack(torch.empty(0, 3))).shape == (5, 0)


def test_what_does_not_fit_is_refused_with_its_shape() -> None:
    packed = pack(seeded(4, 3, seed=1))
    with pytest.raises(ValueError, match=r"want x \[T, 3\] for weight \[4, 3\], got \[2, 4\]"):
        linear(seeded(2, 4, seed=1), packed)
    with pytest.raises(ValueError, match=r"got \[3\]"):
        linear(seeded(3, seed=1), packed)
    with pytest.raises(ValueError, match=r"x is torch\.bfloat16"):
        linear(seeded(2, 3, seed=1, dtype=torch.bfloat16), packed)
    with pytest.raises(ValueError, match=r"\[4, 3\] and \[3\]"):
        pack(seeded(4, 3, seed=1), seeded(3, seed=1))
    with pytest.raises(ValueError, match=r"bias is torch\.bfloat16"):
        pack(seeded(4, 3, seed=1), seeded(4, seed=1, dtype=torch.bfloat16))


def test_the_reference_serves_every_device() -> None:
    for device, dtype in (("cpu", torch.bfloat16), ("cuda", torch.float32)):
        chosen, passed_over = choose("linear", Need(device=device, dtype=dtype), IMPLS)
        assert chosen.name == "reference"
        assert chosen.pack is not None
        assert [reason.partition(": ")[0] for reason in passed_over] == ["library", "triton"]
