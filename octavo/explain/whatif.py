"""Counterfactuals: the arrivals of a recording again, under changed settings, and the one change that is advised.

Arrivals stay where they were, whatever is changed: a client that waits for an answer before it asks again would have
asked sooner. Steps take what a model fitted to the recorded ones says. How far that is from the truth is told
by the recorded settings, simulated: each figure against the recorded one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from octavo.explain.arrivals import Came, arrivals, busiest
from octavo.explain.changes import FREE, MACHINES, NOT_YOURS, OUTSIDE, Change, changes, more_engines
from octavo.explain.figures import Figures
from octavo.explain.setups import Setup, recorded_setup
from octavo.explain.signs import Finding
from octavo.sim.report import Line, lines
from octavo.units import format_seconds

MAX_REQUESTS = 4000
METRICS = ("ttft_s", "tpot_s", "gap_s", "e2e_s")
LEAST_GAIN = 0.1
"""Of the 99th percentile; less is no advice."""
NEARLY = 1.3
"""A smaller change is preferred that leaves a 99th percentile of at most so many times the best one."""
AMPLE = 8
"""So many times the engines are ample capacity."""
MAX_ENGINES = 256
LEAST_BOUND = 0.5
"""Of throughput: what is left where one client is bound, which then waits outside and asks for less at a time."""
LOSS = 0.05
"""Of throughput, and of the whole time's 99th percentile: a change that costs more is not advised."""

Spread = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a setup: p50 and p99 by metric, and output tokens per second.

    others  the same without the client that the finding is about; None where it is about none
    lines   of the requests, by the place of each among the arrivals
    """

    spread: Spread
    tokens_per_s: float
    others: Spread | None
    lines: Mapping[int, Line]

    def p99(self, metric: str) -> float:
        return _p99(self.spread, metric)

    def others_p99(self, metric: str) -> float:
        return _p99(self.others or self.spread, metric)


@dataclass(frozen=True, slots=True)
class Tried:
    """A change, and what would have come of it. `gain` is of the finding's 99th percentile, as a share."""

    change: Change
    played: Played
    gain: float


@dataclass(frozen=True, slots=True)
class Advice:
    """One change, or none.

    says     in a sentence, with the percentiles before and after
    command  applies it
    """

    says: str
    command: str
    before_p99_s: float
    after_p99_s: float | None


@dataclass(slots=True)
class WhatIf:
    """Of one finding.

    recorded, base  what was measured, and the same settings simulated
    error           (simulated - recorded) / recorded, by metric and percentile
    fit_error       median error of the model of steps, on steps it was not fitted to
    num_requests, num_recorded  simulated, and there
    """

    finding: Finding
    recorded: Spread
    base: Played
    error: Spread
    fit_error: float
    num_requests: int
    num_recorded: int
    tried: list[Tried] = field(default_factory=list)
    advice: Advice | None = None


def what_if(
    figures: Figures, finding: Finding, *, max_requests: int = MAX_REQUESTS, target_p99_s: float | None = None
) -> WhatIf:
    """Simulate what bears on a finding.

    target_p99_s  where only capacity helps, as much is advised as keeps this; None: twice that of ample capacity
    Raises LoadError where the recording holds too little.
    """
    every = arrivals(figures)
    came = busiest(every, max_requests)
    setup, fit = recorded_setup(figures, came)
    player = _Player(came, finding)
    base = player.play(setup)
    recorded = {metric: _spread(getattr(one, metric) for one in came) for metric in METRICS}
    result = WhatIf(
        finding=finding,
        recorded=recorded,
        base=base,
        error=_error(came, base),
        fit_error=fit.error.median,
        num_requests=len(came),
        num_recorded=len(every),
    )
    before_s = base.p99(finding.metric)
    for change in changes(setup, finding):
        played = player.play(change.setup)
        after_s = played.p99(finding.metric)
        gain = 1 - after_s / before_s if before_s > 0 and math.isfinite(after_s) else 0.0
        result.tried.append(Tried(change, played, gain))
    result.advice = _advice(result, player, setup, target_p99_s)
    return result


class _Player:
    """Plays setups with the same arrivals."""

    def __init__(self, came: list[Came], finding: Finding) -> None:
        self._came = came
        self._client = finding.client if "concurrency" in finding.bears_on else None

    def play(self, setup: Setup) -> Played:
        outcome = setup.play(self._came)
        done = [line for line in lines(outcome) if line.reason == "length"]
        tokens = sum(line.output_tokens for line in done)
        first_s = min((line.arrival_s for line in done), default=0.0)
        spread = _spreads(done)
        others = None
        if self._client is not None:
            rest = [line for line in done if line.client != self._client]
            others = _spreads(rest)
        by_place = {int(line.request_id): line for line in done}
        return Played(spread, tokens / max(outcome.ended_ns / 1e9 - first_s, 1e-9), others, by_place)


def _p99(spread: Spread, metric: str) -> float:
    return spread.get(metric, {}).get("p99", float("nan"))


def _of(line: Line, metric: str) -> float | None:
    value: float | None = getattr(line, "longest_gap_s" if metric == "gap_s" else metric)
    return value


def _spreads(found: Sequence[Line]) -> Spread:
    return {metric: _spread(_of(line, metric) for line in found) for metric in METRICS}


