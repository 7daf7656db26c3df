"""Is one record faster than another, or one subject than another? `python -m benches.compare BASE [NEW]`

Prints the ratio of medians with a 95 % bootstrap interval. A difference is called only when it lies outside the
interval, outside how far the machine's own limits moved between the two runs, and rests on enough repeats.

Exit code: 0 nothing got worse, 1 something got worse, 2 the records cannot be compared.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benches.harness import MIN_REPEATS
from benches.record import Record, Series, figures_of, read

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio of medians, new over base, and where it lies with CONFIDENCE."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """call  "better", "worse" or "undecided"; `because` explains it"""

    interval: Interval
    call: str
    because: str

    def __str__(self) -> str:
        one = self.interval
        percent = f"{CONFIDENCE:.0%}".replace("%", " %")
        return (
            f"{self.call}: ratio {one.ratio:.3f} ({percent}: {one.low:.3f} to {one.high:.3f}); {self.because}"
        )


def bootstrap_ratio(
    base: Sequence[float], new: Sequence[float], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile bootstrap of median(new) / median(base). Values must be positive: they are times or rates."""
    if min(*base, *new) <= 0:
        raise ValueError(f"ratios need positive figures, got {min(*base, *new)}")
    draw = random.Random(seed)
    ratios = sorted(
        statistics.median(draw.choices(new, k=len(new))) / statistics.median(draw.choices(base, k=len(base)))
        for _ in range(num_resamples)
    )
    outside = int(num_resamples * (1 - CONFIDENCE) / 2)
    ratio = statistics.median(new) / statistics.median(base)
    return Interval(ratio, ratios[outside], ratios[-1 - outside])


def judge(base: Series, new: Series, better: str, *, drift: float = 0.0) -> Verdict:
    """Call a winner, or none.

    better  "higher" or "lower"
    drift   relative change that the machine itself showed; differences within it are not called
    """
    interval = bootstrap_ratio(base.values, new.values)
    repeats = min(len(base.values), len(new.values))
    if repeats < MIN_REPEATS:
        return Verdict(interval, "undecided", f"{repeats} repeats; {MIN_REPEATS} are needed")
    if interval.low <= 1.0 <= interval.high:
        return Verdict(interval, "undecided", "no difference outside the noise")
    nearest = interval.low if interval.low > 1.0 else interval.high
    if max(nearest, 1 / nearest) - 1.0 <= drift:
        return Verdict(
            interval, "undecided", f"the machine's own limits moved by {drift:.1%} between the runs"
        )
    is_better = (interval.ratio > 1.0) == (better == "higher")
    return Verdict(interval, "better" if is_better else "worse", f"{better} is better, n={repeats}")


def drift(base: Record, new: Record) -> float:
    """Largest relative change of a limit that both runs measured on their machine."""
    ours, theirs = base.hardware.limits, new.hardware.limits
    ratios = [theirs[name] / ours[name] for name in ours if name in theirs]
    return max((max(ratio, 1 / ratio) - 1.0 for ratio in ratios), default=0.0)


def refusals(base: Record, new: Record) -> list[str]:
    """Why two records do not answer the same question on the same class of machine."""
    pairs = {
        "question": (base.slug, new.slug),
        "shape": (base.shape, new.shape),
        "unit": (base.unit, new.unit),
        "hardware": (base.hardware.slug, new.hardware.slug),
        "threads": (base.hardware.num_threads, new.hardware.num_threads),
    }
    return [f"{name}: {ours} and {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]


def direction(record: Record, figure: str) -> str:
    """Whether higher or lower is better. Figures beside the main one go by their unit suffix."""
    if figure == record.figure:
        return record.better
    if figure.endswith(("_per_s", "_share")):
        return "higher"
    if figure.endswith(("_s", "_bytes")):
        return "lower"
    raise ValueError(f"{figure!r} has no direction in which it gets better; choose {record.figure!r}")


def compare(base: Record, new: Record, figure: str | None = None) -> dict[str, Verdict]:
    """A verdict for each subject both records have. Raises ValueError when they cannot be compared."""
    wrong = refusals(base, new)
    if wrong:
        raise ValueError("the records differ in " + "; ".join(wrong))
    shared = [name for name in base.subjects if name in new.subjects]
    if not shared:
        raise ValueError(f"no subject in common: {list(base.subjects)} and {list(new.subjects)}")
    chosen = figure or base.figure
    moved = drift(base, new)
    return {
        name: judge(
            _series(base, name, chosen), _series(new, name, chosen), direction(base, chosen), drift=moved
        )
        for name in shared
    }


def compare_within(record: Record, figure: str | None = None) -> dict[str, Verdict]:
    """Every subject against the first. They were measured in turn, so the machine's drift hits all alike."""
    first, *others = record.subjects
    if not others:
        raise ValueError(f"the record has the single subject {first!r}; name a second record")
    chosen = figure or record.figure
    base, better = _series(record, first, chosen), direction(record, chosen)
    return {f"{name} against {first}": judge(base, _series(record, name, chosen), better) for name in others}


def _series(record: Record, subject: str, figure: str) -> Series:
    figures = figures_of(record, subject)
    if figure not in figures:
        raise ValueError(f"{subject!r} has no figure {figure!r}; it has: {', '.join(figures)}")
    return figures[figure]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benches.compare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("base", type=Path, help="record to compare with")
    parser.add_argument("new", type=Path, nargs="?", help="record to judge; without it, the subjects of BASE")
    parser.add_argument("--figure", help="a figure that stands beside the main one, such as peak_bytes")
    args = parser.parse_args(argv)
    try:
        base = read(args.base)
        verdicts = (
            compare_within(base, args.figure)
            if args.new is None
            else compare(base, read(args.new), args.figure)
        )
    except (OSError, ValueError) as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    print(base.question)
    for name, verdict in verdicts.items():
        print(f"  {name}: {verdict}")
    is_worse = args.new is not None and any(verdict.call == "worse" for verdict in verdicts.values())
    return 1 if is_worse else 0


if __name__ == "__main__":
    sys.exit(main())
