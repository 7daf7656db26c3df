"""Ask a question, check that the answers are right, then time them fairly.

The order is fixed: gate, limits of the machine, warm-up, then repeats in rounds. In a round every subject runs
once, and each round starts with another one, so that a machine that drifts drifts for all of them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from benches import record as records
from benches.record import Accelerator, Hardware, Record, Series
from octavo.engine.machine import read_machine
from octavo.engine.measure import MachineLimits, measure_machine

MIN_REPEATS = 5
Figures = Mapping[str, float]
Clock = Callable[[], float]


class GateFailed(Exception):
    """A subject computes the wrong thing; its speed is of no interest."""


class Subject(Protocol):
    """Something to measure."""

    def __call__(self, repeat: int) -> Figures:
        """Do the work once and return figures by name. `repeat` is negative while warming up."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A question and the means to answer it.

    slug      names the record's file
    figure    the figure that answers; every subject returns it, and may return others to stand beside it
    better    "higher" or "lower"
    shape     sizes that define the workload; records of different shapes are not compared
    gate      checks results and says what it found; raises GateFailed
    subjects  what is measured, by name; the first is the one others are compared with
    seeds     of everything random, by what is drawn from them
    notes     for the record
    """

    question: str
    slug: str
    figure: str
    unit: str
    better: str
    shape: Mapping[str, Any]
    gate: Callable[[], str]
    subjects: Mapping[str, Subject]
    seeds: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.subjects:
            raise ValueError(f"{self.slug}: a bench needs at least one subject")
        if self.better not in ("higher", "lower"):
            raise ValueError(f"{self.slug}: better must be 'higher' or 'lower', got {self.better!r}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How often, on what, and where the record goes.

    repeats   rounds that count
    warmup    rounds that do not
    budget_s  when warm-up and rounds would take longer, no further round is started; one always is, and the
              record says how many were
    threads   CPU threads
    results   folder of the records; None stores nothing
    command   for the record
    accelerator  that subjects run on; None: the processor
    """

    repeats: int = MIN_REPEATS
    warmup: int = 1
    budget_s: float | None = None
    threads: int = 1
    results: Path | None = None
    command: str = ""
    accelerator: Accelerator | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.warmup < 0 or self.threads < 1:
            raise ValueError(f"repeats and threads must be at least 1 and warmup at least 0, got {self}")


@dataclass
class _Measured:
    """Figures of one subject so far, round by round."""

    rounds: list[Figures] = field(default_factory=list)

    def series(self, name: str) -> dict[str, Series]:
        names = list(self.rounds[0])
        for figures in self.rounds:
            if list(figures) != names:
                raise ValueError(f"{name} returned {list(figures)} in one repeat and {names} in another")
        return {figure: Series.of([figures[figure] for figures in self.rounds]) for figure in names}


def answer(
    bench: Bench, settings: Settings, *, limits: MachineLimits | None = None, clock: Clock = time.perf_counter
) -> Record:
    """Run a bench. Raises GateFailed before anything is timed when results are wrong.

    limits  of this machine when they have just been measured; None measures them
    """
    _say(bench.question)
    gate = bench.gate()
    limits = limits or measure_machine(settings.threads)
    started_s = clock()
    for number in range(-settings.warmup, 0):
        for subject in bench.subjects.values():
            subject(number)
    load = OtherLoad()
    measured, notes = _rounds(bench, settings, clock, started_s)
    notes = [*bench.notes, *limits.notes, *notes]
    rounds = min(len(one.rounds) for one in measured.values())
    made = Record(
        question=bench.question,
        slug=bench.slug,
        correct=True,
        gate=gate,
        figure=bench.figure,
        unit=bench.unit,
        better=bench.better,
        shape=dict(bench.shape),
        repeats=rounds,
        warmup=settings.warmup,
        seeds=dict(bench.seeds),
        subjects={name: one.series(name) for name, one in measured.items()},
        hardware=Hardware.of(limits, load.cores(), settings.accelerator),
        versions=records.versions(),
        commit=records.commit(),
        command=settings.command,
        date=datetime.now(UTC).date().isoformat(),
        notes=notes,
    )
    for name, figures in made.subjects.items():
        if bench.figure not in figures:
            raise ValueError(f"{name} returned {', '.join(figures)}, but not the figure {bench.figure!r}")
    return made


