"""The scaling part of the shared worked values, which were computed by other code."""

import pytest

from octavo.planner.laws import ParametricLaw
from octavo.planner.published import PUBLISHED
from octavo.planner.served import flop_costs, life, of_quality
from tests.shared_data import document

NAMES = {
    "best_fit": "corrected",
    "hoffmann_unrounded": "chinchilla",
    "hoffmann_rounded": "chinchilla-rounded",
    "rounded": "chinchilla-rounded",
    "slide_0.29": "chinchilla-0.29",
}


def scaling():
    return document("golden/model_arithmetic.json")["scaling"]


def test_constants():
    told = scaling()
    for name, value in told["best_fit_drop5"].items():
        assert PUBLISHED["corrected"].law.constants()[name] == pytest.approx(value, rel=2e-6)
    for name in ("A", "B", "E", "alpha", "beta"):
        assert PUBLISHED["chinchilla"].law.constants()[name] == pytest.approx(
            told["hoffmann_unrounded"][name], rel=3e-5
        )
        assert PUBLISHED["epoch"].law.constants()[name] == told["epoch_published"][name]


def test_optima_of_the_gopher_budget():
    for name, told in scaling()["optimum_at_5p76e23_flop"].items():
        best = PUBLISHED[NAMES[name]].optimum(5.76e23)
        assert best.params == pytest.approx(told["N"], rel=2e-4)
        assert best.tokens == pytest.approx(told["D"], rel=4e-4)
        assert best.tokens_per_param == pytest.approx(told["tokens_per_param"], abs=0.006)


def test_losses_of_70b_on_1400b_tokens():
    for name, told in scaling()["loss_at_70B_1p4T"].items():
        assert PUBLISHED[NAMES[name]].law.loss(70e9, 1.4e12) == pytest.approx(told, abs=5e-5)


def test_savings_of_a_smaller_model_that_is_served():
    told = scaling()["inference_aware_13B_vs_7B_2T_served"]
    laws = {NAMES[name]: PUBLISHED[NAMES[name]].law for name in told if name in NAMES}
    laws["alpha0.336_beta0.283"] = ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.336, beta=0.283)
    for name, figures in told.items():
        if name == "published_claim":
            continue
        law, costs = laws[NAMES.get(name, name)], flop_costs(2e12)
        quality = law.optimum_of_params(13e9)
        large = life(law, costs, quality.params, quality.tokens).total_cost
        small = of_quality(law, costs, 7e9, quality.loss).total_cost
        assert large - small == pytest.approx(figures["saving_flop"], rel=0.005)
        assert 100 * (1 - small / large) == pytest.approx(figures["saving_pct"], abs=0.06)
