"""The search finds what trying everything finds, rules out nothing that would do, and says what binds."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from octavo.core.limits import Limits
from octavo.errors import ConfigError
from octavo.sim.lengths import Fixed, Lognormal, Poisson, Uniform
from octavo.sim.report import Slo, lines, summary
from octavo.sim.search import Built, Candidate, Choice, found_json, ruled_out, search
from octavo.sim.timing import Blend, Linear, Timing
from octavo.sim.workload import Maker, Mix, Open
from octavo.sim.world import Deployment, simulate

LIMITS = Limits(
    num_blocks=800, block_tokens=16, max_num_seqs=64, max_num_batched_tokens=1024, max_model_len=4096
)
MIX = Mix(prompt=Lognormal(300, 1.0, 2000), output=Uniform(5, 150))
SPACE = {"replicas": [1, 2, 3, 5], "seats": [4, 32], "speed": [1.0, 0.5]}


def build(choice: Choice) -> Built:
    speed = choice["speed"]
    model = Linear(overhead_s=0.008 * speed, token_s=4e-5 * speed, context_s=6e-8 * speed)
    deployment = Deployment(
        limits=replace(LIMITS, max_num_seqs=choice["seats"]),
        timing=Timing(model=model),
        num_replicas=choice["replicas"],
    )
    return Built(deployment, choice["replicas"] * (3.0 if speed == 1.0 else 5.0))


def opened(rate: float = 25, num_requests: int = 40) -> Open:
    return Open(gaps=Poisson(rate), maker=Maker(MIX, 3), num_requests=num_requests)


def everything(slo: Slo, rate: float) -> list[tuple[float, float, Choice]]:
    found = []
    for values in itertools.product(*SPACE.values()):
        choice = dict(zip(SPACE, values, strict=True))
        built = build(choice)
        share = summary(simulate(built.deployment, opened(rate)), slo)["goodput"]["share"]
        found.append((built.usd_per_hour, share, choice))
    return found


@pytest.mark.parametrize("rate", [2, 40])
@pytest.mark.parametrize(
    "slo", [Slo(ttft_s=0.2, tpot_s=0.03), Slo(e2e_s=1.0, quantile=0.9), Slo(tpot_s=0.012)]
)
def test_it_finds_what_trying_everything_finds(slo: Slo, rate: float) -> None:
    found = search(SPACE, build, opened(rate), slo)
    tried = everything(slo, rate)
    met = [usd for usd, share, _ in tried if share >= slo.quantile]
    assert (found.best is None) == (not met)
    if found.best is not None:
        assert found.best.usd_per_hour == min(met)
    by_choice = {json.dumps(choice): share for _, share, choice in tried}
    for one in found.candidates:
        share = by_choice[json.dumps(one.choice)]
        if one.ruled_out is None:
            assert one.share == share
        else:
            assert share < slo.quantile, one.ruled_out


@pytest.mark.parametrize(
    ("slo", "rate", "because"),
    [
        (Slo(tpot_s=0.003), 2, "a step takes at least 0.00402 s"),
        (Slo(ttft_s=0.005), 2, "of prompts are computed within 0.005 s"),
        (Slo(e2e_s=0.5), 4000, "the answers alone are"),
    ],
)
def test_what_cannot_be_is_ruled_out_with_a_reason(slo: Slo, rate: float, because: str) -> None:
    one = build({"replicas": 1, "seats": 4, "speed": 0.5}).deployment
    workload = opened(rate, 400)
    assert because in ruled_out(one, workload, slo)
    assert not summary(simulate(one, workload), slo)["goodput"]["is_met"]


def test_what_experts_of_an_idle_replica_take_over_is_not_ruled_out() -> None:
    """Ten tokens take 4 + 10 ms on a replica of its own, and 4 + 5 + 2.5 where an idle one computes its share."""
    timing = Timing(model=Blend(overhead_s=0.004, token_s=0.001, group_share=0.5))
    mix = Mix(prompt=Fixed(10), output=Fixed(1))
    workload = Open(gaps=Poisson(0.1), maker=Maker(mix, 0), num_requests=5)
    slo = Slo(ttft_s=0.012)
    one = Deployment(limits=LIMITS, timing=timing, num_replicas=2, lockstep=2)
    assert ruled_out(one, workload, slo) is None
    assert summary(simulate(one, workload), slo)["goodput"]["is_met"]
    assert "of prompts are computed" in ruled_out(replace(one, lockstep=1), workload, slo)
    assert "of prompts are computed" in ruled_out(one, workload, Slo(ttft_s=0.011))


def test_without_an_answer_it_says_what_binds_and_what_would_have_to_give() -> None:
    slo = Slo(ttft_s=0.2, tpot_s=0.0045)
    found = search(SPACE, build, opened(num_requests=80), slo)
    assert found.best is None
    assert found.binding == "tpot_s"
    name, value, choice = found.relaxation
    assert name == "tpot_s"
    assert value > 0.0045
    outcome = simulate(build(choice).deployment, opened(num_requests=80))
    assert summary(outcome, replace(slo, tpot_s=value))["goodput"]["is_met"]
    assert not summary(outcome, replace(slo, tpot_s=value * 0.999))["goodput"]["is_met"]
    others = [one.needs["tpot_s"] for one in found.candidates if "tpot_s" in one.needs]
    assert value == min(others)


def test_the_front_is_beaten_by_nobody() -> None:
    found = search(SPACE, build, opened(), Slo(ttft_s=0.2, tpot_s=0.03))
    tried = [one for one in found.candidates if one.ruled_out is None]

    def worth(one: Candidate) -> tuple[float, ...]:
        return one.usd_per_hour, one.document["ttft_s"]["p99"], one.document["tpot_s"]["p99"]

    def is_beaten(one: Candidate) -> bool:
        mine = worth(one)
        return any(
            worth(other) != mine and all(a <= b for a, b in zip(worth(other), mine, strict=True))
            for other in tried
        )

    assert [one for one in tried if not is_beaten(one)]
    assert {id(one) for one in found.front} == {id(one) for one in tried if not is_beaten(one)}


def test_one_knob_at_a_time() -> None:
    found = search(SPACE, build, opened(), Slo(ttft_s=0.2, tpot_s=0.03))
    for knob, ones in found.sensitivity.items():
        assert [one.choice[knob] for one in ones] == SPACE[knob]
        rest = [{name: value for name, value in one.choice.items() if name != knob} for one in ones]
        assert rest == [{name: value for name, value in found.best.choice.items() if name != knob}] * len(
            ones
        )


def test_what_cannot_be_built_is_told_and_the_rest_tried() -> None:
    def narrow(choice: Choice) -> Built:
        if choice["replicas"] == 1:
            raise ConfigError("it does not fit")
        return build(choice)

    found = search(SPACE, narrow, opened(2), Slo(tpot_s=0.05))
    assert [one.ruled_out for one in found.candidates if one.choice["replicas"] == 1] == [
        "it does not fit"
    ] * 4
    assert found.best.choice["replicas"] == 2
    assert json.loads(json.dumps(found_json(found)))["best"]["choice"] == dict(found.best.choice)


def test_runs_are_bounded() -> None:
    found = search(SPACE, build, opened(2), Slo(tpot_s=0.05), num_runs=3)
    tried = [one for one in found.candidates if one.ruled_out is None]
    assert len(tried) == 3
    assert max(one.usd_per_hour for one in tried) <= min(
        one.usd_per_hour for one in found.candidates if one.ruled_out is not None
    )


@pytest.mark.parametrize(
    ("space", "slo", "message"),
    [
        (SPACE, Slo(), "needs an objective"),
        ({}, Slo(ttft_s=1), "at least one value for each knob"),
        ({"replicas": []}, Slo(ttft_s=1), "at least one value for each knob"),
    ],
)
def test_wrong_searches_are_named(space: dict, slo: Slo, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(space, build, opened(), slo)


def test_needs_are_quantiles() -> None:
    """All alike: the least objective is what all of them took."""
    mix = Mix(prompt=Fixed(100), output=Fixed(10))
    workload = Open(gaps=Poisson(0.1), maker=Maker(mix, 0), num_requests=10)
    found = search(
        {"replicas": [1], "seats": [4], "speed": [1.0]}, build, workload, Slo(ttft_s=0.001, tpot_s=1.0)
    )
    (only,) = found.candidates
    assert only.ruled_out is not None
    found = search(
        {"replicas": [1], "seats": [4], "speed": [1.0]}, build, workload, Slo(e2e_s=0.09, tpot_s=1.0)
    )
    (only,) = found.candidates
    took = max(line.e2e_s for line in lines(simulate(build(only.choice).deployment, workload)))
    assert only.needs["e2e_s"] == took
