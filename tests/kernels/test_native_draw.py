"""Tokens drawn and described by the compiled kernels, against a plain reading of the definitions in whole numbers and
float64, and against torch on rows as wide as real vocabularies."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.kernels.sampling import TORCH, Described, Draw, Greedy
from octavo.kernels.sampling.native import NativeSampling
from tests.kernels.native_program import ISAS, THREADS, rows_program
from tests.kernels.numbers import F32, seeded

INF = math.inf
MASK = 2**64 - 1
SIZES = [1, 2, 16, 17, 63, 64, 65, 513, 1030]
EDGE = 1e-9
"""Shares of probability nearer to top-p or min-p than this are not tested: rounding may decide there."""


def kernels(isa: str, num_threads: int = 1) -> NativeSampling:
    return NativeSampling(rows_program(isa, num_threads, torch.float32))


def noise(key: int, token: int) -> float:
    """Gumbel noise from output number `token` of SplitMix64, in Python's whole numbers."""
    z = (key + (token + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    z ^= z >> 31
    return -math.log(-math.log(((z >> 12) + 0.5) * 2.0**-52))


def by_definition(row: Sequence[float], draw: Draw) -> int | None:
    """The token, -1 for none; or None where a share lies on an edge."""
    values = [float(np.float32(x) / np.float32(draw.temperature)) for x in row]
    order = sorted((i for i, x in enumerate(values) if x > -INF), key=lambda i: (-values[i], i))
    if not order:
        return -1
    if draw.top_k > 0:
        order = order[: draw.top_k]
    top = values[order[0]]
    shares = [math.exp(values[i] - top) for i in order]
    kept, total, before = [], math.fsum(shares), 0.0
    for i, share in zip(order, shares, strict=True):
        if draw.top_p < 1.0 and abs(before / total - draw.top_p) < EDGE:
            return None
        if draw.top_p < 1.0 and before >= draw.top_p * total:
            break
        kept.append((i, share))
        before += share
    if any(abs(share - draw.min_p) < 1e-6 and share < 1.0 for _, share in kept):
        return None
    return max((values[i] + noise(draw.key, i), -i, i) for i, share in kept if share >= draw.min_p)[2]


def rows_of(V: int, seed: int) -> Tensor:
    """Steep, flat, with many equals, and with most entries forbidden."""
    rows = seeded(5, V, seed=seed) * torch.tensor([[8.0], [1e-3], [2.0], [3.0], [0.0]])
    rows[2] = rows[2].round()
    rows[3, torch.randperm(V, generator=torch.Generator().manual_seed(seed))[: V - V // 8 - 1]] = -INF
    return rows


def draws_for(V: int, num_rows: int, count: int) -> list[Draw]:
    chance = random.Random(V)
    kinds = list(
        itertools.product(
            (1e-5, 0.3, 1.0, 5.0),
            (-1, 0, 1, 3, V - 1, V, V + 7),
            (1.0, 0.999, 0.7, 0.2, 1e-6),
            (0.0, 0.01, 0.6, 1.0),
        )
    )
    return [
        Draw(chance.randrange(num_rows), *chance.choice(kinds), chance.getrandbits(64)) for _ in range(count)
    ]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_threads", THREADS)
@pytest.mark.parametrize("V", SIZES)
def test_a_token_is_the_one_of_the_definition(isa: str, num_threads: int, V: int) -> None:
    rows = rows_of(V, seed=V)
    draws = draws_for(V, len(rows), 120)
    found = kernels(isa, num_threads).draw(rows, draws)
    wanted = [by_definition(rows[draw.row].tolist(), draw) for draw in draws]
    assert [got for got, want in zip(found, wanted, strict=True) if want is not None] == [
        want for want in wanted if want is not None
    ]
    assert sum(want is not None for want in wanted) > 80


@pytest.mark.parametrize("isa", ISAS)
def test_a_token_depends_on_no_company(isa: str) -> None:
    rows = rows_of(1030, seed=3)
    draws = draws_for(1030, len(rows), 64)
    together = kernels(isa, 2).draw(rows, draws)
    one = kernels(isa)
    assert [one.draw(rows[draw.row][None].clone(), [draw._replace(row=0)])[0] for draw in draws] == together
    assert one.draw(rows.flip(0), [draw._replace(row=4 - draw.row) for draw in draws[::-1]]) == together[::-1]


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa not in ("portable", "emulated")])
def test_tokens_of_a_wide_vocabulary(isa: str) -> None:
    """As torch draws them."""
    V = 151_936
    rows = seeded(3, V, seed=9) * torch.tensor([[2.5], [0.01], [0.5]])
    rows[2] = (rows[2] * 16).round() / 16
    draws = [
        Draw(i % 3, temperature, top_k, top_p, min_p, 77 + i)
        for i, (temperature, top_k, top_p, min_p) in enumerate(
            [
                *[(1.0, 0, 1.0, 0.0)] * 6, *[(0.7, 0, 0.95, 0.0)] * 6, *[(1.0, 50, 0.9, 0.0)] * 6,
                *[(1.0, 0, 1.0, 0.05)] * 3, *[(2.0, 7000, 1.0, 0.0)] * 3, *[(1.0, 1, 1.0, 0.0)] * 3,
            ]
        )
    ]  # fmt: skip
    assert kernels(isa, 2).draw(rows, draws) == TORCH.draw(rows, draws)


@pytest.mark.parametrize("isa", ISAS)
def test_rows_that_cannot_be_drawn_from(isa: str) -> None:
    plain = Draw(0, 1.0, 0, 1.0, 0.0, 5)
    rows = seeded(4, 200, seed=1)
    rows[1] = -INF
    rows[2, 77] = math.nan
    draws = [plain._replace(row=row, top_k=k, top_p=p) for row in range(4) for k, p in ((0, 1.0), (9, 0.5))]
    found = kernels(isa, 2).draw(rows, draws)
    assert found[2:6] == [-1] * 4
    assert found[:2] + found[6:] == [
        by_definition(rows[draw.row].tolist(), draw) for draw in draws[:2] + draws[6:]
    ]
    rows[0, [60, 150]] = 1e30  # noise is lost in it
    assert kernels(isa).draw(rows, [plain]) == [60]
    rows[0, [60, 150]] = 3e38  # more than float32 holds, after the temperature
    assert kernels(isa).draw(rows, [plain._replace(temperature=0.5)]) == [60]


@pytest.mark.parametrize("isa", ISAS)
def test_all_tokens_are_drawn_as_often_as_their_probability(isa: str) -> None:
    """Over keys, after top-p: within five standard deviations."""
    row = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]])
    shares = row[0].double().softmax(-1).tolist()
    kept = [share if i < 4 else 0.0 for i, share in enumerate(shares)]  # the fourth crosses 0.9
    assert sum(kept[:3]) < 0.9 < sum(kept)
    count = 20_000
    drawn = kernels(isa, 2).draw(
        row, [Draw(0, 1.0, 0, 0.9, 0.0, (key * 0x9E3779B97F4A7C15) & MASK) for key in range(count)]
    )
    for token, share in enumerate(kept):
        p = share / sum(kept)
        assert abs(drawn.count(token) - count * p) <= 5 * math.sqrt(count * p * (1 - p)), token


