"""Layouts are all looked at, refused for the right reason, and ranked by what they cost."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from octavo.arch import known
from octavo.errors import ConfigError
from octavo.planner.arrivals import arriving
from octavo.planner.capacity import Load, Steps, room_for
from octavo.planner.formats import FORMATS
from octavo.planner.hardware import device
from octavo.planner.kv_layouts import LAYOUTS
from octavo.planner.layouts import Ask, Rejected, label, ladder, replicas, spreads
from octavo.planner.parallel import Parallel
from octavo.planner.ranking import Ranking, lost, rank, relax
from octavo.planner.slo import Slo

ASK = Ask(
    shape=known.shape("llama-3.1-70b"),
    devices=(device("h100"), device("h200")),
    weights=(FORMATS["bf16"], FORMATS["fp8"]),
    kvs=(LAYOUTS["bf16"], LAYOUTS["fp8"]),
    load=Load(prompt_tokens=2000, output_tokens=300),
    slo=Slo(ttft_s=1.0, tpot_s=0.05),
    requests_per_s=20,
)


@pytest.fixture(scope="module")
def ranking() -> Ranking:
    return rank(ASK)


def test_spreads_are_all_there() -> None:
    dense = list(spreads(known.shape("llama-3-8b"), 8))
    assert len(dense) == len(set(dense)) == 10  # tensor x pipeline at most 8
    assert Parallel(tensor=2, pipeline=4) in dense
    routed = list(spreads(known.shape("deepseek-v3"), 8))
    assert set(dense) < set(routed)
    assert Parallel(tensor=2, data=4, expert=8) in routed
    assert Parallel(tensor=8, expert=8) in routed
    assert all(one.num_ranks <= 8 for one in routed)


def test_every_layout_is_planned_or_refused(ranking: Ranking) -> None:
    assert len(ranking.plans) + len(ranking.rejected) == len(list(replicas(ASK))) == 2 * 2 * 2 * 10
    assert ranking.num_layouts > 1000
    assert len({plan.label for plan in ranking.plans} | {one.label for one in ranking.rejected}) == 80


def test_plans_keep_the_limits_and_meet_the_demand(ranking: Ranking) -> None:
    for plan in ranking.plans:
        assert plan.ttft_s <= 1.0
        assert plan.tpot_s <= 0.05
        assert plan.most.requests_per_s * plan.num_replicas >= 20 * 0.999
        assert plan.requests_per_s == pytest.approx(20, rel=2e-3)
        assert plan.most.concurrency <= room_for(plan.replica, ASK.load) * 1.0001
        price = {"h100-sxm": 4.5, "h200-sxm": 5.75}[plan.replica.device.name]
        assert plan.usd_per_hour == pytest.approx(price * plan.num_devices)
        assert plan.usd_per_million_output == pytest.approx(
            1e6 * plan.usd_per_hour / 3600 / plan.output_per_s
        )
        fewer = plan.num_replicas - 1
        assert fewer * plan.most.requests_per_s < 20


def test_the_first_is_the_cheapest_and_the_others_say_why_not(ranking: Ranking) -> None:
    costs = [plan.usd_per_hour or math.inf for plan in ranking.plans]
    assert costs[0] == min(costs)
    assert [plan.order for plan in ranking.plans] == sorted(plan.order for plan in ranking.plans)
    reasons = [lost(plan, ranking.plans[0]) for plan in ranking.plans[1:]]
    assert all("dearer" in reason or "as dear" in reason for reason in reasons)
    assert any("TPOT of 50.0 ms ends it" in reason for reason in reasons)


def test_a_larger_load_would_break_a_limit(ranking: Ranking) -> None:
    """What ends a plan's load does: a hundredth more misses, or there is no room for more."""
    for plan in ranking.plans[:10]:
        if plan.limited_by.startswith(("TTFT", "TPOT")):
            steps = Steps(plan.replica, ASK.load)
            made = arriving(steps, plan.most.at_once * 1.01, num_replicas=plan.num_replicas)
            assert made.tpot_s > 0.05 or made.ttft_s + ASK.front_end_s(made.tpot_s) > 1.0
        elif plan.limited_by == "room for keys and values":
            assert plan.most.concurrency == pytest.approx(ladder(plan.replica, ASK.load)[-1], rel=0.01)


