"""Layouts by what they cost: the best each can do within the limits, why the others lost, and what to give up where
none keeps them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from octavo.errors import ConfigError
from octavo.planner.arrivals import arriving
from octavo.planner.capacity import Replica, Steps, balance, room_for
from octavo.planner.cost import HOUR_S, MILLION, most_watt_hours_per_million
from octavo.planner.layouts import Ask, Rejected, label, ladder, replicas
from octavo.planner.slo import Miss, Slo, misses, tpot_s, ttft_s
from octavo.planner.steady import Steady
from octavo.units import format_seconds

_FALSE_POSITIONS, _REFINED = 60, 8
_MORE = 64
"""Replicas beyond those that even arrivals would need, that are tried before a layout is given up."""
_CLOSE = 1.001
ROOM = "room for keys and values"
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
        return (math.inf if price is None else _rounded(price), _rounded(per_token), self.tpot_s)


def _rounded(value: float) -> float:
    """So that a tie is one."""
    return float(f"{value:.9g}")


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
    steps, room = Steps(replica, ask.load), room_for(replica, ask.load)
    kept: Steady | None = None
    ended = ROOM if room < ask.max_seqs else "max-seqs"
    for at_once in rungs:
        made = _loaded(ask, steps, at_once)
        missed = _missed(ask, made)
        if missed and kept is None:
            return Rejected(
                label=label(replica), reason=f"{missed[0]} even with {at_once:g} at once: {made.bound}"
            )
        if kept is not None and (missed or made.concurrency > room):
            ended = f"{missed[0].what} of {format_seconds(missed[0].limit_s)}" if missed else ended
            kept = _up_to(ask, steps, kept, at_once, math.inf)
            break
        if kept is None or made.requests_per_s > kept.requests_per_s:
            kept = made
        else:
            ended = f"{made.bound.split(', ')[0]}: more at once only wait"
            break
    assert kept is not None, "a layout with room has a rung"
    if ask.requests_per_s is None:
        return _shared(ask, steps, kept, ended)
    return _arriving(ask, steps, kept, ended)


def _loaded(ask: Ask, steps: Steps, at_once: float, num_replicas: float = math.inf) -> Steady:
    """A replica that a step finds so many requests in: of a closed loop, or of arrivals that so many share."""
    if ask.requests_per_s is None:
        return balance(steps, at_once)
    return arriving(steps, at_once, num_replicas=num_replicas)


def _missed(ask: Ask, made: Steady) -> tuple[Miss, ...]:
    return misses(made, ask.slo, ask.load.output_tokens - 1, ask.front_end_s(made.tpot_s))


def _up_to(ask: Ask, steps: Steps, kept: Steady, missing: float, num_replicas: float) -> Steady:
    """The balance nearest to a number of requests at once that breaks a limit, from one that keeps all."""
    room, keeping = room_for(steps.replica, ask.load), kept.at_once
    for _ in range(_REFINED):
        middle = (keeping + missing) / 2
        made = _loaded(ask, steps, middle, num_replicas)
        if _missed(ask, made) or made.concurrency > room:
            missing = middle
        elif made.requests_per_s > kept.requests_per_s:
            kept, keeping = made, middle
        else:
            break
    return kept


def _arriving(ask: Ask, steps: Steps, most: Steady, ended: str) -> Plan | Rejected:
    """As many replicas as keep the limits with their share of the arrivals, which are the less even the fewer they are.

    most  of arrivals as even as they can be
    """
    assert ask.requests_per_s is not None
    room, ends_at = room_for(steps.replica, ask.load), most.at_once
    count = math.ceil(ask.requests_per_s / most.requests_per_s - 1e-9)
    missed: tuple[Miss, ...] = ()
    for number in range(count, count + _MORE):
        made = at_rate(steps, ask.requests_per_s / number, most, number)
        made = _exactly(made, ask.requests_per_s / number, ask.load.output_tokens)
        missed = _missed(ask, made)
        if not missed and made.concurrency <= room * _CLOSE:
            kept = _up_to(ask, steps, made, 2 * ends_at - made.at_once, number)
            return _planned(ask, steps, number, kept, made, ended)
        if missed:
            ended = f"{missed[0].what} of {format_seconds(missed[0].limit_s)}"
    why = str(missed[0]) if missed else "more at once than have room"
    return Rejected(label=label(steps.replica), reason=f"{why} even with {number} replicas")


def _shared(ask: Ask, steps: Steps, most: Steady, ended: str) -> Plan:
    """Of a closed loop."""
    assert ask.concurrency is not None
    count = math.ceil(ask.concurrency / most.concurrency - 1e-9)
    made = balance(steps, min(most.concurrency, max(ask.concurrency / count, 1e-3)))
    return _planned(ask, steps, count, most, made, ended)


def _planned(ask: Ask, steps: Steps, count: int, most: Steady, made: Steady, ended: str) -> Plan:
    replica = steps.replica
    price = ask.price(replica.device)
    return Plan(
        label=label(replica),
        replica=replica,
        num_replicas=count,
        most=most,
        limited_by=ended,
        made=made,
        ttft_s=ttft_s(made, ask.front_end_s(made.tpot_s), ask.slo.percentile),
        tpot_s=tpot_s(made, ask.load.output_tokens - 1, ask.slo.percentile),
        usd_per_hour=None if price is None else price * count * replica.num_devices,
    )


def at_rate(steps: Steps, requests_per_s: float, most: Steady, num_replicas: float) -> Steady:
    """The balance at a rate of arrivals, no more than that of `most`, by false position."""
    low, at_low, high = 0.0, 0.0, most.at_once
    made = arriving(steps, high, num_replicas=num_replicas)
    at_high = made.requests_per_s
    for _ in range(_FALSE_POSITIONS):
        if at_high <= requests_per_s or abs(made.requests_per_s / requests_per_s - 1) < 1e-4:
            break
        middle = low + (high - low) * (requests_per_s - at_low) / (at_high - at_low)
        made = arriving(steps, middle, num_replicas=num_replicas)
        if made.requests_per_s < requests_per_s:
            low, at_low = middle, made.requests_per_s
        else:
            high, at_high = middle, made.requests_per_s
    return made


def _exactly(made: Steady, requests_per_s: float, output_tokens: float) -> Steady:
    """A balance that was found for nearly that rate, at it."""
    return replace(
        made,
        requests_per_s=requests_per_s,
        output_per_s=requests_per_s * output_tokens,
        concurrency=requests_per_s * made.latency_s,
    )


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
        _loaded(ask, Steps(one, ask.load), ladder(one, ask.load)[0])
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
