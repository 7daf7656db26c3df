from __future__ import annotations

import pytest
import torch

from octavo.kernels.embedding import embed
from tests.kernels.numbers import DTYPES, same_bits, seeded


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    weight = seeded(11, 7, seed=1, dtype=dtype)
    weight[3] = torch.nan
    tokens = torch.tensor([10, 0, 3, 3, 5])
    got = embed(tokens, weight)
    assert same_bits(got, torch.stack([weight[int(t)] for t in tokens]))
    got.zero_()
    assert weight[10].ne(0).any()


def test_no_tokens() -> None:
    assert embed(torch.empty(0, dtype=torch.int64), torch.ones(3, 5)).shape == (0, 5)


@pytest.mark.parametrize("token", [-1, 11])
def test_a_token_that_is_no_row(token: int) -> None:
    with pytest.raises((IndexError, RuntimeError), match=r"index out of range"):
        embed(torch.tensor([0, token]), torch.ones(11, 7))


def test_what_does_not_fit_is_refused_with_its_shape() -> None:
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        embed(torch.zeros(1, 2, dtype=torch.int64), torch.ones(3, 5))
    with pytest.raises(ValueError, match="int64, got"):
        embed(torch.zeros(2, dtype=torch.int32), torch.ones(3, 5))
