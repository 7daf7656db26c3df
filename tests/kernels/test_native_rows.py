"""What compiled kernels do to rows between products, against float64: norms, rotation, embedding, head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.core.step import Copy
from octavo.kv.layout import PanelLayout
from tests.kernels.native_program import (
    ISAS,
    THREADS,
    cpu,
    gated,
    multiply,
    name_of,
    packed,
    rows_program,
    run_rows,
    seen,
)
from tests.kernels.numbers import DTYPES, F32, UNIT, assert_within, same_bits, seeded
from tests.kernels.test_linear import product_and_bound
from tests.kernels.test_native_linear import rounded_product

EPS = 1e-5


def exact_norm(x: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Contract of rms_norm: two roundings to the dtype, and a float32 sum of squares under a root."""
    wide = x.double()
    want = wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    return want, want.abs() * (2 * UNIT[dtype] + (x.shape[-1] / 2 + 4) * F32)


def norm(isa: str, x: Tensor, weight: Tensor, num_threads: int = 1, *, in_place: bool = False) -> Tensor:
    program = rows_program(isa, num_threads, x.dtype, EPS)
    source, to = program.buffer(x.shape[1]), program.buffer(x.shape[1])
    to = source if in_place else to
    program.norm(source, weight, to)
    program.write(to, torch.full_like(x, torch.nan))
    program.write(source, x)
    run_rows(program, len(x), x.dtype)
    out = torch.empty_like(x)
    program.read(to, out)
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 16, 33, 333, 4097])
def test_norm(isa: str, dtype: torch.dtype, width: int) -> None:
    weight = seeded(width, seed=2, dtype=dtype)
    for size in (1e-3, 1.0, 1e3):
        x = (seeded(9, width, seed=1) * size).to(dtype)
        found = norm(isa, x, weight)
        assert_within(found, *exact_norm(x, weight, dtype))
        assert same_bits(norm(isa, x, weight, 2, in_place=True), found)
        for i in (0, 4, 8):
            assert same_bits(norm(isa, x[i : i + 1], weight), found[i : i + 1])
    x = seeded(70, width, seed=3, dtype=dtype)
    whole = norm(isa, x, weight, 2)
    x[1::2] = torch.nan
    spoilt = norm(isa, x, weight, 2)
    assert same_bits(spoilt[::2], whole[::2])
    assert spoilt[1::2].isnan().all()
    assert norm(isa, torch.zeros_like(x), weight).eq(0).all()