def _rounds(
    bench: Bench, settings: Settings, clock: Clock, started_s: float
) -> tuple[dict[str, _Measured], list[str]]:
    measured = {name: _Measured() for name in bench.subjects}
    names = list(bench.subjects)
    longest_s = 0.0
    for number in range(settings.repeats):
        round_started_s = clock()
        spent_s = round_started_s - started_s
        if number and settings.budget_s is not None and spent_s + longest_s > settings.budget_s:
            saved = f"{number} of {settings.repeats} repeats were made: the time budget is {settings.budget_s:g} s"
            _say(f"  {saved}")
            return measured, [saved]
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            figures = bench.subjects[name](number)
            measured[name].rounds.append(figures)
            _say(
                f"  {number + 1}/{settings.repeats} {name}: {figures.get(bench.figure, float('nan')):.4g} {bench.unit}"
            )
        longest_s = max(longest_s, clock() - round_started_s)
    return measured, []


class OtherLoad:
    """Cores kept busy by everything but this process and its children, since it was made."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._started = self._now()

    def cores(self) -> float | None:
        """None where the system does not tell, or no time has passed."""
        now = self._now()
        if now is None or self._started is None or now[2] <= self._started[2]:
            return None
        busy_s, own_s, wall_s = (after - before for before, after in zip(self._started, now, strict=True))
        return round(max(busy_s - own_s, 0.0) / wall_s, 3)

    def _now(self) -> tuple[float, float, float] | None:
        """(seconds all cores were busy, seconds of ours among them, time)."""
        if not self._stat.is_file():
            return None
        ticks = [int(word) for word in self._stat.read_text().splitlines()[0].split()[1:9]]
        user, nice, system, _, _, irq, softirq, steal = ticks
        busy_s = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return busy_s, sum(os.times()[:4]), time.monotonic()


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags every bench takes."""
    parser.add_argument(
        "--repeats", type=int, default=MIN_REPEATS, help="rounds that count (default %(default)s)"
    )
    parser.add_argument(
        "--warmup", type=int, default=1, help="rounds that do not count (default %(default)s)"
    )
    parser.add_argument("--budget-s", type=float, help="start no further round after this many seconds")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the cores this process may use)")
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument("--results", type=Path, default=records.RESULTS, help="folder of the records")


def settings(args: argparse.Namespace, module: str, argv: Sequence[str]) -> Settings:
    """Settings from parsed flags. `module` and `argv` become the record's command."""
    return Settings(
        repeats=args.repeats,
        warmup=args.warmup,
        budget_s=args.budget_s,
        threads=args.threads or read_machine().num_cores,
        results=None if args.no_record else args.results,
        command=records.command(module, argv),
    )


def ask(benches: Sequence[Bench], chosen: Settings, limits: MachineLimits | None = None) -> int:
    """Answer questions one after another, print and store each; returns the exit code.

    budget_s is shared: each bench gets an equal part of what those before it left.
    """
    limits = limits or measure_machine(chosen.threads)
    started_s, failed = time.perf_counter(), 0
    for number, bench in enumerate(benches):
        share = chosen
        if chosen.budget_s is not None:
            left_s = max(chosen.budget_s - (time.perf_counter() - started_s), 0.0)
            share = replace(chosen, budget_s=left_s / (len(benches) - number))
        try:
            made = answer(bench, share, limits=limits)
        except GateFailed as error:
            print(f"{bench.question}\n  WRONG RESULTS, nothing was timed: {error}", file=sys.stderr)
            failed = 1
            continue
        path = None if chosen.results is None else records.write(made, chosen.results)
        records.show(made, path)
    return failed


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