def test_one_replica_bears_less_than_each_of_many(ranking: Ranking) -> None:
    """Arrivals at one are less even than at each of many that share them."""
    one = next(plan for plan in ranking.plans if plan.limited_by.startswith("TPOT"))
    few, many = (
        next(plan for plan in rank(replace(ASK, requests_per_s=rate)).plans if plan.label == one.label)
        for rate in (0.9 * one.most.requests_per_s, 40 * one.most.requests_per_s)
    )
    assert few.num_replicas == 1
    assert many.num_replicas >= 40
    assert few.most.requests_per_s < 0.99 * many.most.requests_per_s
    just_too_much = 0.999 * many.most.requests_per_s
    made = arriving(Steps(one.replica, ASK.load), many.most.at_once * 0.999)
    assert made.requests_per_s == pytest.approx(just_too_much, rel=1e-2)
    assert made.tpot_s > 0.05


def test_refusals_are_true(ranking: Ranking) -> None:
    by_label = {one.label: one.reason for one in ranking.rejected}
    alone = by_label["1 x h100-sxm bf16/bf16 alone, 8192 a step"]
    assert alone.startswith("does not fit: 131 GiB of weights")  # 70.55 G parameters x 2
    stages = by_label["8 x h100-sxm bf16/bf16 PP8, 8192 a step"]
    assert stages.startswith("TPOT")
    assert "x its limit even with 8 at once: decoding, by reading weights" in stages


def test_spreads_that_do_not_divide_are_refused_with_what_would() -> None:
    ask = replace(ASK, shape=known.shape("qwen2.5-14b"), max_ranks=16)  # 40 heads
    found = [one for one in replicas(ask) if isinstance(one, Rejected) and "TP16" in one.label]
    assert found
    assert all("does not divide the 40 heads" in one.reason for one in found)


def test_concurrency_is_shared_by_replicas() -> None:
    made = rank(replace(ASK, requests_per_s=None, concurrency=500.0))
    for plan in made.plans[:5]:
        assert plan.num_replicas * plan.made.concurrency == pytest.approx(500)
        assert plan.made.concurrency <= plan.most.concurrency


def test_given_prices_count_and_missing_ones_come_last() -> None:
    cheap = rank(replace(ASK, prices={"h200-sxm": 0.1})).plans
    assert cheap[0].replica.device.name == "h200-sxm"
    priceless = rank(replace(ASK, devices=(device("h100"), device("h100-pcie")), slo=Slo())).plans
    assert priceless[0].replica.device.name == "h100-sxm"
    assert priceless[-1].usd_per_hour is None
    assert "has no price" in lost(priceless[-1], priceless[0])


def test_an_impossible_limit_is_named_with_what_would_do() -> None:
    ask = replace(ASK, slo=Slo(ttft_s=1.0, tpot_s=0.003))
    assert rank(ask).plans == ()
    (one,) = relax(ask)
    assert one.what == ("TPOT",)
    assert one.slo.ttft_s == 1.0
    assert one.slo.tpot_s == pytest.approx(0.003 * one.factor)
    assert one.best.tpot_s <= one.slo.tpot_s
    both = relax(replace(ASK, slo=Slo(ttft_s=0.05, tpot_s=0.003)))
    assert [made.what for made in both] == [("TTFT", "TPOT")]
    # less than what is advised, spare room aside, is not enough
    tight = replace(ask, slo=Slo(ttft_s=1.0, tpot_s=one.slo.tpot_s / 1.11))
    assert rank(tight).plans == ()


def test_what_fits_nowhere_is_said() -> None:
    ask = replace(ASK, devices=(device("l4"),), max_ranks=1)
    assert rank(ask).plans == ()
    with pytest.raises(ConfigError, match="no layout has room for one request"):
        relax(ask)


def test_bad_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="a rate of arrivals or a concurrency"):
        replace(ASK, concurrency=5.0)
    with pytest.raises(ConfigError, match="requests_per_s must be above 0"):
        replace(ASK, requests_per_s=0.0)
    with pytest.raises(ConfigError, match="positions reach 131072"):
        replace(ASK, load=Load(prompt_tokens=140_000, output_tokens=10))
    with pytest.raises(ConfigError, match="needs a device"):
        replace(ASK, devices=())


def test_labels_tell_layouts_apart() -> None:
    made = [one for one in replicas(replace(ASK, budgets=(2048, 8192))) if not isinstance(one, Rejected)]
    assert len({label(one) for one in made}) == len(made)