def described_by_definition(row: Tensor, token: int, num_top: int) -> tuple[float, int, list[int]]:
    wide = row.double()
    logprobs = wide - wide.logsumexp(-1)
    order = sorted(range(len(row)), key=lambda i: (-float(row[i]), i))
    return float(logprobs[token]), 1 + order.index(token), order[:num_top]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("V", SIZES)
def test_what_is_reported_of_a_token(isa: str, V: int) -> None:
    """Entries apart from one another by more than float32 rounds, or equal."""
    rows = (seeded(3, V, seed=V) * 2 * 64).round() / 64
    asked = [(i % 3, (7 * i) % V, num_top) for i, num_top in enumerate((0, 1, 5, 20, V))]
    found = kernels(isa, 2).describe(rows, asked)
    budget = (V / 16 + 40) * F32
    for (row, token, num_top), facts in zip(asked, found, strict=True):
        logprob, rank, order = described_by_definition(rows[row], token, min(num_top, V))
        assert (facts.problem, facts.rank) == (0, rank)
        assert [i for i, _ in facts.top] == order
        assert abs(facts.logprob - logprob) <= budget
        for i, value in facts.top:
            assert abs(value - described_by_definition(rows[row], i, 0)[0]) <= budget
            assert i != token or value == facts.logprob


@pytest.mark.parametrize("isa", ISAS)
def test_bad_rows_are_named_and_spoil_no_other(isa: str) -> None:
    rows = seeded(4, 100, seed=2)
    rows[0, 3], rows[1, 4], rows[2] = math.nan, INF, -INF
    found = kernels(isa, 2).describe(rows, [(row, 5, 3) for row in range(4)])
    assert [facts.problem for facts in found] == [1, 2, 3, 0]
    assert found[3] == kernels(isa).describe(rows[3:], [(0, 5, 3)])[0]


def test_nothing_asked_is_nothing_done() -> None:
    one = kernels(ISAS[0])
    assert one.draw(torch.zeros(2, 5), []) == []
    assert one.describe(torch.zeros(2, 5), []) == []


@pytest.mark.parametrize(
    "draw",
    [
        Draw(2, 1.0, 0, 1.0, 0.0, 0), Draw(0, 0.0, 0, 1.0, 0.0, 0), Draw(0, math.nan, 0, 1.0, 0.0, 0),
        Draw(0, 1.0, 0, 0.0, 0.0, 0), Draw(0, 1.0, 0, 1.0, 1.5, 0), Draw(0, 1.0, 0, 1.0, -0.1, 0),
    ],
)  # fmt: skip
def test_draws_that_make_no_sense_are_refused(draw: Draw) -> None:
    with pytest.raises((ValueError, IndexError)):
        kernels(ISAS[0]).draw(torch.zeros(2, 5), [draw])


@pytest.mark.parametrize("asked", [(2, 0, 0), (0, 5, 0)])
def test_rows_and_tokens_that_are_not_there_are_refused(asked: tuple[int, int, int]) -> None:
    with pytest.raises(IndexError):
        kernels(ISAS[0]).describe(torch.zeros(2, 5), [asked])


def test_torch_reports_the_same() -> None:
    rows: Any = seeded(3, 300, seed=4) * 3
    asked = [(row, token, 8) for row in range(3) for token in (0, 150, 299)]
    for mine, other in zip(kernels(ISAS[0]).describe(rows, asked), TORCH.describe(rows, asked), strict=True):
        assert isinstance(mine, Described)
        assert (mine.rank, [i for i, _ in mine.top]) == (other.rank, [i for i, _ in other.top])
        assert abs(mine.logprob - other.logprob) <= 64 * F32
    assert all(isinstance(one, Greedy) for one in kernels(ISAS[0]).greedy(rows))
