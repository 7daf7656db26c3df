"""Who asks for what: seeded, of the stated distributions, sharing exactly the stated prefixes."""

from __future__ import annotations

import itertools
import random
import statistics
from dataclasses import replace

import pytest

from octavo.errors import ConfigError
from octavo.sim.lengths import (
    Constant,
    Empirical,
    Fixed,
    Gamma,
    Gaps,
    Lognormal,
    Poisson,
    Uniform,
    parse_lengths,
)
from octavo.sim.timing import NS_PER_S
from octavo.sim.workload import Closed, Leaving, Maker, Mix, Open, Prefixes, Sessions, TokenSpace

MIX = Mix(prompt=Uniform(10, 50), output=Fixed(20))


def opened(mix: Mix = MIX, num_requests: int = 400, seed: int = 0, gaps: Gaps | None = None) -> Open:
    return Open(gaps=gaps or Poisson(4), maker=Maker(mix, seed), num_requests=num_requests)


def key(job) -> tuple:
    return job.number, job.at_ns, job.prompt, job.output, job.client, job.priority, job.cancel_after_ns


def test_the_same_seed_draws_the_same_and_a_workload_begins_anew() -> None:
    first = opened()
    once, again = [key(job) for job in first.arrivals()], [key(job) for job in first.arrivals()]
    assert once == again == [key(job) for job in opened().arrivals()]
    assert once != [key(job) for job in opened(seed=1).arrivals()]


@pytest.mark.parametrize(
    ("gaps", "cv"), [(Constant(4), 0.0), (Poisson(4), 1.0), (Gamma(4, 0.5), 0.5), (Gamma(4, 3.0), 3.0)]
)
def test_gaps_have_their_rate_and_variation(gaps: Gaps, cv: float) -> None:
    at = [0, *(job.at_ns for job in opened(num_requests=20000, gaps=gaps).arrivals())]
    found = [(after - before) / NS_PER_S for before, after in itertools.pairwise(at)]
    assert statistics.mean(found) == pytest.approx(0.25, rel=0.06)
    assert statistics.pstdev(found) / statistics.mean(found) == pytest.approx(
        cv, abs=0.12 * max(cv, 1e-6) + 1e-6
    )


@pytest.mark.parametrize(
    ("lengths", "low", "high"),
    [
        (Fixed(7), 7, 7),
        (Uniform(3, 9), 3, 9),
        (Lognormal(500, 1.2, 4000), 1, 4000),
        (Empirical([2, 2, 8]), 2, 8),
    ],
)
def test_lengths_have_their_mean_and_bounds(lengths, low: int, high: int) -> None:
    rng = random.Random(0)
    found = [lengths.draw(rng) for _ in range(20000)]
    assert min(found) >= low
    assert max(found) <= high
    assert statistics.mean(found) == pytest.approx(lengths.mean, rel=0.05)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("512", Fixed(512)),
        ("4k", Fixed(4000)),
        ("10-90", Uniform(10, 90)),
        ("lognormal:500:1.5", Lognormal(500.0, 1.5)),
        ("lognormal:500:1.5:4k", Lognormal(500.0, 1.5, 4000)),
    ],
)
def test_lengths_are_read(text: str, wanted: object) -> None:
    assert parse_lengths(text) == wanted


@pytest.mark.parametrize("text", ["0", "9-3", "lognormal:500", "lognormal:a:b", "lognormal:0:1", "many"])
def test_wrong_lengths_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_lengths(text)


def test_prompts_share_exactly_the_stated_prefixes() -> None:
    mix = replace(MIX, prefixes=Prefixes(number=3, tokens=40, share=0.5))
    prompts = [job.tokens() for job in opened(mix, 200).arrivals()]
    with_prefix: dict[tuple[int, ...], int] = {}
    for prompt in prompts:
        with_prefix[prompt[:40]] = with_prefix.get(prompt[:40], 0) + 1
    shared = {prefix: count for prefix, count in with_prefix.items() if count > 1}
    assert len(shared) == 3
    assert 70 < sum(shared.values()) < 130
    rest = [token for prompt in prompts for token in (prompt[40:] if prompt[:40] in shared else prompt)]
    assert len(set(rest)) == len(rest), "all else is everybody's own"


