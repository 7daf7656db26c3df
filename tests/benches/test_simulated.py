"""The bench that holds plans against simulations: its arrivals, when it gives up, and how it decides."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from benches.planner import simulated
from benches.planner.simulated import APART, Even, Trials, excess, tensor_plans
from octavo.arch import known
from octavo.planner.capacity import Load, Replica
from octavo.planner.formats import FORMATS
from octavo.planner.front_end import FrontEnd
from octavo.planner.hardware import device
from octavo.planner.kv_layouts import LAYOUTS
from octavo.planner.layouts import Ask
from octavo.planner.slo import Slo
from octavo.sim.lengths import Poisson, Uniform
from octavo.sim.workload import Maker, Mix

ASKED = Ask(
    shape=known.shape("llama-3.1-8b"),
    devices=(device("h100"), device("h200")),
    weights=(FORMATS["fp8"],),
    kvs=(LAYOUTS["fp8"],),
    load=Load(prompt_tokens=600, output_tokens=40),
    slo=Slo(ttft_s=0.5, tpot_s=0.02),
    requests_per_s=180.0,
    front_end=FrontEnd(),
)


def test_those_looked_at_come_at_the_very_rate() -> None:
    mix = Mix(prompt=Uniform(5, 9), output=Uniform(2, 4))
    even = Even(
        gaps=Poisson(7.0),
        maker=Maker(mix, 3),
        num_requests=400,
        looked_at=(100, 300),
        longest_s=1e9,
    )
    at_s = [job.at_ns / 1e9 for job in even.arrivals()]
    assert len(at_s) == 400
    assert at_s == sorted(at_s)
    assert 199 / (at_s[299] - at_s[100]) == pytest.approx(7.0)
    gaps = [after - before for before, after in pairwise(at_s)]
    mean = sum(gaps) / len(gaps)
    assert sum((gap / mean - 1) ** 2 for gap in gaps) / len(gaps) == pytest.approx(1.0, abs=0.35)


def test_a_simulation_ends_when_it_is_hopeless() -> None:
    plan = tensor_plans(ASKED)[0]
    kept = excess(ASKED, plan.replica, plan.num_replicas + 1, 0)
    assert 0.1 < kept < 1
    stricter = replace(ASKED, slo=Slo(ttft_s=0.5 * kept / 20, tpot_s=0.02 * kept / 20))
    assert math.isinf(excess(stricter, plan.replica, plan.num_replicas + 1, 0))


class Table:
    """Instead of simulations: by the devices of a replica and replicas, what each seed comes to."""

    def __init__(self, found: dict[tuple[int, int], list[float]]) -> None:
        self.found = found
        self.asked: list[tuple[int, int]] = []

    def __call__(self, asked: Ask, replica: Replica, num_replicas: int, seed: int) -> float:  # noqa: ARG002
        self.asked.append((replica.num_devices, num_replicas))
        return self.found[replica.num_devices, num_replicas][seed // APART]


def test_the_fewest_and_what_is_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(ASKED, devices=(device("h100"),), requests_per_s=900.0)
    by_devices = {plan.replica.num_devices: plan for plan in tensor_plans(asked)}
    one, two = by_devices[1], by_devices[2]
    count, pairs = one.num_replicas, two.num_replicas
    monkeypatch.setattr(simulated, "HOPELESS_LOAD", math.inf)
    table = Table(
        {
            (1, count): [0.9],
            (1, count - 1): [1.02, 0.97, 0.98],  # kept by the mean of three seeds
            (1, count - 2): [math.inf],
            (2, pairs): [0.8],
            (2, pairs - 1): [0.99, 1.03, 1.04],  # not by one
        }
    )
    monkeypatch.setattr(simulated, "excess", table)
    trials = Trials(asked=asked, seed=0)
    assert trials.fewest(one) == count - 1
    assert trials.num_torn == 1
    assert trials.most_kept == pytest.approx(900 / (count - 1) / one.most.requests_per_s)
    assert trials.fewest(two) == pairs
    dear = trials.usd_per_hour(two, pairs) * 1.06
    assert trials.cheaper(two, dear) == trials.usd_per_hour(two, pairs)
    table.asked.clear()
    assert trials.cheaper(two, trials.usd_per_hour(two, pairs)) == trials.usd_per_hour(two, pairs)
    assert (2, pairs) not in table.asked  # what is not cheaper is not simulated


def test_hopeless_loads_are_not_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(ASKED, requests_per_s=900.0)
    plan = tensor_plans(asked)[0]
    table = Table({(plan.replica.num_devices, plan.num_replicas): [0.5]})
    monkeypatch.setattr(simulated, "excess", table)
    trials = Trials(asked=asked, seed=0)
    assert trials.keeps(plan, plan.num_replicas)
    assert not trials.keeps(plan, 1)
    assert table.asked == [(plan.replica.num_devices, plan.num_replicas)]
