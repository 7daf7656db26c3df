"""Comparing: the interval against an exact bootstrap, and no winner inside the noise."""

from __future__ import annotations

import itertools
import random
import statistics
from math import comb
from pathlib import Path

import pytest

from benches import compare
from benches.record import Series, write
from tests.benches.made import record

STEADY = [10.0, 10.1, 10.2, 9.9, 10.05]


def exact_bootstrap(base: list[float], new: list[float]) -> list[tuple[float, float]]:
    """(ratio, probability) of all medians of resamples, for odd sizes and distinct values, ascending.

    The median of n draws from n sorted values is the k-th when at most n//2 draws lie below it and more than
    n//2 lie at or below it.
    """

    def medians(values: list[float]) -> list[tuple[float, float]]:
        size = len(values)

        def below(k: int) -> float:  # more than half of the draws are among the k smallest
            return (
                sum(
                    comb(size, hits) * k**hits * (size - k) ** (size - hits)
                    for hits in range(size // 2 + 1, size + 1)
                )
                / size**size
            )

        return [(value, below(k + 1) - below(k)) for k, value in enumerate(sorted(values))]

    pairs = itertools.product(medians(base), medians(new))
    return sorted((b / a, p * q) for (a, p), (b, q) in pairs)


@pytest.mark.parametrize("size", [5, 7, 9])
def test_the_interval_is_that_of_the_exact_bootstrap(size: int) -> None:
    draw = random.Random(size)
    base = [draw.uniform(9.0, 11.0) for _ in range(size)]
    new = [draw.uniform(9.5, 12.0) for _ in range(size)]
    found = compare.bootstrap_ratio(base, new)
    exact = exact_bootstrap(base, new)
    assert sum(weight for _, weight in exact) == pytest.approx(1.0)
    # A share of 10,000 resamples strays from its probability p by 4 sqrt(p (1 - p) / 10,000) once in 16,000.
    slack = 4 * (0.025 * 0.975 / compare.NUM_RESAMPLES) ** 0.5
    below = sum(weight for ratio, weight in exact if ratio < found.low)
    above = sum(weight for ratio, weight in exact if ratio > found.high)
    at_most_low = sum(weight for ratio, weight in exact if ratio <= found.low)
    at_least_high = sum(weight for ratio, weight in exact if ratio >= found.high)
    assert below <= 0.025 + slack
    assert above <= 0.025 + slack
    assert at_most_low >= 0.025 - slack
    assert at_least_high >= 0.025 - slack
    assert found.ratio == pytest.approx(statistics.median(new) / statistics.median(base))


def test_equal_figures_have_the_ratio_one() -> None:
    assert compare.bootstrap_ratio([2.0] * 5, [2.0] * 5) == compare.Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize("bad", [[0.0, 1.0], [-1.0, 2.0]])
def test_figures_without_a_ratio_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        compare.bootstrap_ratio([1.0, 2.0], bad)


@pytest.mark.parametrize(
    ("factor", "better", "call"),
    [
        (1.2, "higher", "better"),
        (1.2, "lower", "worse"),
        (0.8, "higher", "worse"),
        (0.8, "lower", "better"),
        (1.001, "higher", "undecided"),
        (1.0, "lower", "undecided"),
    ],
)
def test_a_winner_is_called_only_outside_the_noise(factor: float, better: str, call: str) -> None:
    new = [value * factor for value in STEADY]
    assert compare.judge(Series.of(STEADY), Series.of(new), better).call == call


def test_few_repeats_call_no_winner() -> None:
    verdict = compare.judge(Series.of(STEADY[:4]), Series.of([value * 3 for value in STEADY]), "higher")
    assert verdict.call == "undecided"
    assert "4 repeats; 5 are needed" in verdict.because
    assert verdict.interval.ratio > 2.9


def test_chance_rarely_calls_a_winner() -> None:
    """Two samples of one distribution: the bootstrap of five values is known to call somewhat too often, so
    the bound is twice the nominal 5 %, plus four standard deviations of 300 draws."""
    draw = random.Random(11)
    calls = 0
    for _ in range(300):
        base, new = ([draw.lognormvariate(0.0, 0.1) for _ in range(5)] for _ in range(2))
        interval = compare.bootstrap_ratio(base, new, num_resamples=400)
        calls += not interval.low <= 1.0 <= interval.high
    assert calls / 300 <= 0.10 + 4 * (0.10 * 0.90 / 300) ** 0.5


def test_drift_of_the_machine_hides_small_differences() -> None:
    base, new = Series.of(STEADY), Series.of([value * 1.1 for value in STEADY])
    assert compare.judge(base, new, "higher", drift=0.02).call == "better"
    assert compare.judge(base, new, "higher", drift=0.2).call == "undecided"
    slower = Series.of([value / 1.1 for value in STEADY])
    assert compare.judge(base, slower, "higher", drift=0.2).call == "undecided"
    assert compare.judge(base, slower, "higher", drift=0.02).call == "worse"


def test_drift_is_the_largest_change_of_a_limit_either_way() -> None:
    here = record({"a": {"rate_per_s": STEADY}})
    slower = record({"a": {"rate_per_s": STEADY}}, read_bytes_per_s=1.6e10)
    assert compare.drift(here, slower) == pytest.approx(0.25)
    assert compare.drift(slower, here) == pytest.approx(0.25)
    assert compare.drift(here, here) == 0.0


def test_different_questions_are_not_compared() -> None:
    base = record({"a": {"rate_per_s": STEADY}})
    for change in ({"slug": "other"}, {"shape": {"T": 5}}, {"unit": "s"}):
        with pytest.raises(ValueError, match="the records differ in"):
            compare.compare(base, record({"a": {"rate_per_s": STEADY}}, **change))
    with pytest.raises(ValueError, match="no subject in common"):
        compare.compare(base, record({"b": {"rate_per_s": STEADY}}))


def test_figures_beside_the_main_one_go_by_their_unit() -> None:
    made = record({"a": {"rate_per_s": STEADY, "peak_bytes": STEADY, "ttft_s": STEADY, "odd": STEADY}})
    assert compare.direction(made, "peak_bytes") == "lower"
    assert compare.direction(made, "ttft_s") == "lower"
    assert compare.direction(made, "rate_per_s") == "higher"
    with pytest.raises(ValueError, match="no direction"):
        compare.direction(made, "odd")


def test_subjects_of_one_record_are_judged_against_the_first() -> None:
    made = record({"ours": {"rate_per_s": STEADY}, "theirs": {"rate_per_s": [value * 2 for value in STEADY]}})
    ((name, verdict),) = compare.compare_within(made).items()
    assert name == "theirs against ours"
    assert verdict.call == "better"
    with pytest.raises(ValueError, match="single subject"):
        compare.compare_within(record({"ours": {"rate_per_s": STEADY}}))


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.5, 0), (0.5, 1)])
def test_the_exit_code_tells_what_got_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float, code: int
) -> None:
    base = write(record({"a": {"rate_per_s": STEADY}}), tmp_path)
    new = write(record({"a": {"rate_per_s": [value * factor for value in STEADY]}}), tmp_path)
    assert compare.main([str(base), str(new)]) == code
    assert f"ratio {factor:.3f}" in capsys.readouterr().out


def test_what_cannot_be_compared_has_its_own_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write(record({"a": {"rate_per_s": STEADY, "preemptions": [0.0] * 5}}), tmp_path)
    assert compare.main([str(base), str(tmp_path / "missing.json")]) == 2
    assert compare.main([str(base), str(base), "--figure", "unknown_s"]) == 2
    assert compare.main([str(base), str(base), "--figure", "preemptions"]) == 2
    assert compare.main([str(base)]) == 2
    assert capsys.readouterr().err.count("cannot compare") == 4
