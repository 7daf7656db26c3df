"""The simulator against queues whose answers are known: by formula, and by a few lines that know nothing of it."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator

import pytest

from octavo.core.limits import Limits
from octavo.sim.lengths import Constant, Fixed, Poisson
from octavo.sim.report import lines, summary
from octavo.sim.timing import NS_PER_S, Linear, Timing
from octavo.sim.workload import Closed, Job, Maker, Mix, Open, TokenSpace
from octavo.sim.world import Deployment, Outcome, simulate

SERVICE_S = 0.1


def one_at_a_time(num_replicas: int = 1) -> Deployment:
    """A prompt of 10 tokens with one answer token is one step of 0.1 s, and there is one seat."""
    limits = Limits(
        num_blocks=20, block_tokens=16, max_num_seqs=1, max_num_batched_tokens=16, max_model_len=64
    )
    model = Linear(overhead_s=SERVICE_S)
    return Deployment(
        limits=limits, timing=Timing(model=model), num_replicas=num_replicas, routing="least_loaded"
    )


def workload(rate: float, num_requests: int, seed: int = 0) -> Open:
    mix = Mix(prompt=Fixed(10), output=Fixed(1))
    return Open(gaps=Poisson(rate), maker=Maker(mix, seed), num_requests=num_requests)


class Listed:
    """Jobs of 10 prompt tokens and one answer token at given times."""

    shares = follows = False

    def __init__(self, at_ns: list[int], output: int = 1) -> None:
        self.at_ns, self.output = at_ns, output

    def arrivals(self) -> Iterator[Job]:
        space = TokenSpace()
        for number, at_ns in enumerate(self.at_ns):
            yield Job(number=number, at_ns=at_ns, prompt=(space.take(10),), output=space.take(self.output))

    def after(self, *_: object, **__: object) -> None:
        return None


def sojourns(outcome: Outcome) -> list[float]:
    return [line.e2e_s for line in lines(outcome)]


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_waiting_is_that_of_m_d_1(load: float) -> None:
    """Mean wait: load x service / 2 (1 - load) (Pollaczek-Khinchine); of 5,000 arrivals, standard error under 5 %."""
    found = sojourns(simulate(one_at_a_time(), workload(load / SERVICE_S, 5000)))
    wait_s = sum(found) / len(found) - SERVICE_S
    assert wait_s == pytest.approx(load * SERVICE_S / (2 * (1 - load)), rel=0.15)


@pytest.mark.parametrize("seed", range(4))
def test_times_are_those_of_a_single_server(seed: int) -> None:
    """Lindley's recursion, in nanoseconds, to the last one."""
    rng = random.Random(seed)
    at_ns = sorted(rng.randrange(60 * NS_PER_S) for _ in range(500))
    outcome = simulate(one_at_a_time(), Listed(at_ns))
    free_ns, wanted = 0, []
    for at in at_ns:
        free_ns = max(free_ns, at) + round(SERVICE_S * NS_PER_S)
        wanted.append(free_ns)
    assert [one.first_ns for one in outcome.served] == wanted


@pytest.mark.parametrize("num_servers", [2, 5])
def test_times_are_those_of_several_servers(num_servers: int) -> None:
    """Whoever comes goes to a replica with least before it; with one kind of work that is the one free first."""
    rng = random.Random(num_servers)
    at_ns = sorted(rng.randrange(30 * NS_PER_S) for _ in range(600))
    outcome = simulate(one_at_a_time(num_servers), Listed(at_ns))
    free = [0] * num_servers
    wanted = []
    for at in at_ns:
        begins = max(heapq.heappop(free), at)
        wanted.append(begins + round(SERVICE_S * NS_PER_S))
        heapq.heappush(free, wanted[-1])
    found = sorted(one.first_ns for one in outcome.served)
    assert sum(found) == pytest.approx(sum(wanted), rel=0.002)


def test_littles_law() -> None:
    """Mean number in the system is rate times mean time in it, whatever the policy."""
    limits = Limits(
        num_blocks=400, block_tokens=16, max_num_seqs=8, max_num_batched_tokens=256, max_model_len=512
    )
    deployment = Deployment(limits=limits, timing=Timing(model=Linear(overhead_s=0.01, token_s=1e-4)))
    mix = Mix(prompt=Fixed(60), output=Fixed(30))
    outcome = simulate(deployment, Open(gaps=Poisson(12), maker=Maker(mix, 0), num_requests=400))
    ends = [(one.job.at_ns, 1) for one in outcome.served] + [(one.last_ns, -1) for one in outcome.served]
    area = inside = before = 0
    for at_ns, change in sorted(ends):
        area += inside * (at_ns - before)
        inside, before = inside + change, at_ns
    span_ns = before
    mean_s = sum(sojourns(outcome)) / len(outcome.served)
    assert area / span_ns == pytest.approx(len(outcome.served) / (span_ns / NS_PER_S) * mean_s, rel=1e-6)
    figures = summary(outcome)
    busy_s = figures["replicas"][0]["busy_s"]
    in_steps = figures["batch"]["mean_seqs"] * busy_s
    decoded_s = sum((one.last_ns - one.scheduled_ns) / NS_PER_S for one in outcome.served)
    assert in_steps == pytest.approx(decoded_s, rel=0.1), (
        "sequences in steps are those between plan and last token"
    )


def test_a_closed_loop_is_bound_by_its_number() -> None:
    """B clients and one seat each: B tokens a step, for ever."""
    limits = Limits(
        num_blocks=400, block_tokens=16, max_num_seqs=8, max_num_batched_tokens=512, max_model_len=512
    )
    deployment = Deployment(limits=limits, timing=Timing(model=Linear(overhead_s=0.02)))
    mix = Mix(prompt=Fixed(20), output=Fixed(101))
    found = summary(simulate(deployment, Closed(concurrency=5, num_requests=25, maker=Maker(mix, 0))))
    assert found["tpot_s"]["mean"] == pytest.approx(0.02, rel=1e-6)
    assert found["throughput"]["output_tokens_per_s"] == pytest.approx(5 / 0.02, rel=0.02)


def test_an_even_load_never_waits() -> None:
    even = Open(gaps=Constant(5), maker=Maker(Mix(prompt=Fixed(10), output=Fixed(1)), 0), num_requests=50)
    assert sojourns(simulate(one_at_a_time(), even)) == pytest.approx([SERVICE_S] * 50)
