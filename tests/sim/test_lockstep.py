"""Replicas that wait for each other: a schedule worked out by hand, and what holds of every one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from octavo.core.limits import Limits
from octavo.errors import ConfigError
from octavo.sim.baselines import BASELINES
from octavo.sim.lengths import Fixed, Lognormal, Poisson, Uniform
from octavo.sim.operations import Failure
from octavo.sim.report import lines, summary
from octavo.sim.timing import Blend, Host, Linear, Timing, Work
from octavo.sim.traces import Replay, Row, Trace
from octavo.sim.workload import Closed, Leaving, Maker, Mix, Open, Prefixes, Workload
from octavo.sim.world import Deployment, Outcome, Split, World, simulate

LIMITS = Limits(
    num_blocks=1024, block_tokens=16, max_num_seqs=8, max_num_batched_tokens=256, max_model_len=1024
)
MS = 1_000_000


def traced(*rows: tuple[float, int, int]) -> Replay:
    """(arrival in ms, prompt tokens, output tokens)"""
    return Replay(
        Trace(
            "by hand", tuple(Row(arrival_s=at / 1000, prompt_tokens=p, output_tokens=o) for at, p, o in rows)
        )
    )


def deployed(**changes: object) -> Deployment:
    values = {
        "limits": LIMITS,
        "timing": Timing(model=Linear(overhead_s=0.004, token_s=0.001)),
        "num_replicas": 2,
        "lockstep": 2,
        "routing": "least_loaded",
    }
    return Deployment(**(values | changes))


def times(outcome: Outcome) -> list[tuple[int, float, float, float]]:
    """(replica, first step planned, first token, last token) of each request, in ms"""
    return [
        (one.replica, one.scheduled_ns / MS, one.first_ns / MS, one.last_ns / MS) for one in outcome.served
    ]


@pytest.mark.parametrize("is_exact", [False, True])
def test_a_schedule_worked_out_by_hand(is_exact: bool) -> None:
    """A step of T tokens takes 4 + T ms. Rounds, with what each replica computes in them:

    round    begins   replica 0              replica 1               lasts
    1          0      prompt of a: 10        -                       14
    2         14      a                      prompt of b: 16         20    b came at 3, and waited for the empty step
    3         34      a, the last            b, the last              5
    4         39      -                      -                             nobody has anything to do
    5         50      prompt of c: 6         -                       10
    """
    outcome = simulate(deployed(is_exact=is_exact), traced((0, 10, 3), (3, 16, 2), (50, 6, 1)))
    assert times(outcome) == [(0, 0, 14, 39), (1, 14, 34, 39), (0, 50, 60, 60)]
    assert [tally.num_steps for tally in outcome.tallies] == [4, 2], "an empty step is none"
    assert [tally.busy_ns / MS for tally in outcome.tallies] == [14 + 20 + 5 + 10, 20 + 5]
    alone = simulate(deployed(is_exact=is_exact, lockstep=1), traced((0, 10, 3), (3, 16, 2), (50, 6, 1)))
    assert times(alone) == [(0, 0, 14, 24), (1, 3, 23, 28), (0, 50, 60, 60)]


@pytest.mark.parametrize("is_exact", [False, True])
def test_experts_compute_the_tokens_of_all(is_exact: bool) -> None:
    """A step of T tokens takes 4 ms and 1 for each of T / 2 + M / 2, M the mean of both replicas.

    round    begins   replica 0              replica 1              lasts
    1          0      prompt of a: 10        prompt of b: 20        4 + 10 + 7.5
    2       21.5      a                      b                      5
    3       26.5      a, the last            -                      4 + 0.5 + 0.25
    """
    timing = Timing(model=Blend(overhead_s=0.004, token_s=0.001, group_share=0.5))
    outcome = simulate(deployed(is_exact=is_exact, timing=timing), traced((0, 10, 3), (0, 20, 2)))
    assert times(outcome) == [(0, 0, 21.5, 31.25), (1, 0, 21.5, 26.5)]


@pytest.mark.parametrize("is_exact", [False, True])
def test_a_round_begins_when_the_last_is_ready(is_exact: bool) -> None:
    """1 ms between steps, 2 more where nothing was planned ahead: who joins makes the other wait.

    The first prompt begins at 3 and ends at 17. The second one joins then, planned at 17, and its round begins at 20.
    """
    host = Host(turn_s=0.001, plan_s=0.002)
    timing = Timing(model=Linear(overhead_s=0.004, token_s=0.001), host=host)
    outcome = simulate(deployed(timing=timing, is_exact=is_exact), traced((0, 10, 3), (3, 16, 2)))
    assert times(outcome) == [(0, 0, 17, 46), (1, 17, 40, 46)]


class Squared:
    """A model that looks at slices."""

    needs_slices = True

    def seconds(self, work: Work) -> float:
        return 0.003 + 1e-5 * work.num_tokens + 1e-12 * sum((start + n) ** 2 for start, n, _ in work.slices)


MIX = Mix(prompt=Lognormal(100, 1.0, 600), output=Uniform(2, 80))
LINEAR = Timing(model=Linear(overhead_s=0.004, seq_s=2e-5, token_s=3e-5, context_s=4e-8, pair_s=1e-9))
EXPERTS = Blend(
    overhead_s=0.003,
    seq_s=2e-5,
    weights_s=0.005,
    token_s=5e-5,
    context_s=4e-8,
    pair_tokens=1e-4,
    group_share=0.7,
)


def opened(rate: float, mix: Mix = MIX, num_requests: int = 60) -> Open:
    return Open(gaps=Poisson(rate), maker=Maker(mix, 0), num_requests=num_requests)


CASES: dict[str, tuple[Deployment, Callable[[], Workload]]] = {
    "light": (deployed(timing=LINEAR), lambda: opened(3)),
    "heavy": (deployed(timing=LINEAR, num_replicas=4), lambda: opened(90)),
    "tight": (deployed(timing=LINEAR, limits=replace(LIMITS, num_blocks=70)), lambda: opened(60)),
    "two groups": (deployed(timing=LINEAR, num_replicas=6, lockstep=3), lambda: opened(40)),
    "prefixes": (
        deployed(timing=LINEAR, routing="prefix"),
        lambda: opened(30, replace(MIX, prefixes=Prefixes(number=3, tokens=100, share=0.8))),
    ),
    "leaving": (
        deployed(timing=LINEAR),
        lambda: opened(20, replace(MIX, leaving=Leaving(share=0.4, after_s=0.3))),
    ),
    "closed": (
        deployed(timing=LINEAR),
        lambda: Closed(concurrency=7, num_requests=50, maker=Maker(MIX, 1), think_s=0.05),
    ),
    "host": (deployed(timing=replace(LINEAR, host=Host(turn_s=2e-4, plan_s=5e-4))), lambda: opened(25)),
    "experts": (
        deployed(timing=Timing(model=replace(EXPERTS, mixed_context_s=1e-7)), num_replicas=3, lockstep=3),
        lambda: opened(30),
    ),
    "squared": (deployed(timing=Timing(model=Squared())), lambda: opened(20)),
    "split": (
        deployed(timing=LINEAR, split=Split(num_decode=2, kv_bytes_per_token=131072, bytes_per_s=25e9)),
        lambda: opened(20),
    ),
}


def told(outcome: Outcome) -> str:
    names = ("num_steps", "num_tokens", "busy_ns", "seqs_ns", "kv_ns", "waiting_ns", "peak_kv_blocks")
    sums = [
        [*(getattr(tally, name) for name in names), sorted(tally.gaps.items())] for tally in outcome.tallies
    ]
    return json.dumps([times(outcome), [str(one) for one in lines(outcome)], sums, outcome.counters])


@pytest.mark.parametrize("name", CASES)
def test_skipping_changes_nothing_and_the_same_again(name: str) -> None:
    deployment, workload = CASES[name]
    found = told(simulate(deployment, workload()))
    assert found == told(simulate(replace(deployment, is_exact=True), workload()))
    assert found == told(simulate(deployment, workload()))


@pytest.mark.parametrize("name", CASES)
def test_every_request_ends_once_and_tokens_come_when_rounds_end(name: str) -> None:
    deployment, workload = CASES[name]
    world = World(replace(deployment, is_exact=True), workload())
    outcome = world.run()
    assert all(one.reason in ("length", "cancelled") for one in outcome.served)
    assert all(
        one.num_tokens == one.job.num_output_tokens for one in outcome.served if one.reason == "length"
    )
    for replica in world.replicas:
        replica.scheduler.check()
        assert replica.scheduler.idle


def test_waiting_for_each_other_costs_time() -> None:
    apart, together = (
        summary(simulate(deployed(timing=LINEAR, num_replicas=4, lockstep=n), opened(60))) for n in (1, 4)
    )
    assert together["ttft_s"]["mean"] > 1.1 * apart["ttft_s"]["mean"]
    assert together["tpot_s"]["mean"] > 1.1 * apart["tpot_s"]["mean"]


def test_one_that_is_alone_is_as_it_always_was() -> None:
    """A group of which only one has work is that one alone."""
    mix = Mix(prompt=Fixed(100), output=Fixed(30))
    for lockstep in (1, 2):
        outcome = simulate(deployed(timing=LINEAR, lockstep=lockstep), opened(0.5, mix, 10))
        assert {line.ttft_s for line in lines(outcome)} == {lines(outcome)[0].ttft_s}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lockstep": 0}, "at least 1 and divide the replicas .2., got 0"),
        ({"num_replicas": 3}, r"divide the replicas .3., got 2"),
        ({"split": Split(num_decode=3, kv_bytes_per_token=1, bytes_per_s=1.0)}, r".2, 3., got 2"),
        ({"operations": (Failure(at_s=1, replica=0),)}, "no failures, autoscaling or baseline"),
        ({"decider": BASELINES["static"]}, "no failures, autoscaling or baseline"),
    ],
)
def test_a_wrong_group_is_named(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deployed(**change)
