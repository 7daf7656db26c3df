"""Failures, autoscaling, and prompts computed apart."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from octavo.core.cache import PrefixCache
from octavo.core.limits import Limits
from octavo.core.scheduler import Scheduler
from octavo.core.sequence import Begun, Request, SamplingParams
from octavo.errors import ConfigError
from octavo.sim.lengths import Constant, Fixed, Lognormal, Poisson, Uniform
from octavo.sim.operations import Autoscale, Failure
from octavo.sim.report import lines, summary
from octavo.sim.timing import NS_PER_S, Linear, Timing
from octavo.sim.workload import Leaving, Maker, Mix, Open, Piece, Workload
from octavo.sim.world import Deployment, Outcome, Split, World, simulate

MODEL = Linear(overhead_s=0.004, token_s=3e-5, context_s=4e-8)
LIMITS = Limits(
    num_blocks=2000, block_tokens=16, max_num_seqs=32, max_num_batched_tokens=1024, max_model_len=4096
)
MIX = Mix(prompt=Lognormal(200, 1.0, 1500), output=Uniform(20, 200))


def opened(rate: float = 10, num_requests: int = 80, mix: Mix = MIX) -> Open:
    return Open(gaps=Poisson(rate), maker=Maker(mix, 0), num_requests=num_requests)


def deployed(**changes: object) -> Deployment:
    return Deployment(**({"limits": LIMITS, "timing": Timing(model=MODEL), "num_replicas": 2} | changes))


def told(outcome: Outcome) -> str:
    each = [
        (
            one.request_id,
            one.replica,
            one.first_ns,
            one.last_ns,
            one.num_tokens,
            one.resumed,
            one.reason,
            one.longest_gap_ns,
        )
        for one in outcome.served
    ]
    return json.dumps(
        [each, outcome.ended_ns, outcome.up_ns, [sorted(one.gaps.items()) for one in outcome.tallies]]
    )


def test_requests_of_a_failed_replica_go_on_elsewhere() -> None:
    failure = Failure(at_s=3.0, replica=0, found_s=0.5, back_after_s=2.0)
    outcome = simulate(deployed(operations=(failure,)), opened())
    resumed = [one for one in outcome.served if one.resumed]
    assert len(resumed) > 2
    for one in outcome.served:
        assert one.reason == "length"
        assert one.num_tokens == one.job.num_output_tokens
    for one in resumed:
        assert one.replica == 1
        if one.first_ns < 3 * NS_PER_S:
            assert one.longest_gap_ns > 0.5 * NS_PER_S, "its client saw a pause"
    assert any(one.replica == 2 for one in outcome.served), "the new one is used"
    assert outcome.up_ns[0] == 3 * NS_PER_S
    assert outcome.up_ns[2] == outcome.ended_ns - 3 * NS_PER_S


@pytest.mark.parametrize("at_s", [0.7, 1.913, 3.0, 4.4])
def test_a_failure_finds_what_played_steps_would_have_told(at_s: float) -> None:
    operations = (Failure(at_s=at_s, replica=1, found_s=0.1),)
    fast, slow = (
        simulate(deployed(operations=operations, is_exact=is_exact), opened()) for is_exact in (False, True)
    )
    assert told(fast) == told(slow)


def test_without_a_replica_requests_wait_or_are_refused() -> None:
    alone = deployed(num_replicas=1, operations=(Failure(at_s=2.0, replica=0, back_after_s=5.0),))
    outcome = simulate(alone, opened())
    assert all(one.reason == "length" for one in outcome.served)
    waited = [line.ttft_s for line in lines(outcome) if 2.1 < line.arrival_s < 6]
    assert min(waited) > 1.0
    gone = simulate(deployed(num_replicas=1, operations=(Failure(at_s=2.0, replica=0),)), opened())
    reasons = {one.reason for one in gone.served}
    assert reasons == {"length", "refused"}
    assert summary(gone)["requests"]["sent"] == 80


def test_those_who_leave_while_no_replica_is_there() -> None:
    mix = replace(MIX, leaving=Leaving(share=0.5, after_s=1.0))
    outcome = simulate(
        deployed(num_replicas=1, operations=(Failure(at_s=2.0, replica=0, back_after_s=5.0),)),
        opened(mix=mix),
    )
    assert {one.reason for one in outcome.served} == {"length", "cancelled"}
    assert any(one.reason == "cancelled" and one.replica == -1 for one in outcome.served)


class Waves:
    """A slow minute, a busy one, a slow one."""

    shares = follows = False

    def __init__(self) -> None:
        self.maker = Maker(Mix(prompt=Fixed(100), output=Fixed(50)), 0)

    def arrivals(self):
        self.maker.restart()
        at_s = 0.0
        while at_s < 400:
            at_s += 0.05 if 100 < at_s < 190 else 1.0
            yield self.maker.job(round(at_s * NS_PER_S))

    def after(self, *_: object, **__: object) -> None:
        return None


def test_autoscaling_follows_arrivals() -> None:
    scale = Autoscale(
        per_replica_per_s=5, least=1, most=8, every_s=10, window_s=30, start_s=20, patience_s=60
    )
    workload: Workload = Waves()
    outcome = simulate(deployed(num_replicas=1, operations=(scale,)), workload)
    assert all(one.reason == "length" for one in outcome.served)
    assert len(outcome.tallies) == 4, "20 a second are for 4 replicas"
    begun = [outcome.ended_ns - up for up in outcome.up_ns]
    always, *others = sorted(outcome.up_ns, reverse=True)
    assert all(up < always for up in others), begun
    busy = [line.replica for line in lines(outcome) if 100 < line.arrival_s < 115]
    assert set(busy) == {0}, "who is started does not serve at once"
    again = simulate(deployed(num_replicas=1, operations=(scale,)), Waves())
    assert told(outcome) == told(again)


def split(**changes: object) -> Split:
    values = {"num_decode": 2, "kv_bytes_per_token": 131072, "bytes_per_s": 25e9, "latency_s": 0.001}
    return Split(**(values | changes))


@pytest.mark.parametrize("is_exact", [False, True])
def test_prompts_computed_apart(is_exact: bool) -> None:
    world = World(deployed(split=split(), is_exact=is_exact), opened())
    outcome = world.run()
    for one in outcome.served:
        assert one.reason == "length"
        assert one.num_tokens == one.job.num_output_tokens
        assert one.replica in (2, 3)
    computed = [tally.num_tokens for tally in outcome.tallies]
    prompts = sum(one.num_prompt_tokens for one in outcome.served)
    outputs = sum(one.num_tokens for one in outcome.served)
    assert computed[0] + computed[1] == prompts
    tails = sum(one.num_prompt_tokens % 16 for one in outcome.served)
    assert computed[2] + computed[3] == outputs - len(outcome.served) + tails
    for replica in world.replicas:
        replica.scheduler.check()
        assert replica.scheduler.idle


def test_skipping_changes_nothing_when_split() -> None:
    fast, slow = (
        simulate(deployed(split=split(), is_exact=is_exact), opened(30)) for is_exact in (False, True)
    )
    assert told(fast) == told(slow)


def test_a_transfer_takes_its_time_and_its_turn() -> None:
    """Two prompts of 1000 tokens at once: the second waits for the link. 1000 x 1 MB at 1 GB/s and 0.5 s each."""
    mix = Mix(prompt=Fixed(500), output=Fixed(3))
    workload = Open(gaps=Constant(1e6), maker=Maker(mix, 0), num_requests=2)
    slow = split(num_decode=1, kv_bytes_per_token=10**6, bytes_per_s=1e9, latency_s=0.5)
    outcome = simulate(deployed(num_replicas=1, split=slow), workload)
    second_token = sorted(one.longest_gap_ns / NS_PER_S for one in outcome.served)
    assert second_token == pytest.approx([1.0, 2.0], abs=0.05)


def test_who_answers_waits_for_room() -> None:
    few = replace(LIMITS, max_num_seqs=2)
    mix = Mix(prompt=Fixed(64), output=Fixed(100))
    workload = Open(gaps=Constant(100), maker=Maker(mix, 0), num_requests=12)
    world = World(deployed(num_replicas=1, split=split(num_decode=1, limits=few)), workload)
    outcome = world.run()
    assert all(one.reason == "length" for one in outcome.served)
    assert max(sample[1] for sample in outcome.tallies[1].samples) == 2


def test_installed_blocks_are_found() -> None:
    scheduler = Scheduler(LIMITS)
    prompt = tuple(range(100))
    assert scheduler.cache.install(prompt) == 6
    scheduler.check()
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    scheduler.submit(Request(request_id="a", prompt=prompt, params=params, begun=(Begun(0, (7,)),)), 0.0)
    step = scheduler.plan(0.0)
    assert (step.slices[0].start, step.slices[0].num_tokens) == (96, 5)
    scheduler.check()
    assert scheduler.cache.install(prompt[:40]) == 2, "what is there is there"
    scheduler.check()


def test_no_more_is_installed_than_there_is_room_for() -> None:
    scheduler = Scheduler(replace(LIMITS, num_blocks=5, max_model_len=64))
    cache: PrefixCache = scheduler.cache
    assert cache.install(tuple(range(100))) == 4
    assert cache.pool.num_available == 4
    assert cache.install(tuple(range(200, 248))) == 3, "what nobody runs on gives way"
    scheduler.check()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Failure(at_s=-1, replica=0), "at least 0, got -1"),
        (lambda: Autoscale(per_replica_per_s=0), "per_replica_per_s must be above 0, got 0"),
        (lambda: Autoscale(per_replica_per_s=1, least=3, most=2), "least=3 and most=2"),
        (lambda: split(num_decode=0), "from 1 to 4096, got 0"),
        (lambda: split(bytes_per_s=0), "bytes per second above 0"),
        (lambda: deployed(split=split(), operations=(Failure(at_s=1, replica=0),)), "no failures"),
        (lambda: deployed(split=split(), limits=replace(LIMITS, window_tokens=64)), "sliding window"),
        (
            lambda: simulate(deployed(operations=(Failure(at_s=1, replica=2),)), opened()),
            "there are 2, counted from 0",
        ),
    ],
)
def test_what_cannot_be_is_named(made, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made()


def test_runs_of_ids_are_consecutive() -> None:
    piece: Piece = (5, 3)
    job = Maker(MIX, 0).made(0, (piece, (100, 2)), (200, 1))
    assert job.tokens() == (5, 6, 7, 100, 101)
