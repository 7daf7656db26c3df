"""Figures by hand, charts that fetch nothing, and traces that a viewer can open."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from octavo.core.limits import Limits
from octavo.errors import ConfigError
from octavo.sim.lengths import Fixed, Poisson, Uniform
from octavo.sim.page import page
from octavo.sim.perfetto import trace_events
from octavo.sim.report import Slo, lines, spread, summary
from octavo.sim.served import MAX_SAMPLES, Tally
from octavo.sim.timing import Host, Linear, Timing, Work
from octavo.sim.traces import Replay, Row, Trace
from octavo.sim.workload import Leaving, Maker, Mix, Open
from octavo.sim.world import Deployment, Outcome, simulate

LIMITS = Limits(num_blocks=11, block_tokens=16, max_num_seqs=2, max_num_batched_tokens=64, max_model_len=160)


def by_hand() -> Outcome:
    """Steps of 1 s. a: prompt in [0, 1], tokens at 1, 2, 3. b: comes at 0.5, in a's second step, tokens at 2, 3."""
    rows = (
        Row(arrival_s=0.0, prompt_tokens=8, output_tokens=3),
        Row(arrival_s=0.5, prompt_tokens=8, output_tokens=2),
    )
    timing = Timing(model=Linear(overhead_s=1.0), host=Host(reply_s=0.25))
    limits = replace(
        LIMITS, max_num_batched_tokens=16
    )  # a prompt is a long step, after which it is planned anew
    return simulate(Deployment(limits=limits, timing=timing), Replay(Trace("plain", rows)))


def test_figures_by_hand() -> None:
    first, second = lines(by_hand())
    assert (first.queue_s, first.ttft_s, first.tpot_s, first.e2e_s) == (0.0, 1.25, 1.0, 3.25)
    assert (second.queue_s, second.ttft_s, second.tpot_s, second.e2e_s) == (0.5, 1.75, 1.0, 2.75)
    found = summary(by_hand(), Slo(ttft_s=1.5, quantile=0.5), usd_per_hour=36.0)
    assert found["duration_s"] == 3.0
    assert found["throughput"]["output_tokens_per_s"] == pytest.approx(5 / 3)
    assert found["ttft_s"] == {"mean": 1.5, "p50": 1.5, "p90": 1.7, "p95": 1.725, "p99": 1.745, "max": 1.75}
    assert found["itl_s"]["p50"] == 1.0
    assert found["batch"]["mean_seqs"] == pytest.approx((1 + 2 + 2) / 3)
    assert found["kv"]["mean_use"] == pytest.approx((1 + 2 + 2) / 3 / 10)
    assert found["busy_share"] == 1.0
    goodput = found["goodput"]
    assert (goodput["share"], goodput["is_met"], goodput["broken_by"]) == (0.5, True, {"ttft_s": 1})
    assert found["cost"]["usd"] == pytest.approx(0.03)
    assert found["cost"]["usd_per_million_output_tokens"] == pytest.approx(0.03 / 5 * 1e6)


def test_percentiles_are_between_neighbours() -> None:
    found = spread([4.0, 1.0, 3.0, 2.0])
    assert (found["mean"], found["p50"], found["max"]) == (2.5, 2.5, 4.0)
    assert found["p90"] == pytest.approx(3.7)
    assert spread([]) is None


def test_those_who_left_are_not_held_against_it_and_the_refused_are() -> None:
    mix = Mix(prompt=Uniform(10, 200), output=Fixed(8), leaving=Leaving(share=0.5, after_s=0.01))
    outcome = simulate(
        Deployment(limits=LIMITS, timing=Timing(model=Linear(overhead_s=0.05))),
        Open(gaps=Poisson(2), maker=Maker(mix, 0), num_requests=60),
    )
    found = summary(outcome, Slo(ttft_s=1000))
    sent = found["requests"]
    assert sent["cancelled"] > 5
    assert sent["refused"] > 5
    assert found["goodput"]["share"] == pytest.approx(sent["answered"] / (sent["answered"] + sent["refused"]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ttft_s": 0}, "ttft_s must be above 0 seconds, got 0"),
        ({"quantile": 0}, "above 0 and at most 1, got 0"),
    ],
)
def test_wrong_objectives_are_named(values, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Slo(**values)


def test_a_page_fetches_nothing_and_is_the_same_each_time() -> None:
    outcome = by_hand()
    document = summary(outcome, Slo(ttft_s=1.5), 3.0)
    text = page(outcome, document, "<Title>")
    assert text == page(outcome, document, "<Title>")
    assert "&lt;Title&gt;" in text
    assert text.count("<svg") == 6
    assert not re.search(r"(src|href)=.(https?:)?//", text)
    assert "<script" not in text
    named = {found for found in re.findall(r"https?://[^\"' ]+", text) if "www.w3.org" not in found}
    assert not named, "names of XML formats alone"


def test_a_trace_has_spans_that_add_up_and_do_not_overlap() -> None:
    outcome = simulate(
        Deployment(limits=LIMITS, timing=Timing(model=Linear(overhead_s=0.01)), num_replicas=2),
        Open(
            gaps=Poisson(20),
            maker=Maker(Mix(prompt=Uniform(10, 60), output=Uniform(1, 30)), 0),
            num_requests=60,
        ),
    )
    events = json.loads(json.dumps(trace_events(outcome)))["traceEvents"]
    spans: dict[str, float] = {}
    lanes: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            spans[event["args"]["request"]] = spans.get(event["args"]["request"], 0.0) + event["dur"]
            lanes.setdefault((event["pid"], event["tid"]), []).append(
                (event["ts"], event["ts"] + event["dur"])
            )
    for line in lines(outcome):
        assert spans[line.request_id] == pytest.approx(line.e2e_s * 1e6)
    for ones in lanes.values():
        ones.sort()
        for (_, ended), (begun, _) in pairwise(ones):
            assert begun >= ended - 1e-6
    assert {event["name"] for event in events if event["ph"] == "C"} == {"sequences", "KV blocks", "waiting"}


def test_a_curve_stays_short() -> None:
    tally = Tally(replica=0, num_kv_blocks=10)
    for number in range(10 * MAX_SAMPLES):
        tally.launched(number, 1, Work(num_decodes=1, decode_context=1), 1, 0)
    assert MAX_SAMPLES // 4 <= len(tally.samples) <= MAX_SAMPLES
    assert tally.samples[0][0] <= 16
    assert tally.num_steps == 10 * MAX_SAMPLES