def _spread(values: Iterable[float | None]) -> dict[str, float]:
    known = [value for value in values if value is not None]
    if not known:
        return {}
    return {f"p{quantile}": float(np.percentile(known, quantile)) for quantile in (50, 99)}


def _error(came: list[Came], played: Played) -> Spread:
    """Of those requests of which both are known."""
    found: dict[str, dict[str, float]] = {}
    for metric in METRICS:
        pairs = [
            (measured, simulated)
            for place, one in enumerate(came)
            if (measured := getattr(one, metric)) is not None
            and (line := played.lines.get(place)) is not None
            and (simulated := _of(line, metric)) is not None
        ]
        was, came_to = _spread(one for one, _ in pairs), _spread(one for _, one in pairs)
        found[metric] = {name: (came_to[name] - value) / value for name, value in was.items() if value > 0}
    return found


def _advice(result: WhatIf, player: _Player, setup: Setup, target_p99_s: float | None) -> Advice:
    finding, base = result.finding, result.base
    good = [
        one
        for one in result.tried
        if one.gain >= LEAST_GAIN and one.change.cost != NOT_YOURS and _costs_nothing_else(one, base, finding)
    ]
    best = max((one.gain for one in good), default=0.0)
    for cost in range(FREE, MACHINES):
        tier = [one for one in good if one.change.cost == cost]
        most = max((one.gain for one in tier), default=0.0)
        if most and most >= best / 2:
            least_s = min(one.played.p99(finding.metric) for one in tier)
            chosen = next(one for one in tier if one.played.p99(finding.metric) <= NEARLY * least_s)
            return _applied(chosen, base, finding, result)
    if finding.cause in OUTSIDE and not good:
        return Advice(OUTSIDE[finding.cause], "", base.p99(finding.metric), None)
    capacity = None if setup.split is not None else _capacity(player, setup, base, finding, target_p99_s)
    if capacity is not None:
        return capacity
    if good:
        return _applied(max(good, key=lambda one: one.gain), base, finding, result)
    says = f"none of what was tried improves the 99th percentile by {LEAST_GAIN:.0%}"
    return Advice(says, "", base.p99(finding.metric), None)


def _costs_nothing_else(one: Tried, base: Played, finding: Finding) -> bool:
    """Neither throughput nor the whole time; who is bound himself waits outside, and less comes in."""
    if one.change.setup.bound is not None:
        harms = one.played.others_p99("e2e_s") > base.others_p99("e2e_s") * (1 + LEAST_GAIN)
        return not harms and one.played.tokens_per_s >= base.tokens_per_s * LEAST_BOUND
    worse = one.played.p99("e2e_s") > base.p99("e2e_s") * (1 + LOSS)
    slower = one.played.tokens_per_s < base.tokens_per_s * (1 - LOSS)
    return not slower and not (worse and finding.metric != "e2e_s")


NAMES = {
    "ttft_s": "time to the first token",
    "tpot_s": "time per further token",
    "gap_s": "longest pause between tokens",
    "e2e_s": "whole time",
}


def _applied(chosen: Tried, base: Played, finding: Finding, result: WhatIf) -> Advice:
    before_s, after_s = base.p99(finding.metric), chosen.played.p99(finding.metric)
    whose = ""
    if base.others is not None:
        others_s = (chosen.played.others_p99(finding.metric), base.others_p99(finding.metric))
        whose = f" of what is let in (of others than {finding.client}: {' and '.join(map(format_seconds, others_s))})"
    error = result.error.get(finding.metric, {}).get("p99")
    doubt = "" if error is None else f"; the method was {error:+.0%} off on that of the recording"
    return Advice(
        f"{chosen.change.says}: the 99th percentile of the {NAMES[finding.metric]}{whose} would have been"
        f" {format_seconds(after_s)} instead of {format_seconds(before_s)}{doubt}",
        chosen.change.command,
        before_s,
        after_s,
    )


def _capacity(
    player: _Player, setup: Setup, base: Played, finding: Finding, target_p99_s: float | None
) -> Advice | None:
    """How many engines keep the 99th percentile within the target; None where more of them do not help."""
    metric, before_s = finding.metric, base.p99(finding.metric)
    if target_p99_s is None:
        ample = player.play(more_engines(setup, min(setup.num_replicas * AMPLE, MAX_ENGINES)).setup)
        target_p99_s = 2 * ample.p99(metric)
    if not before_s > target_p99_s:
        return None
    low, high = setup.num_replicas, setup.num_replicas
    played = base
    while played.p99(metric) > target_p99_s:
        if high >= MAX_ENGINES:
            return None
        low, high = high, min(high * 2, MAX_ENGINES)
        played = player.play(more_engines(setup, high).setup)
    while high - low > 1:
        middle = (low + high) // 2
        tried = player.play(more_engines(setup, middle).setup)
        if tried.p99(metric) <= target_p99_s:
            high, played = middle, tried
        else:
            low = middle
    after_s = played.p99(metric)
    if after_s > before_s * (1 - LEAST_GAIN):
        return None
    change = more_engines(setup, high)
    return Advice(
        f"nothing helps but more capacity: with {change.says} the 99th percentile of the {NAMES[metric]} would have"
        f" been {format_seconds(after_s)} instead of {format_seconds(before_s)}, within {format_seconds(target_p99_s)}",
        change.command,
        before_s,
        after_s,
    )