def test_outputs_are_nobody_elses() -> None:
    jobs = list(opened().arrivals())
    ids = [token for job in jobs for token in (*job.tokens(), *range(job.output[0], sum(job.output)))]
    assert len(set(ids)) == len(ids)


def test_ids_begin_anew_before_they_run_out() -> None:
    space = TokenSpace()
    firsts = [space.take(2**24)[0] for _ in range(300)]
    assert max(firsts) + 2**24 <= 2**32
    assert firsts.count(0) == 2
    with pytest.raises(ConfigError, match="more than can be simulated"):
        space.take(2**24 + 1)


def test_who_leaves_and_of_whom() -> None:
    mix = replace(
        MIX,
        leaving=Leaving(share=0.25, after_s=2.0),
        clients=(("a", 3.0), ("b", 1.0)),
        priorities=((0, 1.0), (7, 1.0)),
    )
    jobs = list(opened(mix, 4000).arrivals())
    left = [job.cancel_after_ns / NS_PER_S for job in jobs if job.cancel_after_ns is not None]
    assert len(left) / 4000 == pytest.approx(0.25, abs=0.03)
    assert statistics.mean(left) == pytest.approx(2.0, rel=0.1)
    assert sum(job.client == "a" for job in jobs) / 4000 == pytest.approx(0.75, abs=0.03)
    assert sum(job.priority == 7 for job in jobs) / 4000 == pytest.approx(0.5, abs=0.03)


def test_a_duration_ends_an_open_workload() -> None:
    workload = Open(gaps=Constant(10), maker=Maker(MIX, 0), duration_s=3.05)
    assert [job.at_ns for job in workload.arrivals()] == [n * NS_PER_S // 10 for n in range(1, 31)]


def test_a_closed_workload_sends_when_it_is_answered() -> None:
    workload = Closed(concurrency=2, num_requests=3, maker=Maker(MIX, 0), think_s=0.5)
    first, second = workload.arrivals()
    third = workload.after(first, 10 * NS_PER_S, is_answered=False)
    assert (first.at_ns, second.at_ns, third.at_ns) == (0, 0, 10 * NS_PER_S + NS_PER_S // 2)
    assert workload.after(second, 11 * NS_PER_S, is_answered=True) is None


def test_a_session_sends_all_that_was_said() -> None:
    workload = Sessions(gaps=Constant(1), maker=Maker(MIX, 0), num_sessions=2, turns=Fixed(3), think_s=5.0)
    first, other = workload.arrivals()
    second = workload.after(first, NS_PER_S, is_answered=True)
    said = (*first.tokens(), *range(first.output[0], sum(first.output)))
    assert second.tokens()[: len(said)] == said
    assert len(second.tokens()) > len(said)
    assert second.at_ns > NS_PER_S
    assert (second.session, second.turn) == (0, 1)
    third = workload.after(second, 2 * NS_PER_S, is_answered=True)
    assert third.tokens()[: len(second.tokens())] == second.tokens()
    assert workload.after(third, 3 * NS_PER_S, is_answered=True) is None, "it had three turns"
    assert workload.after(other, NS_PER_S, is_answered=False) is None, "who leaves, leaves for good"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Poisson(0), "rate must be above 0"),
        (lambda: Gamma(1, 0), "variation of the gaps must be above 0"),
        (lambda: Open(gaps=Poisson(1), maker=Maker(MIX, 0)), "needs an end"),
        (lambda: Closed(concurrency=0, num_requests=1, maker=Maker(MIX, 0)), "got 0, 1"),
        (lambda: Prefixes(number=0, tokens=1), "got 0, 1 and 1.0"),
        (lambda: Leaving(share=2, after_s=1), "got 2 and 1"),
        (lambda: Empirical([]), "it is empty"),
        (lambda: Empirical([0]), "at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_named(made, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made()
