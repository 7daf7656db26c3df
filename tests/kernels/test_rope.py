from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from octavo.kernels.rope import rotate, tables
from tests.kernels.numbers import DTYPES, F32, UNIT, assert_within, same_bits, seeded


def frequencies(half: int) -> torch.Tensor:
    return torch.tensor([10_000.0 ** (-i / half) for i in range(half)])


@pytest.mark.parametrize("scale", [1.0, 1.3465735912322998])
def test_tables_are_the_cosines_of_the_float32_angles(scale: float) -> None:
    inv_freq, positions = frequencies(10), torch.tensor([0, 1, 2, 500, 131_071])
    cos, sin = tables(inv_freq, positions, scale)
    for t, position in enumerate(positions.tolist()):
        for i, frequency in enumerate(inv_freq.numpy()):
            angle = float(np.float32(position) * frequency)
            budget = 4 * F32 * scale  # an ulp at 1 from the function, half an ulp from the product
            assert abs(float(cos[t, i]) - math.cos(angle) * scale) <= budget
            assert abs(float(sin[t, i]) - math.sin(angle) * scale) <= budget
    assert cos.dtype == sin.dtype == torch.float32


@pytest.mark.parametrize("half", [1, 5, 32])
def test_a_positions_angles_do_not_depend_on_its_company(half: int) -> None:
    positions = torch.randint(0, 40_000, (257,), generator=torch.Generator().manual_seed(1))
    whole = tables(frequencies(half), positions, 1.1)
    for start, end in ((0, 1), (3, 4), (1, 6), (100, 133), (1, 257)):
        part = tables(frequencies(half), positions[start:end], 1.1)
        assert same_bits(part[0], whole[0][start:end])
        assert same_bits(part[1], whole[1][start:end])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "H", "K", "D"), [(1, 1, 1, 2), (5, 6, 2, 20), (3, 5, 5, 14), (0, 2, 1, 4)])
def test_pairs_turn_by_their_angle(T: int, H: int, K: int, D: int, dtype: torch.dtype) -> None:
    """Against complex multiplication in float64: (i, i + D/2) is one complex number."""
    q, k = seeded(T, H, D, seed=1, dtype=dtype), seeded(T, K, D, seed=2, dtype=dtype)
    cos, sin = tables(frequencies(D // 2), torch.arange(T) * 7 + 3)
    turn = torch.complex(cos.double(), sin.double())[:, None]
    for got, x in zip(rotate(q, k, cos, sin), (q, k), strict=True):
        pairs = torch.complex(x[..., : D // 2].double(), x[..., D // 2 :].double())
        turned = pairs * turn
        want = torch.cat((turned.real, turned.imag), dim=-1)
        lengths = pairs.abs().repeat(1, 1, 2)
        assert got.dtype == dtype
        assert got.shape == x.shape
        if T:
            assert_within(got, want, lengths * (UNIT[dtype] + 3 * F32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_in_any_company_and_views_with_gaps(dtype: torch.dtype) -> None:
    fused = seeded(37, (6 + 2 + 2) * 10, seed=1, dtype=dtype)
    q, k = fused[:, :60].view(37, 6, 10), fused[:, 60:80].view(37, 2, 10)
    kept = fused.clone()
    cos, sin = tables(frequencies(5), torch.arange(37))
    whole = rotate(q, k, cos, sin)
    dense = rotate(q.contiguous(), k.contiguous(), cos, sin)
    assert same_bits(whole[0], dense[0])
    assert same_bits(whole[1], dense[1])
    for start, end in ((0, 1), (3, 4), (5, 24), (36, 37)):
        rows = slice(start, end)
        part = rotate(q[rows], k[rows], cos[rows], sin[rows])
        assert same_bits(part[0], whole[0][rows])
        assert same_bits(part[1], whole[1][rows])
    assert same_bits(fused, kept)


def test_what_does_not_fit_is_refused_with_its_shape() -> None:
    q, k, cos = torch.ones(3, 4, 6), torch.ones(3, 2, 6), torch.ones(3, 3)
    with pytest.raises(ValueError, match=r"\[3, 4, 6\].*\[2, 2, 6\]"):
        rotate(q, k[:2], cos, cos)
    with pytest.raises(ValueError, match="D even"):
        rotate(q[..., :5], k[..., :5], cos, cos)
    with pytest.raises(ValueError, match=r"want float32 cos and sin \[3, 3\], got \[3, 2\]"):
        rotate(q, k, cos[:, :2], cos)
    with pytest.raises(ValueError, match="bfloat16"):
        rotate(q, k, cos.bfloat16(), cos)
    with pytest.raises(ValueError, match="bfloat16"):
        rotate(q, k.bfloat16(), cos, cos)
    with pytest.raises(ValueError, match="integer positions"):
        tables(frequencies(4), torch.ones(3))
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        tables(torch.ones(2, 2), torch.arange(3))
