"""Laws: worked values, optima against searches that know no closed form, and refusals."""

import math

import numpy as np
import pytest

from octavo.errors import ConfigError
from octavo.planner.laws import (
    Allocation,
    KaplanLaw,
    MoeLaw,
    ParametricLaw,
    PowerLaw,
    effective_experts,
)
from octavo.planner.published import (
    GOPHER_FLOP,
    KAPLAN_COMPUTE,
    KAPLAN_JOINT,
    KAPLAN_PARAMS,
    PUBLISHED,
    beyond,
    published,
    rates,
)

LAW = ParametricLaw(E=1.7, A=420.0, B=900.0, alpha=0.33, beta=0.31)


def search(loss_of_log_params, low, high):
    """The lowest of a fine grid, refined twice."""
    for _ in range(3):
        grid = np.linspace(low, high, 4001)
        best = grid[np.argmin([loss_of_log_params(x) for x in grid])]
        step = grid[1] - grid[0]
        low, high = best - step, best + step
    return math.exp(best)


@pytest.mark.parametrize("flop", [1e18, 5.76e23, 3e26])
def test_the_optimum_is_where_a_search_finds_it(flop):
    found = search(lambda x: LAW.loss(math.exp(x), flop / 6 / math.exp(x)), math.log(1e6), math.log(1e13))
    best = LAW.optimum(flop)
    assert best.params == pytest.approx(found, rel=1e-6)
    assert 6 * best.params * best.tokens == pytest.approx(flop, rel=1e-12)
    assert best.loss == pytest.approx(LAW.loss(found, flop / 6 / found), rel=1e-12)
    assert best.tokens_per_param == pytest.approx(best.tokens / best.params)


@pytest.mark.parametrize("flop", [1e19, 1e23])
def test_the_optimum_of_the_joint_form(flop):
    found = search(
        lambda x: KAPLAN_JOINT.loss(math.exp(x), flop / 6 / math.exp(x)), math.log(1e6), math.log(1e13)
    )
    assert KAPLAN_JOINT.optimum(flop).params == pytest.approx(found, rel=1e-6)


def test_exponents_say_how_the_optimum_grows():
    one, ten = LAW.optimum(1e21), LAW.optimum(1e22)
    assert math.log10(ten.params / one.params) == pytest.approx(LAW.params_exponent)
    assert math.log10(ten.tokens / one.tokens) == pytest.approx(LAW.tokens_exponent)
    assert LAW.params_exponent + LAW.tokens_exponent == pytest.approx(1.0)
    assert LAW.optimum_of_params(one.params).flop == pytest.approx(1e21, rel=1e-9)


def test_tokens_for_a_loss_and_the_loss_of_those_tokens():
    tokens = LAW.tokens_for_loss(7e9, 2.1)
    assert LAW.loss(7e9, tokens) == pytest.approx(2.1, rel=1e-12)
    assert math.isinf(LAW.tokens_for_loss(1e6, 2.1))


@pytest.mark.parametrize(
    ("name", "tokens_per_param", "params"),
    [
        ("corrected", 17.92, 73.19e9),
        ("chinchilla", 58.93, 40.36e9),
        ("chinchilla-rounded", 92.65, 32.19e9),
        ("chinchilla-0.29", 41.61, 48.03e9),
    ],
)
def test_what_rounding_does(name, tokens_per_param, params):
    """Tokens per parameter at the Gopher budget: 18 to 93, by how two exponents are rounded."""
    best = PUBLISHED[name].optimum(GOPHER_FLOP)
    assert best.tokens_per_param == pytest.approx(tokens_per_param, abs=0.005)
    assert best.params == pytest.approx(params, rel=5e-4)
    assert PUBLISHED[name].is_sound == (name in ("corrected", "chinchilla"))


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("corrected", 1.9734),
        ("chinchilla", 1.9208),
        ("chinchilla-rounded", 1.9366),
        ("chinchilla-0.29", 1.8968),
    ],
)
def test_predicted_loss_of_the_70b_model(name, loss):
    assert PUBLISHED[name].law.loss(70e9, 1.4e12) == pytest.approx(loss, abs=5e-5)


