from __future__ import annotations

import pytest
import torch

from octavo.kernels.activation import silu_mul
from tests.kernels.numbers import DTYPES, F32, UNIT, assert_within, same_bits, seeded


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 333), (0, 9)])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_equals_the_formula_in_float64(shape: tuple[int, int], size: float, dtype: torch.dtype) -> None:
    gate, up = (seeded(*shape, seed=1) * size).to(dtype), seeded(*shape, seed=2, dtype=dtype)
    got = silu_mul(gate, up)
    want = gate.double() / (1 + (-gate.double()).exp()) * up.double()
    assert got.dtype == dtype
    if want.numel():
        smallest_normal = 2.0**-126 * (1 + up.double().abs())  # below it, precision is absolute
        assert_within(got, want, want.abs() * (2 * UNIT[dtype] + 6 * F32) + smallest_normal)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_gates_saturate(dtype: torch.dtype) -> None:
    gate = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype)
    assert silu_mul(gate, torch.ones_like(gate)).float().tolist() == [[float(gate[0, 0]), 0.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_elements_bits_do_not_depend_on_its_place(dtype: torch.dtype) -> None:
    """Vector loops end in a scalar tail with another exponential; every length and place is tried."""
    values = (seeded(400, seed=1) * 5).to(dtype)
    want = torch.cat([silu_mul(v.view(1, 1), torch.ones(1, 1, dtype=dtype))[0] for v in values])
    for length in (2, 3, 7, 15, 16, 17, 31, 33, 63, 127, 400):
        row = values[:length][None]
        assert same_bits(silu_mul(row, torch.ones_like(row))[0], want[:length])
        shifted = values[400 - length :][None]
        assert same_bits(silu_mul(shifted, torch.ones_like(row))[0], want[400 - length :])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_in_any_company_and_halves_of_one_buffer(dtype: torch.dtype) -> None:
    both = seeded(33, 2 * 77, seed=3, dtype=dtype)
    gate, up = both.chunk(2, dim=1)
    whole = silu_mul(gate.contiguous(), up.contiguous())
    assert same_bits(silu_mul(gate, up), whole)
    for start, end in ((0, 1), (5, 8), (31, 33)):
        assert same_bits(silu_mul(gate[start:end], up[start:end]), whole[start:end])


def test_what_does_not_fit_is_refused_with_its_shape() -> None:
    with pytest.raises(ValueError, match=r"gate is \[2, 3\].*up is \[2, 4\]"):
        silu_mul(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="bfloat16"):
        silu_mul(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bfloat16))
