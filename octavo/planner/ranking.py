"""Layouts by what they cost: the best each can do within the limits, why the others lost, and what to give up where
none keeps them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from octavo.errors import ConfigError
from octavo.planner.capacity import Replica, Steady, Steps, balance, room_for
from octavo.planner.cost import HOUR_S, MILLION, most_watt_hours_per_million
from octavo.planner.layouts import Ask, Rejected, label, ladder, replicas
from octavo.planner.slo import Slo, misses, tpot_s, ttft_s
from octavo.units import format_seconds

_HALVINGS, _REFINED = 30, 5
SPARE = 1.1
"""Of limits that are given up, beyond what a single request needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One layout and as many replicas as the demand needs.

    most            a replica's balance at the greatest load that keeps the limits; `limited_by` what ends it
    made            a replica's balance at its share of the demand
    usd_per_hour    of all replicas; None where the device has no price
    """

    label: str
    replica: Replica
    num_replicas: int
    most: Steady
    limited_by: str
    made: Steady
    ttft_s: float
    tpot_s: float
    usd_per_hour: float | None

    @property
    def num_devices(self) -> int:
        return self.num_replicas * self.replica.num_devices

    @property
    def requests_per_s(self) -> float:
        return self.num_replicas * self.made.requests_per_s

    @property
    def output_per_s(self) -> float:
        return self.num_replicas * self.made.output_per_s

    @property
    def usd_per_million_output(self) -> float | None:
        """All costs on the tokens of answers."""
        if self.usd_per_hour is None:
            return None
        return MILLION * self.usd_per_hour / (HOUR_S * self.output_per_s)

    @property
    def most_watt_hours(self) -> float | None:
        """For a million tokens of answers at every device's power limit; None where that has no source."""
        power = self.replica.device.max_w
        return (
            None if power is None else most_watt_hours_per_million(power, self.num_devices, self.output_per_s)
        )

    @property
    def order(self) -> tuple[float, float, float]:
        """By money for the work done, then devices, then latency."""
        price = self.usd_per_million_output
        per_token = self.num_devices / self.output_per_s
        return (math.inf if price is None else price, per_token, self.tpot_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxed:
    """Limits given up by a factor, and the cheapest layout that then serves."""

    what: tuple[str, ...]
    factor: float
    slo: Slo
    best: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """plans        best first
    rejected     layouts that cannot serve
    num_layouts  looked at: layouts times requests at once
    """

    plans: tuple[Plan, ...]
    rejected: tuple[Rejected, ...]
    num_layouts: int


def rank(ask: Ask) -> Ranking:
    """All layouts of a question."""
    plans, rejected, looked = [], [], 0
    for found in replicas(ask):
        if isinstance(found, Rejected):
            rejected.append(found)
            looked += 1
            continue
        rungs = ladder(found, ask.load)
        looked += len(rungs)
        one = _best(ask, found, rungs)
        if isinstance(one, Plan):
            plans.append(one)
        else:
            rejected.append(one)
    return Ranking(
        plans=tuple(sorted(plans, key=lambda plan: plan.order)), rejected=tuple(rejected), num_layouts=looked
    )


def _best(ask: Ask, replica: Replica, rungs: list[float]) -> Plan | Rejected:
    """The greatest load that keeps the limits, then as many replicas as share the demand."""
    steps, further = Steps(replica, ask.load), ask.load.output_tokens - 1
    kept: Steady | None = None
    ended = "room for keys and values" if room_for(replica, ask.load) < ask.max_seqs else "max-seqs"
    for concurrency in rungs:
        made = balance(steps, concurrency)
        missed = misses(made, ask.slo, further, ask.front_end_s(made.tpot_s))
        if missed:
            if kept is None:
                return Rejected(
                    label=label(replica),
                    reason=f"{missed[0]} even with {concurrency:g} at once: {made.bound}",
                )
            ended = f"{missed[0].what} of {format_seconds(missed[0].limit_s)}"
            kept = _up_to(ask, steps, kept, concurrency)
            break
        if kept is None or made.requests_per_s > kept.requests_per_s:
            kept = made
        else:
            ended = f"{made.bound.split(', ')[0]}: more at once only wait"
            break
    assert kept is not None, "a layout with room has a rung"
    return _shared(ask, steps, kept, ended)


def _up_to(ask: Ask, steps: Steps, kept: Steady, missing: float) -> Steady:
    """The balance nearest to a number of requests at once that breaks a limit, from one that keeps all."""
    for _ in range(_REFINED):
        middle = (kept.concurrency + missing) / 2
        made = balance(steps, middle)
        if misses(made, ask.slo, ask.load.output_tokens - 1, ask.front_end_s(made.tpot_s)):
            missing = middle
        elif made.requests_per_s > kept.requests_per_s:
            kept = made
        else:
            break
    return kept


def _shared(ask: Ask, steps: Steps, most: Steady, ended: str) -> Plan:
    replica, further = steps.replica, ask.load.output_tokens - 1
    if ask.requests_per_s is not None:
        count = math.ceil(ask.requests_per_s / most.requests_per_s - 1e-9)
        made = at_rate(steps, ask.requests_per_s / count, most)
    else:
        assert ask.concurrency is not None
        count = math.ceil(ask.concurrency / most.concurrency - 1e-9)
        made = balance(steps, min(most.concurrency, max(ask.concurrency / count, 1e-3)))
    price = ask.price(replica.device)
    return Plan(
        label=label(replica),
        replica=replica,
        num_replicas=count,
        most=most,
        limited_by=ended,
        made=made,
        ttft_s=ttft_s(made, ask.front_end_s(made.tpot_s), ask.slo.percentile),
        tpot_s=tpot_s(made, further, ask.slo.percentile),
        usd_per_hour=None if price is None else price * count * replica.num_devices,
    )


def at_rate(steps: Steps, requests_per_s: float, most: Steady) -> Steady:
    """The balance at a rate of arrivals: by Little's law that of as many requests at once as the rate keeps there."""
    low, high = 0.0, most.concurrency
    made = most
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        made = balance(steps, middle)
        if abs(made.requests_per_s / requests_per_s - 1) < 1e-3:
            break
        if made.requests_per_s < requests_per_s:
            low = middle
        else:
            high = middle
    return made


def lost(plan: Plan, best: Plan) -> str:
    """Why a layout is not the first."""
    ours, theirs = plan.usd_per_million_output, best.usd_per_million_output
    if ours is None:
        said = f"{plan.replica.device.name} has no price"
    elif theirs is None or ours <= theirs * 1.0005:
        said = "as dear, slower" if plan.tpot_s > best.tpot_s else "as dear, more devices"
    else:
        said = f"{ours / theirs - 1:.0%} dearer"
    idle = 1 - plan.made.requests_per_s / plan.most.requests_per_s
    if idle > 0.25:
        return f"{said}: {idle:.0%} of it idle, as a replica is as much as is bought at once"
    return f"{said}: {plan.limited_by} ends it at {plan.most.concurrency:.0f} at once; {plan.most.bound}"


def relax(ask: Ask) -> list[Relaxed]:
    """The least that each limit by itself must be given up to so that some layout keeps the other; where no one limit
    is enough, both by the same factor. With SPARE beyond that, so that it is not one request at a time; cheapest first.

    Raises ConfigError where nothing fits at all.
    """
    alone = [
        balance(Steps(one, ask.load), ladder(one, ask.load)[0])
        for one in replicas(ask)
        if isinstance(one, Replica)
    ]
    if not alone:
        raise ConfigError(
            "no layout has room for one request; take larger devices, more of them in a replica (--max-ranks), "
            "narrower weights or shorter requests"
        )
    found: list[Relaxed] = []
    for given in (("TTFT",), ("TPOT",), ("TTFT", "TPOT")):
        if len(given) == 2 and found:
            break
        factor = min(_excess(ask, made, given) for made in alone)
        if math.isfinite(factor) and factor > 1:
            found.append(_relaxed(ask, given, factor * SPARE))
    return sorted(found, key=lambda one: one.best.order)


def _excess(ask: Ask, made: Steady, given: tuple[str, ...]) -> float:
    """By what the limits that are given up are exceeded at most; infinite where another limit is, or there is none."""
    slo, further = ask.slo, ask.load.output_tokens - 1
    worst = 0.0
    for what, limit, value in (
        ("TTFT", slo.ttft_s, ttft_s(made, ask.front_end_s(made.tpot_s), slo.percentile)),
        ("TPOT", slo.tpot_s, tpot_s(made, further, slo.percentile)),
    ):
        if limit is None:
            if what in given:
                return math.inf
        elif what in given:
            worst = max(worst, value / limit)
        elif value > limit:
            return math.inf
    return worst


def _relaxed(ask: Ask, given: tuple[str, ...], factor: float) -> Relaxed:
    slo = ask.slo
    loose = replace(
        slo,
        ttft_s=slo.ttft_s * factor if "TTFT" in given and slo.ttft_s is not None else slo.ttft_s,
        tpot_s=slo.tpot_s * factor if "TPOT" in given and slo.tpot_s is not None else slo.tpot_s,
    )
    return Relaxed(what=given, factor=factor, slo=loose, best=rank(replace(ask, slo=loose)).plans[0])