def test_paper_tables_are_met():
    """Hoffmann et al. 2022 (arXiv 2203.15556): figure 4 and table A3 for approach 3, tables 3 and A3 for the others;
    Kaplan et al. 2020 (arXiv 2001.08361) table 6, a PF-day."""
    assert PUBLISHED["chinchilla"].optimum(GOPHER_FLOP).params == pytest.approx(40e9, rel=0.02)
    assert PUBLISHED["chinchilla"].optimum(1.71e24).params == pytest.approx(67e9, rel=0.015)
    assert PUBLISHED["chinchilla-1"].optimum(1.21e20).params == pytest.approx(1e9, rel=0.02)
    assert PUBLISHED["chinchilla-1"].optimum(9.90e24).params == pytest.approx(280e9, rel=0.02)
    assert PUBLISHED["chinchilla-2"].optimum(1.32e22).params == pytest.approx(10e9, rel=0.04)
    assert PUBLISHED["chinchilla-1"].law.constants()["exponent"] == pytest.approx(0.50, abs=0.005)
    assert PUBLISHED["chinchilla-2"].law.constants()["exponent"] == pytest.approx(0.49, abs=0.005)
    assert PUBLISHED["chinchilla"].law.params_exponent == pytest.approx(0.46, abs=0.005)
    assert PUBLISHED["kaplan"].optimum(8.64e19).params == pytest.approx(1.3e9)


def test_kaplan_of_one_variable():
    assert KAPLAN_PARAMS.loss(1e9) == pytest.approx(2.3756, abs=5e-5)
    assert KAPLAN_COMPUTE.loss(3.1e8 * 8.64e19) == pytest.approx(1.0)
    assert PowerLaw(scale=2.0, exponent=0.5, E=1.0).losses([2.0, 8.0]).tolist() == pytest.approx([2.0, 1.5])


def test_the_joint_form_has_the_laws_of_one_variable_at_its_ends():
    far = 1e40
    assert KAPLAN_JOINT.loss(1e9, far) == pytest.approx((6.4e13 / 1e9) ** 0.076, rel=1e-6)
    assert KAPLAN_JOINT.loss(far, 1e10) == pytest.approx((1.8e13 / 1e10) ** 0.103, rel=1e-6)


def test_a_joint_law_of_experts_is_a_plain_law_for_each_number_of_them():
    law = MoeLaw(
        a=400.0, delta=-0.1, alpha=-0.3, gamma=0.01, b=700.0, omega=0.05, beta=-0.28, zeta=-0.004, c=1.6
    )
    for experts in (1.0, 8.0, 64.0):
        plain = law.at_experts(experts)
        assert plain.loss(1e9, 2e10) == pytest.approx(float(law.losses(1e9, 2e10, experts)), rel=1e-12)
    assert law.at_experts(1.0).alpha == pytest.approx(0.3)
    grows = MoeLaw(a=1.0, delta=0, alpha=-0.1, gamma=0.2, b=1.0, omega=0, beta=-0.1, zeta=0, c=1.0)
    with pytest.raises(ConfigError, match="alpha of a ParametricLaw must be positive"):
        grows.at_experts(8.0)


def test_experts_count_less_the_more_there_are():
    counted = [effective_experts(e, start=1.5, maximum=300.0) for e in (1, 2, 8, 64, 4096)]
    assert counted[0] == pytest.approx(1.5)
    assert counted == sorted(counted)
    assert counted[-1] < 300.0
    with pytest.raises(ConfigError, match="start 5, maximum 2"):
        effective_experts(4, start=5, maximum=2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: ParametricLaw(E=1.7, A=-1.0, B=1.0, alpha=0.3, beta=0.3),
            "A of a ParametricLaw must be positive",
        ),
        (
            lambda: ParametricLaw(E=-0.1, A=1.0, B=1.0, alpha=0.3, beta=0.3),
            "E of a ParametricLaw must be at least 0",
        ),
        (lambda: PowerLaw(scale=math.nan, exponent=0.1), "scale of a PowerLaw"),
        (lambda: KaplanLaw(Nc=1.0, Dc=1.0, alpha_n=0.1, alpha_d=0.0), "alpha_d of a KaplanLaw"),
        (lambda: Allocation(anchor_flop=0.0, params_at_anchor=1.0, exponent=0.5), "anchor_flop"),
        (lambda: published("chinchila"), "unknown law 'chinchila'; published laws: kaplan, chinchilla-1"),
    ],
)
def test_nonsense_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_rates_of_a_budget():
    """DeepSeek LLM 2024 (arXiv 2401.02954) eq. 1, worked by hand for 1e20 FLOPs."""
    got = rates(1e20)
    assert got.batch_tokens == pytest.approx(0.2920 * 10 ** (20 * 0.3271))
    assert got.learning_rate == pytest.approx(0.3118 * 10**-2.5)


def test_published_laws_say_how_far_their_runs_reached():
    texts = beyond("corrected", params=73e9, tokens=1.3e12, flop=5.76e23)
    assert [text.split(" = ")[0] for text in texts] == ["C", "N", "D"]
    assert "44.3 times above the largest of the runs of corrected" in texts[0]
    assert beyond("corrected", params=1e9, tokens=2e10, flop=1.2e20) == []
    assert beyond("kaplan", params=1e12, tokens=1e9, flop=6e21) == []
