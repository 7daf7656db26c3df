"""The Triton kernels under Triton's interpreter, against the oracles of the contracts; on a device where there is one.

The interpreter does in numpy what the kernels say, so their arithmetic, masks and addresses are tested everywhere. Of
the order in which a tensor core sums it knows nothing: equal bits in any company are shown on a device.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.exec import warm
from octavo.kernels.kv_store.fp8 import Fp8Blocks
from octavo.kernels.linear import FORMATS, Codes
from tests.kernels.decoded import decoded, fp8_memory, left_of
from tests.kernels.dense_attention import Case, dense, page, random_case
from tests.kernels.heads import EPS, random_heads
from tests.kernels.heads import check as check_heads
from tests.kernels.numbers import F32, UNIT, assert_within, same_bits, seeded

ON_DEVICE = torch.cuda.is_available()
DEVICE = "cuda" if ON_DEVICE else "cpu"
DTYPES = (torch.bfloat16, torch.float16) if ON_DEVICE else (torch.float16,)
"""The interpreter takes bfloat16 for what its bits are as integers in products, and cuts where it should round."""


if not ON_DEVICE:
    from triton.runtime import interpreter

    patched = interpreter._patch_lang_tensor

    def with_index(tensor: Any, scope: Any) -> None:
        """The interpreter of Triton 3.6 takes the bounds of loops as arrays of one number, which NumPy 2.4 refuses."""
        patched(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = with_index


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What kernels write to holds NaN before: whatever they leave out shows."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            empty = make(*args, **kwargs)
            return empty.fill_(torch.nan) if empty.dtype.is_floating_point else empty

        return made

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))


def kernels(op: str) -> ModuleType:
    return import_module(f"octavo.kernels.{op}.cuda")


def to(x: Tensor) -> Tensor:
    return x.to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [33, 128, 1027])
def test_norms(width: int, dtype: torch.dtype) -> None:
    wide = seeded(9, 2 * width, seed=1, dtype=dtype)
    x, y, weight = wide[:, width:], seeded(9, width, seed=2, dtype=dtype), seeded(width, seed=3, dtype=dtype)
    normed, total = kernels("norm").add_rms_norm(to(wide)[:, width:], to(y), to(weight), 1e-5)
    assert same_bits(total.cpu(), x + y)
    exact = total.cpu().double()
    want = exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_within(
        normed.cpu(), want, want.abs() * (2 * UNIT[dtype] * (1 + UNIT[dtype]) + (width / 2 + 4) * F32) + 1e-7
    )
    assert same_bits(kernels("norm").rms_norm(total[4:5], to(weight), 1e-5), normed[4:5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate(dtype: torch.dtype) -> None:
    both = 4 * seeded(5, 2 * 1100, seed=1, dtype=dtype)
    gate, up = both.split(1100, dim=1)
    got = kernels("activation").silu_mul(*to(both).split(1100, dim=1))
    want = gate.double() / (1 + (-gate.double()).exp()) * up.double()
    assert_within(got.cpu(), want, want.abs() * (2 * UNIT[dtype] * (1 + UNIT[dtype]) + 6 * F32) + 1e-7)


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("T", "H", "K", "D", "P"), [(1, 1, 1, 2, 1), (5, 6, 2, 20, 3), (7, 5, 5, 64, 16), (3, 9, 3, 128, 5)]
)
def test_rotate_and_write(T: int, H: int, K: int, D: int, P: int, dtype: torch.dtype, norms: bool) -> None:
    case = random_heads(T, H, K, D, P, dtype, norms=norms)
    blocks = to(case.blocks())
    weights = [None if weight is None else to(weight) for weight in (case.q_norm, case.k_norm)]
    turned = kernels("rope").rotate_and_write(
        *case.split(DEVICE), to(case.cos), to(case.sin), blocks, to(case.slots), *weights, EPS
    )
    check_heads(case, turned.cpu(), blocks.cpu())


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("T", "H", "K", "D", "P"), [(1, 1, 1, 2, 1), (5, 6, 2, 20, 3), (7, 5, 5, 64, 16), (3, 9, 3, 128, 5)]
)
def test_rotate_and_write_in_fp8(
    T: int, H: int, K: int, D: int, P: int, dtype: torch.dtype, norms: bool
) -> None:
    """What plain blocks hold after it, rounded: to the byte. Slots that are not named keep what they hold."""
    case = random_heads(T, H, K, D, P, dtype, norms=norms)
    case.rows.mul_(torch.logspace(-4, 2, T)[:, None])
    case.rows[T // 2, -1] = torch.inf
    weights = [None if weight is None else to(weight) for weight in (case.q_norm, case.k_norm)]
    angles, turn = (to(case.cos), to(case.sin)), kernels("rope").rotate_and_write
    plain = to(case.blocks())
    want = turn(*case.split(DEVICE), *angles, plain, to(case.slots), *weights, EPS)
    memory = fp8_memory(plain.cpu())
    made = fp8_blocks(torch.full_like(memory, 0xAA), P, K, D)
    got = turn(*case.split(DEVICE), *angles, made, to(case.slots), *weights, EPS)
    assert same_bits(got, want)
    block, offset = case.slots // P, case.slots % P
    written = torch.zeros(len(memory), P, dtype=torch.bool)
    written[block, offset] = True
    expected = Fp8Blocks(memory=memory, block_tokens=P, num_kv_heads=K, head_dim=D)
    for found, wanted in (
        (made.codes.view(torch.uint8), expected.codes.view(torch.uint8)),
        (made.exponents, expected.exponents),
    ):
        by_slot, wanted_by_slot = found.cpu().transpose(1, 2), wanted.transpose(1, 2)
        assert torch.equal(by_slot[written], wanted_by_slot[written])
        assert by_slot[~written].eq(0xAA).all()


def test_rows_without_a_place_share_the_null_block() -> None:
    """Rows that only fill a batch up are all stored in slot 0; the others keep what is theirs."""
    case = random_heads(3, 2, 1, 16, 4, DTYPES[0], norms=False)
    alone, padded = to(case.blocks()), to(case.blocks())
    turn, heads = kernels("rope").rotate_and_write, case.split(DEVICE)
    want = turn(*heads, to(case.cos), to(case.sin), alone, to(case.slots))
    longer = [torch.cat((x, x[:2])) for x in (*heads, to(case.cos), to(case.sin))]
    got = turn(*longer, padded, to(torch.cat((case.slots, torch.zeros(2, dtype=torch.int64)))))
    assert same_bits(got[:3], want)
    assert same_bits(padded[1:], alone[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_out", "num_in"), [(77, 333), (64, 1024), (200, 1536), (2, 64)])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 70, 131])
def test_product(num_rows: int, has_bias: bool, num_out: int, num_in: int, dtype: torch.dtype) -> None:
    """Few rows, more, and many: each runs another way through the segments."""
    weight, x = seeded(num_out, num_in, seed=1, dtype=dtype), seeded(num_rows, num_in, seed=2, dtype=dtype)
    bias = seeded(num_out, seed=3, dtype=dtype) if has_bias else None
    packed = kernels("linear").pack(to(weight), None if bias is None else to(bias))
    assert num_in < 1024 or packed.num_segments > 1
    got = kernels("linear").linear(to(x), packed)
    want, mass = x.double() @ weight.double().t(), x.double().abs() @ weight.double().abs().t()
    if bias is not None:
        want, mass = want + bias.double(), mass + bias.double().abs()
    assert_within(got.cpu(), want, (num_in + 2) * F32 * mass + UNIT[dtype] * want.abs() * (1 + 2**-7))


def coded(format: str, rows: Tensor) -> Codes:
    made = Codes.empty(format, *rows.shape, DEVICE)
    assert made.fill(0, to(rows))
    return made


def held_in(made: Codes) -> Tensor:
    return decoded(made.format, made.codes.cpu(), made.scales.cpu(), made.num_in)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("num_out", "num_in"), [(77, 333), (64, 1024), (200, 1536), (2, 64), (65, 1090)])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 70, 131])
def test_product_with_codes(
    num_rows: int, has_bias: bool, num_out: int, num_in: int, format: str, dtype: torch.dtype
) -> None:
    """An int4 weight is rounded to x's dtype, once; int8 and fp8 are not."""
    made, x = coded(format, seeded(num_out, num_in, seed=1)), seeded(num_rows, num_in, seed=2, dtype=dtype)
    bias = seeded(num_out, seed=3, dtype=dtype) if has_bias else None
    packed = kernels("linear").pack_codes(made, None if bias is None else to(bias), dtype)
    assert num_in < 1024 or packed.num_segments > 1
    assert packed.nbytes == made.nbytes + (0 if bias is None else bias.nbytes)
    got = kernels("linear").linear_codes(to(x), packed)
    weight = held_in(made)
    if format == "int4":
        weight = weight.to(dtype).double()
    want, mass = x.double() @ weight.t(), x.double().abs() @ weight.abs().t()
    if bias is not None:
        want, mass = want + bias.double(), mass + bias.double().abs()
    assert_within(got.cpu(), want, (num_in + 4) * F32 * mass + UNIT[dtype] * want.abs() * (1 + 2**-7))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_fp8_code(dtype: torch.dtype) -> None:
    """All 254 numbers of e4m3, one to an output."""
    bytes_of = torch.tensor([byte for byte in range(256) if byte & 127 != 127], dtype=torch.uint8)
    codes = bytes_of[:, None].repeat(1, 64).view(torch.float8_e4m3fn)
    made = Codes(format="fp8", num_in=64, codes=to(codes), scales=to(torch.ones(len(codes))))
    x = torch.zeros(1, 64, dtype=dtype)
    x[0, 17] = 1
    got = kernels("linear").linear_codes(to(x), kernels("linear").pack_codes(made, None, dtype))
    assert torch.equal(got.cpu()[0].double(), held_in(made)[:, 17])