def turn(
    isa: str, qkv: Tensor, heads: tuple[int, int, int], positions: Tensor, angles: tuple[Tensor, Tensor],
    norms: tuple[Tensor | None, Tensor | None] = (None, None), num_threads: int = 1, P: int = 4,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows after rope, and the arena: row t is written to slot 2 t."""
    H, K, D = heads
    T = len(qkv)
    program = cpu.Program(isa, num_threads, name_of(qkv.dtype), H, K, D, P, EPS)
    buffer = program.buffer(qkv.shape[1])
    program.rope(buffer, 1, *norms)
    arena = torch.full((2, 2 * T, program.block_items), torch.nan, dtype=qkv.dtype)
    program.write(buffer, qkv)
    program.run(
        torch.zeros(T, dtype=torch.int64), positions, 2 * torch.arange(T), torch.zeros(1, T, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32), torch.tensor([T], dtype=torch.int32), *angles, arena,
    )  # fmt: skip
    out = torch.empty_like(qkv)
    program.read(buffer, out)
    return out, arena


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("heads", [(1, 1, 2), (6, 2, 10), (4, 2, 16), (3, 1, 34), (2, 2, 128)])
def test_rotation(isa: str, dtype: torch.dtype, normed: bool, heads: tuple[int, int, int]) -> None:
    """Dimension i turns with i + D / 2; queries and keys are normalised per head first, where there are norms."""
    H, K, D = heads
    T = 13
    qkv = seeded(T, (H + 2 * K) * D, seed=1, dtype=dtype)
    positions = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:T]
    angle = seeded(40, D // 2, seed=2) * 3
    cos, sin = angle.cos().contiguous(), angle.sin().contiguous()
    norms = (seeded(D, seed=3, dtype=dtype), seeded(D, seed=4, dtype=dtype)) if normed else (None, None)
    found, arena = turn(isa, qkv, heads, positions, (cos, sin), norms)
    split = qkv.view(T, H + 2 * K, D)
    x, error = split[:, : H + K].double(), torch.zeros(T, H + K, D, dtype=torch.float64)
    if normed:
        for part, weight in zip((slice(0, H), slice(H, H + K)), norms, strict=True):
            assert weight is not None
            x[:, part], error[:, part] = exact_norm(split[:, part], weight, dtype)
    c, s = (one[positions].double()[:, None] for one in (cos, sin))
    left, right = x.chunk(2, -1)
    e_left, e_right = error.chunk(2, -1)
    want = torch.cat([left * c - right * s, right * c + left * s], -1)
    mass = torch.cat([(left * c).abs() + (right * s).abs(), (right * c).abs() + (left * s).abs()], -1)
    carried = torch.cat([e_left * c.abs() + e_right * s.abs(), e_right * c.abs() + e_left * s.abs()], -1)
    bound = carried + 4 * F32 * mass
    bound = bound + UNIT[dtype] * (want.abs() + bound)
    assert_within(found.view(T, -1, D)[:, : H + K], want, bound)
    assert same_bits(found.view(T, -1, D)[:, H + K :], split[:, H + K :])
    # exactly the elements of the rows are written, in the layer named
    assert arena[0].isnan().all()
    assert arena[1].isfinite().sum() == T * 2 * K * D
    stored = arena[1][arena[1].isfinite()].float().sort().values
    assert torch.equal(stored, found.view(T, -1, D)[:, H:].float().flatten().sort().values)
    for num_threads, P in ((2, 4), (1, 16)):
        again, _ = turn(isa, qkv, heads, positions, (cos, sin), norms, num_threads, P)
        assert same_bits(again, found)
    alone, _ = turn(isa, qkv[5:6].clone(), heads, positions[5:6].clone(), (cos, sin), norms)
    assert same_bits(alone, found[5:6])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8"])
def test_embedding(isa: str, dtype: torch.dtype, format: str) -> None:
    """Rows as the weight holds them, rounded once to the dtype."""
    table = packed(isa, format, seeded(37, 19, seed=1))
    tokens = torch.tensor([36, 0, 15, 16, 16, 31, 5])
    for num_threads in THREADS:
        program = rows_program(isa, num_threads, dtype)
        buffer = program.buffer(19)
        program.embed(table, buffer)
        run_rows(program, 7, dtype, tokens)
        found = torch.empty(7, 19, dtype=dtype)
        program.read(buffer, found)
        assert same_bits(found, seen(table, 37)[tokens].to(dtype))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", ["plain", "int8"])
def test_head(isa: str, dtype: torch.dtype, format: str) -> None:
    """Logits of final hidden states: rounded to the dtype as the product, given as float32; in any company."""
    head = packed(isa, name_of(dtype) if format == "plain" else format, seeded(75, 65, seed=1, dtype=dtype))
    weight, x = seeded(65, seed=2, dtype=dtype), seeded(50, 65, seed=3, dtype=dtype)
    whole = None
    for num_threads in THREADS:
        program = rows_program(isa, num_threads, dtype, EPS)
        buffer = program.buffer(65)
        program.head(buffer, weight, head)
        program.write(buffer, x)
        run_rows(program, 50, dtype)
        hidden, logits = torch.empty(50, 65, dtype=dtype), torch.full((50, 75), torch.nan)
        program.hidden(hidden)
        assert same_bits(hidden, norm(isa, x, weight))
        program.logits(hidden, logits)
        if format == "plain":
            want, bound = product_and_bound(hidden, seen(head, 75), None)
        else:
            want, bound = rounded_product("int8", 64, hidden, seen(head, 75), None, dtype)
        assert_within(logits, want, bound)
        assert same_bits(logits.to(dtype).float(), logits)
        assert whole is None or same_bits(logits, whole)
        whole = logits
        for first, last in ((0, 1), (3, 20), (49, 50), (7, 40)):
            some = torch.full((last - first, 75), torch.nan)
            program.logits(hidden[first:last], some)
            assert same_bits(some, logits[first:last])
        spoilt = hidden.clone()
        spoilt[1::2] = torch.nan
        program.logits(spoilt, again := torch.empty(50, 75))
        assert same_bits(again[::2], logits[::2])
        assert again[1::2].isnan().all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_over_the_whole_range(isa: str, dtype: torch.dtype) -> None:
    """The gate is the row's first number, the other factor 1. Where e^-x is no float32, silu is below 2^-121."""
    if dtype == torch.bfloat16:
        x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    else:
        x = torch.arange(-(2**31), 2**31, 20011, dtype=torch.int64).to(torch.int32).view(dtype)
        x = torch.cat([x, torch.linspace(-110, 110, 20001), torch.linspace(-1, 1, 2001)])
    x = x[x.isfinite()]
    x = x[: len(x) // 4 * 4].view(-1, 4)  # four rows at a time make a width of 5, and the steps fewer
    gate, up = torch.eye(5, dtype=dtype)[:4].contiguous(), torch.zeros(4, 5, dtype=dtype)
    up[:, 4] = 1
    rows = torch.cat([x, torch.ones(len(x), 1, dtype=dtype)], 1)
    found = multiply(isa, gated(isa, name_of(dtype), gate, up), rows, finish="gate", num_threads=2)
    want = x.double() * torch.sigmoid(x.double())
    near = 8 * F32 * want.abs()
    assert_within(found, want, near + UNIT[dtype] * (want.abs() + near) + 2.0**-121)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_of_what_is_not_finite(isa: str, dtype: torch.dtype) -> None:
    """An infinite gate stays infinite, or is undefined where it would have to be divided by infinity."""
    two, one = torch.full((1, 1), 2.0, dtype=dtype), torch.ones(1, 1, dtype=dtype)
    rows = torch.tensor([[3e38], [-3e38], [torch.nan], [1.0]], dtype=dtype)
    found = multiply(isa, gated(isa, name_of(dtype), two, one), rows, finish="gate")[:, 0]
    assert found[0] == torch.inf
    assert found[1:3].isnan().all()
    assert found[3].isfinite()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [2, 10, 16, 20, 130])
@pytest.mark.parametrize("P", [1, 2, 3, 5, 8, 15, 16, 32, 64])
def test_a_layout_and_its_kernels_agree_on_a_blocks_size(P: int, D: int, dtype: torch.dtype) -> None:
    for K in (1, 3):
        program = cpu.Program("portable", 1, name_of(dtype), K, K, D, P, EPS)
        layout = PanelLayout(K, D, P, dtype)
        assert layout.block_items == program.block_items
        assert layout.block_bytes == program.block_items * dtype.itemsize
        assert layout.shape(5) == (5, program.block_items)


def test_blocks_are_copied_whole_and_in_order() -> None:
    layout = PanelLayout(2, 10, 4, torch.float32)
    arena = seeded(3, *layout.shape(6), seed=1)
    before = arena.clone()
    layout.copy(arena, [Copy(1, 4, 3), Copy(4, 5, 1), Copy(2, 1, 4), Copy(3, 3, 2)])
    for target, source in ((4, 1), (5, 1), (1, 2), (2, 2), (3, 3), (0, 0)):
        assert same_bits(arena[:, target], before[:, source])
