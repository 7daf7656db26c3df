"""Money for tokens: worked values, published books of one service's day, and sums that have to come out."""

from __future__ import annotations

import pytest

from octavo.arch import known
from octavo.errors import ConfigError
from octavo.planner.capacity import Load, Replica, Steps, balance, room_for
from octavo.planner.cost import (
    Price,
    break_even,
    most_watt_hours_per_million,
    pool_size,
    token_seconds,
    usd_per_million,
)
from octavo.planner.formats import FORMATS
from octavo.planner.hardware import device
from octavo.planner.kv_layouts import LAYOUTS
from octavo.planner.parallel import Parallel
from tests.shared_data import document

DAY_S = 86400.0
REPLICA = Replica(
    shape=known.shape("llama-3.1-8b"), device=device("h100"), weights=FORMATS["fp8"], kv=LAYOUTS["fp8"]
)


def test_three_dollars_at_a_thousand_tokens_a_second() -> None:
    want = document("golden/model_arithmetic.json")["capacity"]["cost_3usd_h_1000tok_s_usd_per_million"]
    assert round(usd_per_million(3, 1000), 4) == want == 0.8333
    assert round(usd_per_million(3, 1000, 0.4), 2) == 2.08


# One day of DeepSeek's inference service (deepseek-ai/open-infra-index, 202502OpenSourceWeek, day 6): 608 G tokens in,
# 342 G of them from a cache, 168 G out, 73.7 k and 14.8 k tokens a second and node of 8 GPUs, $2 a GPU and hour.
def test_books_of_a_published_day() -> None:
    prompts = pool_size(608e9, DAY_S, 73_700)
    decodes = pool_size(168e9, DAY_S, 14_800)
    assert (round(prompts, 1), round(decodes, 1)) == (95.5, 131.4)
    assert prompts + decodes == pytest.approx(226.75, rel=0.01)
    cost_usd = 226.75 * 8 * 24 * 2
    assert cost_usd == 87_072
    tokens_per_s = 168e9 / DAY_S
    assert usd_per_million(226.75 * 8 * 2, tokens_per_s) == pytest.approx(0.5183, abs=5e-5)
    listed = Price(input_usd=0.55, cached_usd=0.14, output_usd=2.19)
    revenue_usd = listed.usd(608e9 - 342e9, 342e9, 168e9)
    assert revenue_usd == pytest.approx(562_100)
    assert revenue_usd == pytest.approx(562_027, rel=2e-4)  # as reported
    assert revenue_usd / cost_usd - 1 == pytest.approx(5.45, abs=0.01)
    want = document("golden/model_arithmetic.json")["capacity"]["deepseek_service_day"]
    assert round(prompts + decodes, 2) == want["predicted_total_nodes"]


def test_batches_that_mlperf_configured_have_room() -> None:
    """Llama-2-70B fp8 with OpenOrca's lengths: a submission's batch is not above what is predicted to fit."""
    golden = document("golden/model_arithmetic.json")["capacity"]["llama2_70b_fp8_kv_limited_mean_batch"]
    for name, gpu, ranks in (("H200_TP1", "h200", 1), ("H100_TP2_per_gpu", "h100", 2)):
        replica = Replica(
            shape=known.shape("llama-2-70b"),
            device=device(gpu),
            weights=FORMATS["fp8"],
            kv=LAYOUTS["fp8"],
            parallel=Parallel(tensor=ranks),
            max_seqs=4096,
            utilization=0.95,
        )
        room = room_for(replica, Load(prompt_tokens=294, output_tokens=294))
        assert golden[name]["mlperf_v41_configured"] <= room
        assert room == pytest.approx(golden[name]["value"], rel=0.15)


@pytest.mark.parametrize("cached", [0, 600])
def test_seconds_of_kinds_add_up_to_all_of_them(cached: int) -> None:
    load = Load(prompt_tokens=1000, output_tokens=200, cached_tokens=cached)
    steps = Steps(REPLICA, load)
    made = balance(steps, 60)
    seconds = token_seconds(steps, made)
    whole = seconds.fresh_s * load.fresh_tokens + seconds.cached_s * cached + seconds.output_s * 200
    assert whole == pytest.approx(REPLICA.num_devices / made.requests_per_s)
    assert seconds.output_s > seconds.fresh_s > seconds.cached_s >= 0
    assert (seconds.cached_s > 0) is (cached > 0)
    # a token of a prompt takes at least its arithmetic: 13.96 GFLOP less head and attention, at the peak
    assert seconds.fresh_s > 2 * 6.98e9 / 1978e12


def test_break_even_is_where_both_cost_the_same() -> None:
    load = Load(prompt_tokens=1000, output_tokens=500, cached_tokens=400)
    price = Price(input_usd=0.5, output_usd=1.5, cached_usd=0.1, discount=0.5)
    request_usd = (600 * 0.5 + 400 * 0.1 + 500 * 1.5) / 1e6 / 2
    made = break_even(3.0, 2.0, load, price)
    assert made.request_usd == pytest.approx(request_usd)
    assert made.requests_per_hour * request_usd == pytest.approx(3.0)
    assert made.usd_per_request(made.utilization) == pytest.approx(request_usd)
    assert made.pays is (made.utilization <= 1) is True
    dear = break_even(3.0, 0.5, load, price)
    assert dear.utilization > 1
    assert not dear.pays
    plain = Price(input_usd=0.5, output_usd=1.5)
    assert plain.of_request(load) == pytest.approx((1000 * 0.5 + 500 * 1.5) / 1e6)


def test_power_limits_bound_energy() -> None:
    assert most_watt_hours_per_million(700, 8, 10_000) == pytest.approx(700 * 8 * 100 / 3600)


def test_nonsense_is_refused() -> None:
    load = Load(prompt_tokens=10, output_tokens=10)
    with pytest.raises(ConfigError, match="utilization must be above 0"):
        usd_per_million(3, 1000, 0)
    with pytest.raises(ConfigError, match="tokens a second must be above 0"):
        usd_per_million(3, 0)
    with pytest.raises(ConfigError, match="price of output cannot be negative"):
        Price(input_usd=1, output_usd=-1)
    with pytest.raises(ConfigError, match="a discount lies from 0"):
        Price(input_usd=1, output_usd=1, discount=1)
    with pytest.raises(ConfigError, match="asks nothing"):
        break_even(3, 1, load, Price(input_usd=0, output_usd=0))
    with pytest.raises(ConfigError, match="requests a second must be above 0"):
        break_even(3, 0, load, Price(input_usd=1, output_usd=1))