@pytest.mark.parametrize("format", ["plain", *FORMATS])
@pytest.mark.parametrize("num_in", [1536, 1300])
def test_whole_numbers_give_the_same_bits_in_any_number_of_rows(format: str, num_in: int) -> None:
    """Their sums are exact in every order, so what is left is what few, some and many rows do to them: scale, bias,
    rounding."""
    dtype, draw = DTYPES[0], torch.Generator().manual_seed(1)
    x = torch.randint(-2, 3, (300, num_in), generator=draw).to(dtype)
    weight = torch.randint(-4, 5, (70, num_in), generator=draw).to(dtype)
    bias = to(seeded(70, seed=3, dtype=dtype))
    if format == "plain":
        packed = kernels("linear").pack(to(weight), bias)
    else:
        made = coded(format, weight)
        if format == "int4":
            made.scales.copy_(torch.tensor([0.25, -2.0]))
        packed = kernels("linear").pack_codes(made, bias, dtype)
    assert packed.num_segments > 1
    whole = kernels("linear").linear(to(x), packed)
    assert whole.isfinite().all()
    for first, last in ((0, 1), (3, 67), (5, 70), (100, 228), (100, 229)):
        assert same_bits(kernels("linear").linear(to(x[first:last]), packed), whole[first:last])


def test_a_segment_depends_on_the_weight_alone() -> None:
    segment_of = kernels("linear").segment_of
    for num_out, num_in in [
        (4096, 4096),
        (6144, 4096),
        (28672, 4096),
        (4096, 14336),
        (128256, 4096),
        (1024, 1024),
    ]:
        segment = segment_of(num_out, num_in)
        assert segment % 128 == 0
        assert segment * (-(-num_in // segment) - 1) < num_in
    assert segment_of(28672, 4096) == 4096
    assert segment_of(4096, 4096) < 4096


def test_steps_before_the_first_request_start_every_kernel() -> None:
    """Every tile of a product, and every number of counts that attention reads."""
    weight = to(seeded(64, 1024, seed=1, dtype=DTYPES[0]))
    for packed in (
        kernels("linear").pack(weight),
        kernels("linear").pack_codes(coded("int8", weight), None, DTYPES[0]),
        kernels("linear").pack(to(seeded(40_000, 64, seed=1, dtype=DTYPES[0]))),
    ):
        every, few = range(1, 5000), kernels("linear").FEW_ROWS
        by_number = [{(packed.tile(n), n > few) for n in some} for some in (every, warm.ROWS, warm.SEQUENCES)]
        assert by_number[0] == by_number[1] == by_number[2]
    attention = kernels("attention")
    read = [{attention.counts_read(n) for n in some} for some in (warm.SEQUENCES, range(1, 4097))]
    assert read[0] == read[1]
    assert warm.BEFORE == attention.PART


HEADS = [(6, 2, 16, 8), (4, 4, 32, 16), (5, 1, 64, 3)]
"""(H, K, D, P): grouped, one to one, one for all; a block size that divides no tile."""


def attend(case: Case, P: int = 8, seed: int = 5, window: int | None = None) -> Tensor:
    arrays = [to(x) for x in page(case, P, seed, window)]
    return kernels("attention").paged_attention(to(case.q), *arrays, case.q.shape[2] ** -0.5, window)


@pytest.mark.parametrize(("H", "K", "D", "P"), HEADS)
@pytest.mark.parametrize("window", [None, 1, 130])
@pytest.mark.parametrize(
    ("lengths", "counts"),
    [
        ([1], [1]),
        ([7, 1, 16], [3, 1, 16]),
        ([33, 256, 257, 600], [1, 1, 1, 1]),
        ([300, 5, 131, 64], [150, 5, 1, 0]),
    ],
)
def test_attention(
    lengths: list[int], counts: list[int], window: int | None, H: int, K: int, D: int, P: int
) -> None:
    """Rows alone and in chunks, over one part and over several."""
    dtype = DTYPES[0]
    case = random_case(lengths, counts, H, K, D, dtype, seed=3)
    got = attend(case, P, window=window)
    want, bound = dense(case, D**-0.5, window)
    largest = max(float(values.abs().max()) for values in case.values)
    assert_within(got.cpu(), want, bound + UNIT[dtype] * largest)


def fp8_blocks(memory: Tensor, P: int, K: int, D: int) -> Fp8Blocks:
    return Fp8Blocks(memory=to(memory), block_tokens=P, num_kv_heads=K, head_dim=D)


def attend_fp8(case: Case, P: int = 8, seed: int = 5, window: int | None = None) -> Tensor:
    blocks, *arrays = page(case, P, seed, window)
    made = fp8_blocks(fp8_memory(blocks), P, *case.keys[0].shape[1:])
    return kernels("attention").paged_attention(
        to(case.q), made, *(to(x) for x in arrays), case.q.shape[2] ** -0.5, window
    )


@pytest.mark.parametrize(("H", "K", "D", "P"), HEADS)
@pytest.mark.parametrize("window", [None, 130])
@pytest.mark.parametrize(
    ("lengths", "counts"),
    [([1], [1]), ([33, 256, 257, 300], [1, 1, 1, 1]), ([150, 5, 131, 64], [40, 5, 1, 0])],
)
def test_attention_in_fp8(
    lengths: list[int], counts: list[int], window: int | None, H: int, K: int, D: int, P: int
) -> None:
    """Over the numbers that the blocks hold, with the budget of plain blocks: they are exact in q's dtype."""
    dtype = DTYPES[0]
    case = random_case(lengths, counts, H, K, D, dtype, seed=3)
    got = attend_fp8(case, P, window=window)
    held = [[left_of(x) for x in side] for side in (case.keys, case.values)]
    want, bound = dense(Case(lengths, counts, case.q, *held), D**-0.5, window)
    largest = max(float(values.abs().max()) for values in held[1])
    assert_within(got.cpu(), want, bound + UNIT[dtype] * largest)


def test_a_value_that_is_no_number_in_fp8_reaches_only_the_rows_that_see_it() -> None:
    case = random_case([90], [60], 4, 2, 16, DTYPES[0], seed=3)
    clean = attend_fp8(case)
    case.values[0][70, 1, 5] = torch.inf
    got = attend_fp8(case)
    assert same_bits(got[:40], clean[:40])
    assert bool(got[40:, 2:].isnan().all())
    assert same_bits(got[40:, :2], clean[40:, :2])


def test_a_value_that_is_no_number_reaches_reaches_only_the_rows_that_see_it() -> None:
    case = random_case([90], [60], 4, 2, 16, DTYPES[0], seed=3)
    clean = attend(case)
    case.values[0][70, 1, 5] = torch.inf
    got = attend(case)
    assert same_bits(got[:40], clean[:40])
    assert bool(got[40:, 2:].isnan().all())
    assert same_bits(got[40:, :2], clean[40:, :2])


@pytest.mark.skipif(not ON_DEVICE, reason="the interpreter sums in another order")
def test_any_company_gives_the_same_bits() -> None:
    for dtype in DTYPES:
        case = random_case([700, 5, 131, 64], [450, 5, 1, 1], 8, 2, 128, dtype, seed=3)
        whole, whole_fp8 = attend(case, 16), attend_fp8(case, 16)
        for first, count in ((0, 1), (17, 1), (100, 350), (449, 1)):
            part = Case(
                [250 + first + count], [count], case.q[first : first + count],
                [case.keys[0][: 250 + first + count]], [case.values[0][: 250 + first + count]],
            )  # fmt: skip
            assert same_bits(attend(part, 3), whole[first : first + count])
            assert same_bits(attend_fp8(part, 3), whole_fp8[first : first + count])
        for num_out, num_in in ((512, 4096), (40_000, 1024), (256, 333)):
            x, weight = seeded(700, num_in, seed=1, dtype=dtype), seeded(num_out, num_in, seed=2, dtype=dtype)
            plain, pack_codes = kernels("linear").pack(to(weight)), kernels("linear").pack_codes
            for packed in (plain, *(pack_codes(coded(format, weight), None, dtype) for format in FORMATS)):
                product = kernels("linear").linear(to(x), packed)
                for first, end in ((0, 1), (3, 20), (100, 200), (0, 300), (699, 700)):
                    assert same_bits(kernels("linear").linear(to(x[first:end]), packed), product[first:end])


def test_likeliest() -> None:
    """Several parts, ties over their borders, and rows that are broken; rows with gaps between them."""
    wide = (8 * seeded(7, 2 * 9000, seed=1)).round() / 8
    wide[1, 8999], wide[2, 17] = torch.nan, torch.inf
    wide[3] = -torch.inf
    wide[4, [5, 4100, 8999]] = 50.0
    wide[5, :4096] = -torch.inf
    logits = wide[:, :9000]
    found = [x.cpu() for x in kernels("sampling").likeliest(to(wide)[:, :9000])]
    tokens, tops, masses, problems = found
    assert problems.tolist() == [0, 1, 2, 3, 0, 0, 0]
    for row in (0, 4, 5, 6):
        assert int(tokens[row]) == int((logits[row] == logits[row].max()).nonzero()[0])
        assert float(tops[row]) == float(logits[row].max())
        want = float((logits[row].double() - logits[row].max()).exp().sum().log())
        assert abs(float(masses[row]) - want) <= (9000 / 16 + 8) * F32 * max(1.0, want)
    alone = kernels("sampling").likeliest(to(logits)[4:5])
    assert all(same_bits(one.cpu(), many[4:5]) for one, many in zip(alone, found, strict=True))
