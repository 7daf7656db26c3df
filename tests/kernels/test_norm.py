from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from octavo.kernels.choose import Impl, Need
from octavo.kernels.norm import IMPLS, add_rms_norm, rms_norm
from tests.kernels.numbers import DTYPES, F32, UNIT, assert_within, same_bits, seeded

NORMS = [impl for impl in IMPLS if impl.op == "rms_norm"]
EPS = 1e-5


@pytest.fixture(params=NORMS, ids=lambda impl: impl.name)
def norm(request: pytest.FixtureRequest) -> Callable[[Tensor, Tensor, float], Tensor]:
    impl: Impl = request.param
    if reason := impl.refuses(Need(device="cpu", dtype=torch.float32)):
        pytest.skip(reason)
    return impl.run


def exact_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def bound(want: Tensor, dtype: torch.dtype, width: int) -> Tensor:
    """Contract of rms_norm: two roundings to the dtype, and a float32 sum of `width` squares under a root."""
    return want.abs() * (2 * UNIT[dtype] + (width / 2 + 4) * F32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 16), (2, 17), (4, 333), (3, 5, 20), (2, 4097)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_equals_the_formula_in_float64(norm, shape: tuple[int, ...], size: float, dtype: torch.dtype) -> None:
    x, weight = (seeded(*shape, seed=1) * size).to(dtype), seeded(shape[-1], seed=2, dtype=dtype)
    got, want = norm(x, weight, EPS), exact_norm(x, weight, EPS)
    assert got.dtype == dtype
    assert got.shape == x.shape
    assert_within(got, want, bound(want, dtype, shape[-1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 15, 64, 77, 1025])
def test_a_rows_bits_do_not_depend_on_its_company(norm, width: int, dtype: torch.dtype) -> None:
    x, weight = seeded(67, width, seed=1, dtype=dtype), seeded(width, seed=2, dtype=dtype)
    whole = norm(x, weight, EPS)
    for num_rows in range(1, 68):
        start = (num_rows * 5) % (68 - num_rows)
        assert same_bits(norm(x[start : start + num_rows], weight, EPS), whole[start : start + num_rows])
    order = torch.randperm(67, generator=torch.Generator().manual_seed(0))
    assert same_bits(norm(x[order], weight, EPS), whole[order])
    assert same_bits(norm(x.view(67, 1, width), weight, EPS).view(67, width), whole)
    x[1::2] = torch.nan
    assert same_bits(norm(x, weight, EPS)[::2], whole[::2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_change_nothing_and_are_only_read(norm, dtype: torch.dtype) -> None:
    x, weight = seeded(6, 20, seed=1, dtype=dtype), seeded(20, seed=2, dtype=dtype)
    want = norm(x, weight, EPS)
    wide = torch.full((6, 60), torch.nan, dtype=dtype)
    wide[:, 20:40] = x
    before = wide.clone()
    assert same_bits(norm(wide[:, 20:40], weight, EPS), want)
    assert same_bits(wide, before)
    shifted = torch.empty(121, dtype=dtype)[1:].view(6, 20).copy_(x)
    assert same_bits(norm(shifted, weight, EPS), want)
    assert same_bits(norm(x.t().contiguous().t(), weight, EPS), want)


def test_no_rows(norm) -> None:
    assert norm(torch.empty(0, 5), torch.ones(5), EPS).shape == (0, 5)


def test_zeros_stay_zeros(norm) -> None:
    assert norm(torch.zeros(2, 5), torch.ones(5), EPS).eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounds_before_the_weight_is_applied(norm, dtype: torch.dtype) -> None:
    """The order of Llama checkpoints. With power-of-two weights the second product is exact, so all shows."""
    x = seeded(50, 33, seed=4, dtype=dtype)
    plain = norm(x, torch.ones(33, dtype=dtype), EPS)
    assert same_bits(norm(x, torch.full((33,), 4.0, dtype=dtype), EPS), plain * 4)
    third = torch.full((33,), 1 / 3, dtype=dtype)
    assert same_bits(norm(x, third, EPS), plain * third)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_and_norm(dtype: torch.dtype) -> None:
    x, residual = seeded(9, 33, seed=1, dtype=dtype), seeded(9, 33, seed=2, dtype=dtype)
    weight = seeded(33, seed=3, dtype=dtype)
    kept = x.clone(), residual.clone()
    normed, total = add_rms_norm(x, residual, weight, EPS)
    assert same_bits(total, (x.float() + residual.float()).to(dtype))
    want = exact_norm(total, weight, EPS)
    assert_within(normed, want, bound(want, dtype, 33))
    assert same_bits(x, kept[0])
    assert same_bits(residual, kept[1])


def test_what_does_not_fit_is_refused_with_its_shape(norm) -> None:
    with pytest.raises(ValueError, match=r"\[2, 5\] and \[4\]"):
        norm(torch.ones(2, 5), torch.ones(4), EPS)
    with pytest.raises(ValueError, match=r"weight is torch\.bfloat16"):
        norm(torch.ones(2, 5), torch.ones(5, dtype=torch.bfloat16), EPS)
    with pytest.raises(ValueError, match=r"add_rms_norm: x is \[2, 5\]"):
        add_rms_norm(torch.ones(2, 5), torch.ones(1, 5), torch.ones(5), EPS)


def test_the_contract_function_is_the_reference() -> None:
    x, weight = seeded(4, 7, seed=1), seeded(7, seed=2)
    assert same_bits(rms_norm(x, weight, EPS), NORMS[-1].run(x, weight, EPS))
