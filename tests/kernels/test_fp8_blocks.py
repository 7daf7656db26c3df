"""Keys and values in e4m3: what is stored, and the reference of attention over it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.kernels.attention import paged_attention
from octavo.kernels.kv_store.fp8 import Fp8Blocks, block_bytes
from octavo.kernels.rope import rotate_and_write
from tests.kernels.decoded import fp8_memory, left_of, rounded_heads
from tests.kernels.dense_attention import Case, dense, page, random_case
from tests.kernels.heads import EPS, random_heads
from tests.kernels.numbers import DTYPES, UNIT, assert_within, same_bits, seeded


def blocks_of(memory: Tensor, P: int, K: int, D: int) -> Fp8Blocks:
    return Fp8Blocks(memory=memory, block_tokens=P, num_kv_heads=K, head_dim=D)


def rounded(case: Case) -> Case:
    """The case with the keys and values that are left of its own."""
    sides = [[left_of(x) for x in side] for side in (case.keys, case.values)]
    return Case(case.lengths, case.counts, case.q, *sides)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_codes_and_exponents(dtype: torch.dtype) -> None:
    """Rows of all sizes, and those at the borders: 448 and just above, ties, subnormal codes, zeros, what is not
    finite."""
    rows = seeded(64, 1, 20, seed=1, dtype=torch.float32)
    rows *= torch.logspace(-12, 4, 64)[:, None, None]
    rows[0] = 0
    rows[1, 0, 0], rows[2, 0, 0] = torch.inf, torch.nan
    rows[3, 0, :3] = torch.tensor([448.0, -17.0, 2.0**-9])
    rows[4, 0, :3] = torch.tensor([449.0, 17.0, 2.0**-10])
    rows[5, 0, :5] = torch.tensor([256.0, 1.0625, 1.1875, -(2.0**-10), 3 * 2.0**-10])
    rows = rows.to(dtype) + 0.0  # turning by no angle makes a negative zero positive
    made = blocks_of(torch.zeros(4, block_bytes(16, 1, 20), dtype=torch.uint8), 16, 1, 20)
    heads = torch.zeros(64, 1, 20, dtype=dtype)
    turned = rotate_and_write(
        heads, rows, -rows, torch.ones(64, 10), torch.zeros(64, 10), made, torch.arange(64)
    )
    assert same_bits(turned, heads)
    for side, want in ((0, rows), (1, -rows)):
        codes, exponents = rounded_heads(want[:, 0])
        assert torch.equal(made.exponents[:, side].reshape(64), exponents)
        assert torch.equal(made.codes.view(torch.uint8)[:, side].reshape(64, 20) | 128 * (codes == 127),
                           codes | 128 * (codes == 127))  # fmt: skip


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(("T", "H", "K", "D", "P"), [(1, 1, 1, 2, 1), (5, 6, 2, 20, 3), (7, 5, 5, 64, 16)])
def test_what_would_have_been_stored_is_rounded(T: int, H: int, K: int, D: int, P: int, norms: bool) -> None:
    case = random_heads(T, H, K, D, P, torch.bfloat16, norms=norms)
    plain, q = case.blocks(), case.split()
    want = rotate_and_write(*q, case.cos, case.sin, plain, case.slots, case.q_norm, case.k_norm, EPS)
    memory, numbers = fp8_memory(plain), left_of(plain)
    made = blocks_of(torch.full_like(memory, 0xAA), P, K, D)
    got = rotate_and_write(*q, case.cos, case.sin, made, case.slots, case.q_norm, case.k_norm, EPS)
    assert same_bits(got, want)
    block, offset = case.slots // P, case.slots % P
    held = made.numbers(torch.arange(len(plain)))[block, :, offset]
    assert torch.equal(held.double(), numbers[block, :, offset])
    changed = torch.zeros(len(plain), P, dtype=torch.bool)
    changed[block, offset] = True
    kept = made.codes.view(torch.uint8).transpose(1, 2)[~changed]
    assert kept.eq(0xAA).all()
    assert made.exponents.transpose(1, 2)[~changed].eq(0xAA).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize(("H", "K", "D", "P"), [(6, 2, 20, 8), (4, 4, 32, 16), (5, 1, 64, 3)])
def test_attention_over_the_numbers(
    H: int, K: int, D: int, P: int, window: int | None, dtype: torch.dtype
) -> None:
    case = random_case([33, 5, 130, 16], [10, 5, 1, 0], H, K, D, dtype, seed=3)
    blocks, *arrays = page(case, P, 5, window)
    made = blocks_of(fp8_memory(blocks), P, K, D)
    got = paged_attention(case.q, made, *arrays, D**-0.5, window)
    want, bound = dense(rounded(case), D**-0.5, window)
    assert got.dtype == dtype
    assert_within(got, want, bound * (1 + UNIT[dtype]))
    tables, starts, counts = arrays
    alone = paged_attention(case.q[15:16], made, tables[2:3], starts[2:3], counts[2:3], D**-0.5, window)
    assert same_bits(alone, got[15:16])


def test_what_does_not_fit_is_refused() -> None:
    assert block_bytes(16, 8, 128) == 2 * 16 * 8 * 129
    assert block_bytes(1, 1, 2) == 16
    with pytest.raises(ValueError, match=r"want uint8 \[B, 33024\], got torch\.uint8 \[3, 5\]"):
        blocks_of(torch.zeros(3, 5, dtype=torch.uint8), 16, 8, 128)
    made = blocks_of(torch.zeros(3, block_bytes(4, 2, 8), dtype=torch.uint8), 4, 2, 8)
    heads, angles = torch.zeros(1, 2, 8), torch.zeros(1, 4)
    with pytest.raises(IndexError, match=r"slots are 0 \.\. 11, got \[12\]"):
        rotate_and_write(heads, heads, heads, angles, angles, made, torch.tensor([12]))
    with pytest.raises(ValueError, match=r"want int64 slots \[T\] and k, v \[1, 2, 8\]"):
        rotate_and_write(heads, heads, heads[:, :1], angles, angles, made, torch.tensor([1]))
    with pytest.raises(IndexError):
        paged_attention(
            heads, made, torch.tensor([[3]], dtype=torch.int32), torch.zeros(1, dtype=torch.int32),
            torch.ones(1, dtype=torch.int32), 1.0,
        )  # fmt: skip
