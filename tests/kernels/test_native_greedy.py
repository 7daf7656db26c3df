"""The likeliest token by the compiled kernels, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from octavo.kernels.sampling import TORCH, Greedy
from tests.kernels.native_program import ISAS, THREADS, rows_program
from tests.kernels.numbers import F32, seeded

SIZES = [1, 2, 15, 16, 17, 300, 16384, 16385, 152000]
INF = math.inf


def choose(isa: str, logits: Tensor, num_threads: int = 1) -> list[Greedy]:
    return [Greedy(*row) for row in rows_program(isa, num_threads, torch.float32).greedy(logits)]


def units(row: Tensor) -> float:
    """Float32 units that a log-probability may be off by: V / 16 + 8 of a sum over 16 lanes, and the roundings of the
    differences to the top, which enter as exponents: on average by as much as they are large."""
    off = row.double().max() - row.double()
    return len(row) / 16 + 8 + float((off.clamp(max=1e30) * row.double().softmax(-1)).sum())


def check(found: Greedy, row: Tensor) -> None:
    wide = row.double()
    assert found.problem == 0
    assert found.token == int((wide == wide.max()).nonzero()[0])
    want = float(wide.log_softmax(-1)[found.token])
    assert abs(found.logprob - want) <= units(row) * F32
    assert found.logprob <= 0.0 or found.logprob <= units(row) * F32


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_threads", THREADS)
@pytest.mark.parametrize("V", SIZES)
def test_token_and_log_probability(isa: str, num_threads: int, V: int) -> None:
    for size in (1e-3, 1.0, 30.0, 1e4):
        logits = seeded(3, V, seed=V) * size
        found = choose(isa, logits, num_threads)
        for one, row in zip(found, logits, strict=True):
            check(one, row)
        assert [choose(isa, logits[i : i + 1])[0] for i in range(3)] == found


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("V", SIZES)
def test_ties_go_to_the_lowest_id(isa: str, V: int) -> None:
    (same,) = choose(isa, torch.full((1, V), -3.5))
    assert (same.token, same.problem) == (0, 0)
    assert abs(same.logprob + math.log(V)) <= (V / 16 + 8) * F32
    logits = -seeded(1, V, seed=1).abs()
    for places in {(V // 3, V - 1), (V // 2, min(V // 2 + 16, V - 1)), (V - 1, V - 1), (0, V - 1)}:
        row = logits.clone()
        row[0, list(places)] = 4.0
        check(choose(isa, row, 2)[0], row[0])
        assert choose(isa, row)[0].token == min(places)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("V", SIZES)
def test_what_cannot_be_chosen_from_is_named(isa: str, V: int) -> None:
    """And is nobody else's problem."""
    good = seeded(1, V, seed=1)
    (want,) = choose(isa, good)
    for place in {0, V // 2, V - 1}:
        for values, problem in ((torch.nan, 1), (INF, 2)):
            bad = good.clone()
            bad[0, place] = values
            found = choose(isa, torch.cat([good, bad, good]), 2)
            assert [one.problem for one in found] == [0, problem, 0]
            assert found[0] == found[2] == want
            both = torch.full((1, V), INF)
            both[0, place] = torch.nan
            assert choose(isa, both)[0].problem == 1
    assert choose(isa, torch.full((1, V), -INF))[0].problem == 3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("V", [2, 17, 16385, 152000])
def test_forbidden_tokens_are_not_chosen(isa: str, V: int) -> None:
    """All but a few -inf, and the ends of the range."""
    for place in (0, V // 2, V - 1):
        row = torch.full((1, V), -INF)
        row[0, place] = -200.0
        assert choose(isa, row)[0] == Greedy(place, 0.0, 0)
    row = seeded(1, V, seed=1)
    row[0, ::2] = -INF
    check(choose(isa, row, 2)[0], row[0])
    largest = torch.finfo(torch.float32).max
    row = torch.full((1, V), -largest)
    row[0, V // 2] = largest
    assert choose(isa, row)[0] == Greedy(V // 2, 0.0, 0)
    assert choose(isa, torch.full((1, V), -largest))[0].token == 0


@pytest.mark.parametrize("isa", ISAS)
def test_the_reference_chooses_the_same(isa: str) -> None:
    logits = seeded(6, 300, seed=1)
    logits[1, 7], logits[2, 7], logits[3] = torch.nan, INF, -INF
    for one, other in zip(choose(isa, logits), TORCH.greedy(logits), strict=True):
        assert (one.token if not one.problem else None, one.problem) == (
            other.token if not other.problem else None,
            other.problem,
        )
        assert abs(one.logprob - other.logprob) <= 64 * F32 or one.problem
    assert choose(isa, torch.empty(0, 5)) == []
