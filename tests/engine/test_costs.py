"""What a step costs without tokens, learnt from steps."""

from __future__ import annotations

import random

import pytest

from octavo.engine.costs import EVERY, StepCosts


def told(costs: StepCosts, steps: list[tuple[int, float]]) -> list[int]:
    found = []
    for num_tokens, took_s in steps:
        costs.note(num_tokens, took_s)
        news = costs.news()
        if news is not None:
            found.append(news)
    return found


def steps(count: int, fixed_s: float, token_s: float, seed: int = 1) -> list[tuple[int, float]]:
    """A tenth of noise."""
    rng = random.Random(seed)
    sizes = [rng.choice([1, 4, 9, 100, 200]) for _ in range(count)]
    return [(size, (fixed_s + size * token_s) * rng.uniform(0.95, 1.05)) for size in sizes]


@pytest.mark.parametrize(("fixed_s", "token_s"), [(1e-3, 6e-5), (50e-3, 8e-4), (1e-4, 1e-3)])
def test_it_is_where_the_line_meets_zero(fixed_s, token_s):
    found = told(StepCosts(), steps(2000, fixed_s, token_s))
    wanted = max(fixed_s / token_s, 1)
    assert found[-1] == pytest.approx(wanted, rel=0.3, abs=1.5)


def test_it_is_told_anew_only_when_it_is_off():
    costs = StepCosts()
    first = told(costs, steps(3000, 20e-3, 6e-4))
    assert 1 <= len(first) <= 4
    assert len(told(costs, steps(3000, 20e-3, 6e-4, seed=2))) <= 2


def test_a_machine_that_changes_is_noticed():
    costs = StepCosts()
    before = told(costs, steps(2000, 1e-3, 6e-5))[-1]
    after = told(costs, steps(4000, 4e-3, 6e-5))[-1]
    assert after == pytest.approx(4 * before, rel=0.4)


@pytest.mark.parametrize("taken", [[(8, 1e-3)] * 500, [(n % 9 + 1, 1 / (n % 9 + 1)) for n in range(500)]])
def test_nothing_is_said_where_nothing_can_be_known(taken):
    """All of one size; or larger ones took less."""
    assert told(StepCosts(), taken) == []
    assert told(StepCosts(), steps(EVERY - 1, 1e-3, 6e-5)) == []
