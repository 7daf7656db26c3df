"""IsoFLOP valleys and envelopes: on laws whose optimum is known, on the public points, and where they cannot work."""

import csv

import numpy as np
import pytest

from octavo.errors import ConfigError
from octavo.planner import isoflop
from octavo.planner.laws import ParametricLaw
from octavo.planner.published import PUBLISHED
from octavo.planner.runs import from_columns
from tests.shared_data import shared

LEVEL = ParametricLaw(E=1.7, A=400.0, B=400.0, alpha=0.3, beta=0.3)
LOPSIDED = ParametricLaw(E=1.7, A=400.0, B=4000.0, alpha=0.25, beta=0.40)


def sweep(law, low, high, sizes=9, budgets=5):
    """Sizes from `low` to `high` times the optimum at each budget."""
    flop = np.repeat(np.geomspace(1e18, 1e21, budgets), sizes)
    best = np.array([law.optimum(c).params for c in flop])
    params = best * np.tile(np.geomspace(low, high, sizes), budgets)
    tokens = flop / 6 / params
    return from_columns({"params": params, "tokens": tokens, "loss": law.losses(params, tokens)})


def test_a_level_valley_seen_from_its_middle_is_read_right():
    runs = sweep(LEVEL, 1 / 3, 3)
    found = isoflop.valleys(runs)
    assert len(found) == 5
    for one in found:
        assert one.is_inside
        assert one.optimum == pytest.approx(LEVEL.optimum(one.flop).params, rel=1e-6)
    trend = isoflop.parabola_trend(found)
    assert trend.exponent == pytest.approx(0.5, abs=1e-6)
    assert trend.params(1e24) == pytest.approx(LEVEL.optimum(1e24).params, rel=1e-4)
    assert trend.allocation(1e24).optimum(1e22).params == pytest.approx(trend.params(1e22))
    assert isoflop.parabola_bias(runs, found, LEVEL, 1e24) == pytest.approx(1.0, abs=1e-4)


def test_parabolas_are_biased_where_the_valley_leans_or_is_seen_from_one_side():
    """The sizes of a lopsided law, wide and off centre: noise-free and yet wrong, and said to be."""
    for low, high in ((1 / 30, 30), (1 / 1.5, 12)):
        runs = sweep(LOPSIDED, low, high)
        found = isoflop.valleys(runs)
        told = isoflop.parabola_bias(runs, found, LOPSIDED, 1e24)
        seen = isoflop.parabola_trend(found).params(1e24) / LOPSIDED.optimum(1e24).params
        assert told == pytest.approx(seen, rel=1e-9)
        assert abs(np.log(told)) > 0.02


def test_budgets_are_told_apart():
    runs = from_columns(
        {
            "params": [1e8, 2e8, 3e8, 1e8, 2e8, 5e8],
            "flop": [1.00e19, 1.04e19, 0.98e19, 3.0e19, 3.02e19, 9e20],
            "loss": [3.0] * 6,
        }
    )
    assert isoflop.budgets(runs) == [(2, 0, 1), (3, 4)]
    assert isoflop.valleys(runs) == []


def test_the_public_points_give_the_exponent_of_approach_two():
    """0.49 in table 2 of Hoffmann et al. 2022 (arXiv 2203.15556), from the same runs before they were drawn."""
    with shared("scaling/chinchilla_fig4_points.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    runs = from_columns(
        {
            "params": [float(row["params_N"]) for row in rows],
            "flop": [float(row["train_flop_C"]) for row in rows],
            "loss": [float(row["loss"]) for row in rows],
        }
    ).without_highest_losses(5)
    trend = isoflop.parabola_trend(isoflop.valleys(runs))
    assert trend.exponent == pytest.approx(0.49, abs=0.01)
    assert trend.params(5.76e23) == pytest.approx(PUBLISHED["chinchilla-2"].optimum(5.76e23).params, rel=0.05)


def test_a_floor_outside_the_sizes_is_not_used():
    found = isoflop.valleys(sweep(LEVEL, 1.5, 9))
    assert not any(one.is_inside for one in found)
    with pytest.raises(ConfigError, match="0 of their valleys have their floor among them"):
        isoflop.parabola_trend(found)


def test_an_arch_has_no_floor():
    params = np.geomspace(1e8, 1e9, 5)
    runs = from_columns(
        {"params": params, "flop": np.full(5, 1e20), "loss": 3 - (np.log(params) - 19) ** 2 / 10}
    )
    (only,) = isoflop.valleys(runs)
    assert only.optimum is None


def test_an_envelope_of_many_sizes_follows_the_optimum():
    params = np.repeat(np.geomspace(1e6, 1e9, 16), 30)
    tokens = np.tile(np.geomspace(1e7, 1e12, 30), 16)
    runs = from_columns({"params": params, "tokens": tokens, "loss": LEVEL.losses(params, tokens)})
    found = isoflop.envelope(runs)
    assert found.trend.exponent == pytest.approx(0.5, abs=0.02)
    for flop in (1e16, 1e17, 1e18):
        won = found.params[np.argmin(abs(np.log(found.flop / flop)))]
        assert won == pytest.approx(LEVEL.optimum(flop).params, rel=0.6)
    at = np.argmin(abs(np.log(found.flop / 1e17)))
    assert found.loss[at] == pytest.approx(LEVEL.optimum(float(found.flop[at])).loss, rel=0.01)


def test_what_an_envelope_cannot_be_drawn_through():
    params, tokens = np.repeat([1e8, 1e9], 5), np.tile(np.geomspace(1e9, 1e11, 5), 2)
    two = from_columns({"params": params, "tokens": tokens, "loss": LEVEL.losses(params, tokens)})
    with pytest.raises(ConfigError, match="three sizes with several token counts each; 2 have them"):
        isoflop.envelope(two)
    params, tokens = np.repeat([1e7, 2e10, 4e10], 5), np.tile(np.geomspace(1e8, 1e9, 5), 3)
    small_wins = from_columns({"params": params, "tokens": tokens, "loss": LEVEL.losses(params, tokens)})
    with pytest.raises(ConfigError, match="train more sizes, or each of them longer"):
        isoflop.envelope(small_wins)


def test_one_budget_is_no_line():
    with pytest.raises(ConfigError, match="optima at two budgets or more, got 1"):
        isoflop.line(np.array([1e20]), np.array([1e9]))
