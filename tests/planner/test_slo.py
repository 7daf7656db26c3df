"""Limits on means and percentiles, pools apart, and intervals that say where they come from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from octavo.arch import known
from octavo.errors import ConfigError
from octavo.planner import certainty
from octavo.planner.capacity import Load, Replica, Steps, balance, room_for
from octavo.planner.formats import FORMATS
from octavo.planner.hardware import device
from octavo.planner.kv_layouts import LAYOUTS
from octavo.planner.parallel import Parallel
from octavo.planner.roofline import PARTS
from octavo.planner.slo import Slo, misses, tpot_s, ttft_s
from octavo.planner.split import split

LOAD = Load(prompt_tokens=3000, output_tokens=200)
REPLICA = Replica(
    shape=known.shape("llama-3.1-70b"),
    device=device("h100"),
    weights=FORMATS["fp8"],
    kv=LAYOUTS["fp8"],
    parallel=Parallel(tensor=4),
)


def test_percentiles_lie_around_the_mean_and_rise() -> None:
    made = balance(Steps(REPLICA, LOAD), 40)
    for percentile in (10, 50, 90, 99, 99.9):
        assert ttft_s(made, 0.05, percentile) > made.ttft_s - made.wait_s + 0.05
    tails = [ttft_s(made, 0.05, one) for one in (50, 90, 99, 99.9)]
    assert tails == sorted(tails)
    assert ttft_s(made, 0.05) == 0.05 + made.ttft_s < tails[2]
    means = [tpot_s(made, 199, one) for one in (10, 50, 90, 99)]
    assert means == sorted(means)
    assert means[1] == pytest.approx(made.tpot_s)
    deviation = math.sqrt(made.mixed_share * (1 - made.mixed_share) / 199) * (made.mixed_s - made.decode_s)
    assert means[3] == pytest.approx(made.tpot_s + 2.3263 * deviation, rel=1e-4)
    assert tpot_s(made, 0, 99) == made.tpot_s


def test_misses_name_the_worst_first() -> None:
    made = balance(Steps(REPLICA, LOAD), 40)
    assert misses(made, Slo(ttft_s=100, tpot_s=100), 199, 0.05) == ()
    found = misses(made, Slo(ttft_s=(made.ttft_s + 0.05) / 2, tpot_s=made.tpot_s / 5), 199, 0.05)
    assert [one.what for one in found] == ["TPOT", "TTFT"]
    assert str(found[0]).endswith("5.00 x its limit")


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="ttft_s must be above 0"):
        Slo(ttft_s=0)
    with pytest.raises(ConfigError, match="percentile must be at least 1"):
        Slo(percentile=100)


def test_pools_apart_do_what_their_steps_allow() -> None:
    limit = Slo(ttft_s=1.0, tpot_s=0.03)
    pools = split(REPLICA, LOAD, limit, 0.05)
    assert pools is not None
    steps = Steps(REPLICA, LOAD)
    assert pools.tpot_s == pytest.approx(0.03, rel=1e-6)
    assert pools.tpot_s == pytest.approx(steps.seconds(pools.decoding))
    assert pools.ttft_s + 0.05 <= 1.0
    assert pools.prompt_requests_per_s < 1 / steps.seconds(0, 3000)
    assert pools.ratio == pytest.approx(pools.prompt_requests_per_s / pools.decode_requests_per_s)
    prompts, decodes = pools.replicas(10)
    assert prompts == math.ceil(10 / pools.prompt_requests_per_s)
    assert decodes == math.ceil(10 / pools.decode_requests_per_s)
    # 163,840 bytes a token in 8 bits; a rank sends its quarter at 0.9 of 50 GB/s
    assert pools.hand_over_s == pytest.approx(3000 * 163_840 / 4 / 45e9, rel=0.01)


def test_pools_without_limits_are_as_full_as_memory() -> None:
    pools = split(REPLICA, LOAD, Slo(), 0.05)
    assert pools is not None
    assert pools.decoding == room_for(REPLICA, LOAD)
    assert split(REPLICA, LOAD, Slo(tpot_s=1e-4), 0.05) is None
    assert split(REPLICA, LOAD, Slo(ttft_s=0.06), 0.05) is None
    assert split(REPLICA, replace(LOAD, output_tokens=1), Slo(), 0.05) is None


def test_intervals_hold_the_value_and_say_where_they_are_from() -> None:
    for name in ("llama-3.1-8b", "deepseek-v3"):
        for what in ("tpot", "ttft", "rate"):
            made = certainty.predicted(what, known.shape(name), 2.0)
            assert made.low is not None
            assert made.high is not None
            assert made.low < 2.0 < made.high
            assert made.as_json()["basis"] == "predicted"
            turned = certainty.inverse(made, 10.0)
            assert turned.low == pytest.approx(10 * 2 / made.high)
            assert turned.high == pytest.approx(10 * 2 / made.low)
    exact = certainty.Figure(value=5, basis=certainty.EXACT, source="config")
    assert "low" not in exact.as_json()


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_a_step_can_be_the_one_to_measure(part: str) -> None:
    parts = {name: 3.0 if name == part else 1.0 for name in PARTS}
    said = certainty.sharpen(known.shape("llama-3.1-8b"), parts, "assumed")
    assert "60 timed requests" in said
    assert "about 5% either way" in said
    assert "33% of a step" in said
    assert "about 25%" in certainty.sharpen(known.shape("deepseek-v3"), parts, "assumed")
    assert said.endswith("assumed here.")
