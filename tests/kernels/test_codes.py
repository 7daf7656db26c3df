"""Weights as codes, and the reference of products with them."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels import native
from octavo.kernels.choose import Need, choose
from octavo.kernels.embedding import embed_codes
from octavo.kernels.linear import CODES_IMPLS, FORMATS, Codes, linear_codes, pack_codes, reference_codes
from octavo.planner import codes as planned
from tests.kernels.decoded import E4M3, decoded
from tests.kernels.numbers import DTYPES, F32, UNIT, assert_within, same_bits, seeded

SHAPES = [(1, 1), (5, 63), (16, 64), (37, 131), (9, 300)]
"""(O, I)"""


def coded(format: str, rows: torch.Tensor) -> Codes:
    made = Codes.empty(format, *rows.shape)
    assert made.fill(0, rows)
    return made


def seen(made: Codes) -> torch.Tensor:
    return decoded(made.format, made.codes, made.scales, made.num_in)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_are_what_the_layout_says(format: str, shape: tuple[int, int]) -> None:
    made = coded(format, seeded(*shape, seed=1))
    assert_within(made.numbers(), seen(made), F32 * seen(made).abs())
    assert same_bits(made.numbers(2, 4), made.numbers()[2:4])


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_are_those_of_the_compiled_kernels(
    format: str, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    """Their `Weight` rounds in C++."""
    if not native.instruction_sets():
        pytest.skip("the compiled module is not built")
    rows = seeded(*shape, seed=2, dtype=dtype)
    rows[0] *= 1e-3
    rows[-1, :7] = 0
    weight = native.module().Weight(native.instruction_sets()[0], format, *shape)
    assert weight.fill(0, 0, rows.to(torch.float32))
    want = torch.full(shape, torch.nan)
    weight.read(0, 0, want)
    found = coded(format, rows).numbers()
    assert torch.equal(found, want), f"{int((found != want).sum())} of {want.numel()} differ"


def test_fp8_takes_the_nearest_number_of_its_table() -> None:
    """One scale per output, max|w| / 448; halfway to the even code."""
    rows = seeded(37, 131, seed=1)
    rows[5] *= 1e-6
    rows[6] = 0
    rows[7] = torch.linspace(-0.02, 448.0, 131)
    made = coded("fp8", rows)
    assert_within(made.scales, rows.abs().amax(1).double() / 448, 2 * F32 * made.scales.double())
    table = E4M3[E4M3.isfinite()]
    scaled = rows.double() / made.scales.double().clamp(min=1e-300)[:, None]
    least = (scaled[..., None] - table).abs().amin(2)
    got = (scaled - E4M3[made.codes.view(torch.uint8).long()]).abs()
    assert_within(got, least, 4 * F32 * scaled.abs())
    assert made.numbers()[6].eq(0).all()
    assert E4M3[made.codes[7].view(torch.uint8)[-1].long()] == 448


@pytest.mark.parametrize("format", FORMATS)
def test_filled_in_pieces_is_filled_at_once(format: str) -> None:
    rows = seeded(53, 70, seed=1)
    parts = Codes.empty(format, 53, 70)
    for first, last in ((32, 53), (0, 16), (16, 32)):
        assert parts.fill(first, rows[first:last])
    assert same_bits(parts.numbers(), coded(format, rows).numbers())


@pytest.mark.parametrize("format", FORMATS)
def test_a_large_weight_is_rounded_piece_by_piece(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = seeded(53, 70, seed=1)
    want = coded(format, rows).numbers()
    monkeypatch.setattr("octavo.kernels.linear.codes._CHUNK_ITEMS", 700)
    assert same_bits(coded(format, rows).numbers(), want)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_said(format: str, dtype: torch.dtype) -> None:
    rows = seeded(37, 70, seed=1, dtype=dtype)
    assert Codes.empty(format, 37, 70).fill(0, rows * 1e30)
    for value in (torch.nan, torch.inf, -torch.inf):
        for at in ((0, 0), (15, 69), (36, 3)):
            bad = rows.clone()
            bad[at] = value
            assert not Codes.empty(format, 37, 70).fill(0, bad)
    rows[0, 0], rows[0, 1] = 3e38, -3e38
    ends = Codes.empty(format, 37, 70)
    assert not ends.fill(0, rows) or ends.numbers().isfinite().all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_are_those_planned(format: str, shape: tuple[int, int]) -> None:
    each = {"int8": shape[1] + 4, "fp8": shape[1] + 4, "int4": -(-shape[1] // 64) * 36}[format]
    made = Codes.empty(format, *shape)
    assert made.nbytes == shape[0] * each == planned.codes_bytes(*shape, format)
    assert (made.num_out, made.num_in) == shape


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_rows", [0, 1, 5, 33])
def test_the_reference_equals_the_product_in_float64(
    format: str, dtype: torch.dtype, biased: bool, shape: tuple[int, int], num_rows: int
) -> None:
    made, x = coded(format, seeded(*shape, seed=1)), seeded(num_rows, shape[1], seed=2, dtype=dtype)
    bias = seeded(shape[0], seed=3, dtype=dtype) if biased else None
    got = linear_codes(x, pack_codes(made, bias, dtype))
    assert (got.shape, got.dtype) == ((num_rows, shape[0]), dtype)
    matrix = seen(made)
    if format == "int4":
        matrix = matrix.to(dtype).double()
    want, mass = x.double() @ matrix.t(), x.double().abs() @ matrix.abs().t()
    if bias is not None:
        want, mass = want + bias.double(), mass + bias.double().abs()
    if num_rows:
        assert_within(got, want, (shape[1] + 4) * F32 * mass + UNIT[dtype] * want.abs() * (1 + 2**-7))


@pytest.mark.parametrize("format", FORMATS)
def test_company_and_the_cut_of_outputs_change_no_bit(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_codes(coded(format, seeded(77, 131, seed=1)), None, torch.bfloat16)
    x = seeded(40, 131, seed=2, dtype=torch.bfloat16)
    whole = linear_codes(x, packed)
    for first, last in ((0, 1), (3, 20), (39, 40)):
        assert same_bits(linear_codes(x[first:last], packed), whole[first:last])
    monkeypatch.setattr(reference_codes, "BLOCK_ITEMS", 131 * 16)
    assert_within(linear_codes(x, packed), whole.double(), UNIT[torch.bfloat16] * whole.double().abs() + 1e-5)


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_embedding_rows(format: str) -> None:
    made = coded(format, seeded(30, 20, seed=1))
    got = embed_codes(torch.tensor([3, 29, 3, 0]), made, torch.bfloat16)
    assert same_bits(got, made.numbers()[[3, 29, 3, 0]].to(torch.bfloat16))
    with pytest.raises(IndexError):
        embed_codes(torch.tensor([30]), made, torch.bfloat16)
    with pytest.raises(ValueError, match="want int64 tokens"):
        embed_codes(torch.tensor([1], dtype=torch.int32), made, torch.bfloat16)
    with pytest.raises(ValueError, match="not in int4"):
        embed_codes(torch.tensor([1]), coded("int4", seeded(3, 20, seed=1)), torch.bfloat16)


def test_what_does_not_fit_is_refused_with_its_shape() -> None:
    made = coded("int8", seeded(4, 3, seed=1))
    with pytest.raises(ValueError, match="codes are int8, fp8, int4, got 'int3'"):
        Codes.empty("int3", 1, 1)
    with pytest.raises(ValueError, match=r"want rows \[n, 3\] for outputs 3 to 3, got \[2, 3\]"):
        made.fill(3, seeded(2, 3, seed=1))
    with pytest.raises(ValueError, match=r"want a bias \[4\] of torch\.bfloat16, got \[4\] torch\.float32"):
        pack_codes(made, seeded(4, seed=1), torch.bfloat16)
    packed = pack_codes(made, None, torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"want x \[T, 3\] torch\.bfloat16 on cpu, got \[2, 3\] torch\.float32"
    ):
        linear_codes(seeded(2, 3, seed=1), packed)


@pytest.mark.parametrize("format", FORMATS)
def test_an_implementation_for_every_format_and_device(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.kernels.triton.util.find_spec", lambda _: object())
    op, gpu = f"linear {format}", Need(device="cuda", dtype=torch.bfloat16)
    assert choose(op, gpu, CODES_IMPLS)[0].name == "triton"
    assert choose(op, Need(device="cpu", dtype=torch.bfloat16), CODES_IMPLS)[0].name == "reference"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    chosen, passed_over = choose(op, gpu, CODES_IMPLS)
    if format == "fp8":
        assert chosen.name == "reference"
        assert "reads e4m3 from compute capability 8.9 on, and this device has 8.0" in passed_over[0]
    else:
        assert chosen.name == "triton"
