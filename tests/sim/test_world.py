"""Worlds: skipping changes nothing, the same seed gives the same bytes, nothing is lost, and memory adds up."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest

from octavo.core.limits import Limits
from octavo.errors import ConfigError
from octavo.sim.lengths import Gamma, Lognormal, Poisson, Uniform
from octavo.sim.report import Slo, lines, summary
from octavo.sim.timing import Blend, Host, Linear, TimeModel, Timing, Work
from octavo.sim.workload import Closed, Leaving, Maker, Mix, Open, Prefixes, Sessions, Workload
from octavo.sim.world import Deployment, Outcome, World, simulate

LINEAR = Linear(overhead_s=0.004, seq_s=2e-5, token_s=3e-5, sampled_s=1e-6, context_s=4e-8, pair_s=1e-9)
ROOMY = Limits(
    num_blocks=4096, block_tokens=16, max_num_seqs=32, max_num_batched_tokens=1024, max_model_len=4096
)
TIGHT = replace(ROOMY, num_blocks=150, max_model_len=2048)
MIX = Mix(prompt=Lognormal(200, 1.0, 1500), output=Uniform(2, 120))


class Squared:
    """A model that is not affine in the context, and looks at slices."""

    needs_slices = True

    def seconds(self, work: Work) -> float:
        return (
            0.003
            + 1e-5 * work.num_tokens
            + 1e-12 * sum((start + count) ** 2 for start, count, _ in work.slices)
        )


def timing(model: TimeModel = LINEAR, **host: float) -> Timing:
    return Timing(model=model, host=Host(**host))


def opened(rate: float, num_requests: int = 60, mix: Mix = MIX, seed: int = 0) -> Open:
    return Open(gaps=Poisson(rate), maker=Maker(mix, seed), num_requests=num_requests)


CASES: dict[str, tuple[Deployment, Callable[[], Workload]]] = {
    "light": (Deployment(limits=ROOMY, timing=timing()), lambda: opened(3)),
    "heavy": (Deployment(limits=replace(ROOMY, max_num_seqs=6), timing=timing()), lambda: opened(60)),
    "preempting": (Deployment(limits=TIGHT, timing=timing()), lambda: opened(40)),
    "shared prefixes": (
        Deployment(limits=TIGHT, timing=timing()),
        lambda: opened(20, mix=replace(MIX, prefixes=Prefixes(number=3, tokens=100, share=0.8))),
    ),
    "replicas": (
        Deployment(
            limits=ROOMY, timing=timing(Blend(weights_s=0.005, token_s=2e-5, context_s=3e-8)), num_replicas=3
        ),
        lambda: opened(30, mix=replace(MIX, prefixes=Prefixes(number=3, tokens=200))),
    ),
    "least loaded": (
        Deployment(limits=ROOMY, timing=timing(), num_replicas=2, routing="least_loaded"),
        lambda: opened(30),
    ),
    "leaving": (
        Deployment(limits=TIGHT, timing=timing()),
        lambda: opened(20, mix=replace(MIX, leaving=Leaving(share=0.4, after_s=0.3))),
    ),
    "tenants": (
        Deployment(limits=replace(ROOMY, max_num_seqs=5), timing=timing()),
        lambda: Open(
            gaps=Gamma(30, 3.0),
            maker=Maker(replace(MIX, clients=(("a", 3), ("b", 1)), priorities=((0, 4), (1, 1))), 5),
            num_requests=60,
        ),
    ),
    "closed": (
        Deployment(limits=ROOMY, timing=timing()),
        lambda: Closed(concurrency=7, num_requests=50, maker=Maker(MIX, 1), think_s=0.05),
    ),
    "sessions": (
        Deployment(limits=replace(TIGHT, max_model_len=2300), timing=timing(), num_replicas=2),
        lambda: Sessions(
            gaps=Poisson(5), maker=Maker(MIX, 2), num_sessions=15, turns=Uniform(1, 5), think_s=0.4
        ),
    ),
    "host": (
        Deployment(
            limits=ROOMY, timing=timing(turn_s=2e-4, plan_s=5e-4, front_s=0.01, reply_s=0.002), num_replicas=2
        ),
        lambda: opened(25),
    ),
    "squared": (Deployment(limits=ROOMY, timing=timing(Squared())), lambda: opened(20)),
    "small steps": (
        Deployment(limits=replace(ROOMY, max_num_batched_tokens=40), timing=timing()),
        lambda: opened(4, 25),
    ),
}


def told(outcome: Outcome) -> str:
    """All there is to know but the curves, as one text."""
    sums = [
        {
            name: value
            for name, value in asdict(tally).items()
            if name != "samples" and not name.startswith("_")
        }
        for tally in outcome.tallies
    ]
    for one in sums:
        one["gaps"] = sorted(one["gaps"].items())
    each = [
        (
            *(
                one.request_id,
                one.replica,
                one.scheduled_ns,
                one.first_ns,
                one.last_ns,
                one.ended_ns,
                one.num_tokens,
            ),
            *(one.num_cached_tokens, one.preemptions, one.longest_gap_ns, one.reason, one.num_matched),
        )
        for one in outcome.served
    ]
    return json.dumps([each, sums, outcome.ended_ns, outcome.up_ns, outcome.counters])


@pytest.mark.parametrize("name", CASES)
def test_skipping_changes_nothing(name: str) -> None:
    deployment, workload = CASES[name]
    assert told(simulate(deployment, workload())) == told(
        simulate(replace(deployment, is_exact=True), workload())
    )


@pytest.mark.parametrize("name", ["replicas", "sessions", "tenants"])
def test_the_same_seed_gives_the_same_bytes(name: str) -> None:
    deployment, workload = CASES[name]
    first, second = (json.dumps(summary(simulate(deployment, workload()), Slo(ttft_s=0.2))) for _ in range(2))
    assert first == second


def test_another_seed_gives_another_run() -> None:
    deployment = CASES["light"][0]
    assert told(simulate(deployment, opened(3, seed=1))) != told(simulate(deployment, opened(3, seed=2)))


@pytest.mark.parametrize("name", CASES)
def test_every_request_ends_once_and_no_block_is_lost(name: str) -> None:
    deployment, workload = CASES[name]
    world = World(deployment, workload())
    outcome = world.run()
    assert len({one.request_id for one in outcome.served}) == len(outcome.served)
    for line in lines(outcome):
        assert line.reason in ("length", "cancelled")
    for one in outcome.served:
        if one.reason == "length":
            assert one.num_tokens == one.job.num_output_tokens
            assert one.job.at_ns <= one.scheduled_ns <= one.first_ns <= one.last_ns == one.ended_ns
        else:
            assert one.num_tokens <= one.job.num_output_tokens
    for replica in world.replicas:
        replica.scheduler.check()
        assert replica.scheduler.idle
        assert replica.scheduler.num_used_blocks == 0
    drawn = sum(one.num_tokens for one in outcome.served)
    gaps = sum(count for tally in outcome.tallies for count in tally.gaps.values())
    assert gaps == drawn - sum(one.num_tokens > 0 for one in outcome.served)


def test_the_cases_are_what_they_are_called() -> None:
    def figures(name: str) -> dict:
        deployment, workload = CASES[name]
        return summary(simulate(deployment, workload()))

    assert figures("preempting")["preemptions"] > 2
    assert figures("shared prefixes")["cache_hit_rate"] > 0.1
    assert figures("sessions")["cache_hit_rate"] > 0.2
    assert figures("leaving")["requests"]["cancelled"] > 5
    assert figures("heavy")["batch"]["mean_waiting"] > 2


@pytest.mark.parametrize("name", ["light", "heavy", "replicas", "leaving", "preempting"])
def test_where_nothing_is_shared_not_looking_changes_nothing(name: str) -> None:
    """Prompts that share nothing find nothing; those that are preempted find themselves, and then it is looked."""
    deployment, _ = CASES[name]
    mix = replace(MIX, leaving=Leaving(share=0.4, after_s=0.3)) if name == "leaving" else MIX
    short = simulate(deployment, opened(40, mix=mix))
    whole = World(deployment, opened(40, mix=mix)).run()
    assert sum(one["lookups"] for one in whole.counters) >= 50
    is_preempting = any(one["preemptions"] for one in whole.counters)
    assert is_preempting == (name in ("preempting", "leaving"))
    if not is_preempting:
        assert sum(one["lookups"] for one in short.counters) == 0
        short.counters = whole.counters = []
    assert told(short) == told(whole)


def test_a_request_that_can_never_fit_is_refused_and_the_rest_go_on() -> None:
    mix = replace(MIX, prompt=Uniform(100, 3000))
    outcome = simulate(
        Deployment(limits=replace(TIGHT, max_model_len=600), timing=timing()), opened(5, mix=mix)
    )
    refused = [one for one in outcome.served if one.reason == "refused"]
    assert 0 < len(refused) < len(outcome.served)
    assert all("the window is 600 tokens" in one.refusal or "blocks" in one.refusal for one in refused)
    assert summary(outcome)["requests"]["refused"] == len(refused)


def test_front_and_reply_times_are_the_clients_alone() -> None:
    plain = simulate(Deployment(limits=ROOMY, timing=timing()), opened(0.5, 10))
    slow = simulate(Deployment(limits=ROOMY, timing=timing(front_s=0.25, reply_s=0.125)), opened(0.5, 10))
    for one, other in zip(lines(plain), lines(slow), strict=True):
        assert other.ttft_s == pytest.approx(one.ttft_s + 0.375, abs=0.05)
        assert other.tpot_s == pytest.approx(one.tpot_s, rel=0.2)


def test_no_request_is_left_to_the_garbage_collector() -> None:
    """`simulate` switches it off meanwhile: what a world lets go must not refer to itself."""
    shared = replace(MIX, prefixes=Prefixes(number=2, tokens=100, share=0.8))
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        outcome = simulate(Deployment(limits=TIGHT, timing=timing()), opened(20, 200, shared))
        gc.collect()
        found = [type(one).__name__ for one in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert gc.isenabled()
    assert sum(counters["evictions"] for counters in outcome.counters) > 150
    assert found.count("Node") <= 150, "those of the pool at the end, which go with their world"
    assert not {"Sequence", "Request", "Group", "Served"} & set(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_replicas": 0}, "from 1 to 4096, got 0"),
        ({"routing": "random"}, "prefix, least_loaded, got 'random'"),
    ],
)
def test_a_wrong_deployment_is_named(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Deployment(limits=ROOMY, timing=timing(), **change)
