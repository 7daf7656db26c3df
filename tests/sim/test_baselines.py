"""How it was done before: what whole batches and memory in one piece cost beside pages."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from octavo.core.limits import Limits
from octavo.errors import ConfigError
from octavo.sim.baselines import BASELINES, Buddies
from octavo.sim.lengths import Fixed, Poisson, Uniform
from octavo.sim.report import lines, summary
from octavo.sim.timing import Linear, Timing
from octavo.sim.traces import Replay, Row, Trace
from octavo.sim.workload import Leaving, Maker, Mix, Open
from octavo.sim.world import Deployment, Outcome, simulate

LIMITS = Limits(
    num_blocks=1025, block_tokens=16, max_num_seqs=16, max_num_batched_tokens=2048, max_model_len=1024
)
TIMING = Timing(model=Linear(overhead_s=0.01, token_s=2e-5, context_s=3e-8))
MIX = Mix(prompt=Uniform(20, 300), output=Uniform(5, 300))


def run(name: str | None, workload, limits: Limits = LIMITS) -> Outcome:
    deployment = Deployment(limits=limits, timing=TIMING)
    return simulate(replace(deployment, decider=BASELINES[name]) if name else deployment, workload)


def opened(rate: float, num_requests: int = 120, mix: Mix = MIX) -> Open:
    return Open(gaps=Poisson(rate), maker=Maker(mix, 0), num_requests=num_requests)


@pytest.mark.parametrize("name", BASELINES)
def test_every_request_is_answered_in_full_or_given_up(name: str) -> None:
    mix = replace(MIX, leaving=Leaving(share=0.3, after_s=1.0))
    for workload in (opened(6), opened(6, mix=mix)):
        for one in run(name, workload).served:
            assert one.reason in ("length", "cancelled")
            if one.reason == "length":
                assert one.num_tokens == one.job.num_output_tokens


def test_a_static_batch_begins_when_it_is_full_and_nobody_joins() -> None:
    """Four seats: the fourth comes at 3 s, the fifth waits until the longest of the four has ended."""
    outputs = [10, 50, 10, 10, 10]
    rows = tuple(
        Row(arrival_s=float(n), prompt_tokens=40 + n, output_tokens=count) for n, count in enumerate(outputs)
    )
    found = run("static", Replay(Trace("plain", rows)), replace(LIMITS, max_num_seqs=4)).served
    assert {one.scheduled_ns for one in found[:4]} == {3 * 10**9}
    longest = max(one.last_ns for one in found[:4])
    assert found[4].scheduled_ns >= longest
    assert [one.last_ns for one in found[:4]].count(longest) == 1
    steps = 50 * 0.01 + 4 * 43 * 2e-5
    assert longest / 1e9 == pytest.approx(3 + steps, rel=0.02), (
        "padded to the longest prompt, four wide to the end"
    )


def test_a_dynamic_batch_does_not_wait_for_long() -> None:
    found = run("dynamic", opened(0.5, 10))
    for line in lines(found):
        assert line.ttft_s < 3.5
    assert all(one.scheduled_ns >= one.job.at_ns for one in found.served)
    alone = [line for line in lines(found) if line.queue_s > 0.09]
    assert alone, "the first of a batch waits a tenth of a second for others"


def test_what_sequences_that_come_and_go_bring() -> None:
    """The order of Orca and of vLLM: whole batches answer late, reserved memory holds few, pages hold most."""
    figures = {name: summary(run(name, opened(9, 250))) for name in (*BASELINES, None)}
    ttft = {name: one["ttft_s"]["mean"] for name, one in figures.items()}
    assert ttft[None] < ttft["dynamic"] / 3
    assert ttft[None] < ttft["static"] / 3


def test_what_pages_bring() -> None:
    """16 sequences of 1024 tokens are all that is promised memory; they use a part of it, and pages hold the rest."""
    many = replace(LIMITS, max_num_seqs=256)
    reserved, paged = (summary(run(name, opened(100, 300), many)) for name in ("contiguous", None))
    assert reserved["batch"]["mean_seqs"] <= 16
    assert 0.1 < reserved["kv"]["peak_use"] < 0.4
    assert paged["kv"]["peak_use"] > 0.96
    assert paged["throughput"]["output_tokens_per_s"] > 1.8 * reserved["throughput"]["output_tokens_per_s"]


@pytest.mark.parametrize("seed", range(5))
def test_buddies_never_overlap_and_join_again(seed: int) -> None:
    rng, count = random.Random(seed), random.Random(seed).randrange(1, 300)
    buddies, held = Buddies(count), dict[int, int]()
    for _ in range(400):
        if held and rng.random() < 0.45:
            place = rng.choice(list(held))
            del held[place]
            buddies.give_back(place)
            continue
        wanted = rng.randrange(1, 40)
        place = buddies.take(wanted)
        if place is None:
            continue
        size = 1 << (wanted - 1).bit_length()
        assert place + size <= count
        for other, length in held.items():
            assert place + size <= other or other + length <= place
        held[place] = size
    for place in held:
        buddies.give_back(place)
    largest = 1 << (count.bit_length() - 1)
    assert buddies.take(largest) == 0, "all pieces have joined"


def test_a_pool_without_room_for_one_piece_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs 64 blocks in one piece"):
        run("contiguous", opened(1, 1), replace(LIMITS, num_blocks=60))


def test_one_request_alone_costs_the_same_either_way() -> None:
    mix = Mix(prompt=Fixed(64), output=Fixed(20))
    ours, theirs = (lines(run(name, opened(0.1, 5, mix))) for name in (None, "contiguous"))
    assert [line.e2e_s for line in ours] == [line.e2e_s for line in theirs]
