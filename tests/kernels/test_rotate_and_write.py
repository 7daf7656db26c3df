"""Norm, rotation and store in one, against the oracle and against the ops it is made of."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.kv_store import write_kv
from octavo.kernels.norm import rms_norm
from octavo.kernels.rope import rotate, rotate_and_write
from tests.kernels.heads import EPS, check, random_heads
from tests.kernels.numbers import DTYPES, same_bits

SHAPES = [(1, 1, 1, 2, 1), (5, 6, 2, 20, 3), (7, 5, 5, 14, 4), (9, 4, 1, 64, 16)]


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "H", "K", "D", "P"), SHAPES)
def test_against_the_oracle(T: int, H: int, K: int, D: int, P: int, dtype: torch.dtype, norms: bool) -> None:
    case = random_heads(T, H, K, D, P, dtype, norms=norms)
    blocks = case.blocks()
    turned = rotate_and_write(
        *case.split(), case.cos, case.sin, blocks, case.slots, case.q_norm, case.k_norm, EPS
    )
    check(case, turned, blocks)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_three_ops_bit_for_bit_in_any_company(dtype: torch.dtype) -> None:
    case = random_heads(9, 4, 2, 16, 4, dtype, norms=True)
    assert case.q_norm is not None
    assert case.k_norm is not None
    blocks, apart = case.blocks(), case.blocks()
    q, k, v = case.split()
    whole = rotate_and_write(q, k, v, case.cos, case.sin, blocks, case.slots, case.q_norm, case.k_norm, EPS)
    turned_q, turned_k = rotate(
        rms_norm(q, case.q_norm, EPS), rms_norm(k, case.k_norm, EPS), case.cos, case.sin
    )
    write_kv(apart, turned_k, v, case.slots)
    assert same_bits(whole, turned_q)
    assert same_bits(blocks, apart)
    for rows in (slice(0, 1), slice(3, 5), slice(8, 9)):
        alone = rotate_and_write(
            q[rows], k[rows], v[rows], case.cos[rows], case.sin[rows], case.blocks(), case.slots[rows],
            case.q_norm, case.k_norm, EPS,
        )  # fmt: skip
        assert same_bits(alone, whole[rows])


def test_one_norm_without_the_other_is_refused() -> None:
    case = random_heads(2, 2, 1, 4, 2, torch.float32, norms=True)
    with pytest.raises(ValueError, match="only k_norm is given"):
        rotate_and_write(*case.split(), case.cos, case.sin, case.blocks(), case.slots, None, case.k_norm, EPS)
