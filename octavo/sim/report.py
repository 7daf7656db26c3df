"""What a simulated run was like: a line for each request, and the figures of all of them.

Definitions, the same everywhere in Octavo: TTFT from the client's sending to its first token; TPOT is (last - first
token) / (tokens - 1), for answers of at least two tokens; ITL the gaps between tokens, of all answers together; queue
from the engine's hearing of a request to the plan of its first slice. Percentiles are over requests, interpolated
between neighbours. Throughput counts output tokens, over the time from the first arrival to the last end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.errors import ConfigError
from octavo.sim.served import GAP_NS, Served
from octavo.sim.timing import NS_PER_S
from octavo.sim.world import Outcome

QUANTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What a client is promised; None promises nothing. An answer is good when all that is promised holds.

    quantile  share of answers that must be good for the objective to be met
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    quantile: float = 0.99

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"the objective {name} must be above 0 seconds, got {value}")
        if not 0 < self.quantile <= 1:
            raise ConfigError(f"the objective's share must be above 0 and at most 1, got {self.quantile}")

    @property
    def is_set(self) -> bool:
        return self.ttft_s is not None or self.tpot_s is not None or self.e2e_s is not None

    def broken_by(self, line: Line) -> list[str]:
        """Which promises an answer breaks; none for a good one."""
        limits = (("ttft_s", self.ttft_s), ("tpot_s", self.tpot_s), ("e2e_s", self.e2e_s))
        found = []
        for name, most in limits:
            value = getattr(line, name)
            if most is not None and value is not None and value > most:
                found.append(name)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request, in seconds from the start of the run. None where it never came so far."""

    request_id: str
    client: str
    replica: int
    reason: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    queue_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    longest_gap_s: float | None
    preemptions: int
    resumed: int


def lines(outcome: Outcome) -> list[Line]:
    """Every request, in the order in which they were sent."""
    host = outcome.deployment.timing.host
    front_ns, reply_ns = round(host.front_s * NS_PER_S), round(host.reply_s * NS_PER_S)
    return [_line(one, front_ns, reply_ns) for one in outcome.served]


def _line(served: Served, front_ns: int, reply_ns: int) -> Line:
    sent_ns, first_ns = served.job.at_ns, served.first_ns
    ttft_s = tpot_s = e2e_s = queue_s = None
    if served.scheduled_ns is not None:
        queue_s = (served.scheduled_ns - sent_ns - front_ns) / NS_PER_S
    if first_ns is not None:
        ttft_s = (first_ns + reply_ns - sent_ns) / NS_PER_S
        e2e_s = (served.last_ns + reply_ns - sent_ns) / NS_PER_S
        if served.num_tokens > 1:
            tpot_s = (served.last_ns - first_ns) / (served.num_tokens - 1) / NS_PER_S
    return Line(
        request_id=served.request_id,
        client=served.job.client,
        replica=served.replica,
        reason=served.reason or "unfinished",
        arrival_s=sent_ns / NS_PER_S,
        prompt_tokens=served.num_prompt_tokens,
        output_tokens=served.num_tokens,
        cached_tokens=served.num_cached_tokens,
        queue_s=queue_s,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        e2e_s=e2e_s,
        longest_gap_s=served.longest_gap_ns / NS_PER_S if served.num_tokens > 1 else None,
        preemptions=served.preemptions,
        resumed=served.resumed,
    )


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, percentiles and the largest; None of nothing."""
    if not values:
        return None
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    found = {"mean": float(ordered.mean())}
    for quantile in QUANTILES:
        found[f"p{quantile}"] = float(np.percentile(ordered, quantile))
    return found | {"max": float(ordered[-1])}


def spread_of_gaps(outcome: Outcome) -> dict[str, float] | None:
    """The same of the gaps between tokens, in seconds, to the microsecond; each percentile is a gap that was."""
    counts: dict[int, int] = {}
    for tally in outcome.tallies:
        for micros, count in tally.gaps.items():
            counts[micros] = counts.get(micros, 0) + count
    if not counts:
        return None
    ordered = sorted(counts)
    lengths = np.array(ordered, dtype=np.int64)
    weights = np.array([counts[one] for one in ordered], dtype=np.int64)
    below = np.cumsum(weights)
    scale = GAP_NS / NS_PER_S
    found = {"mean": float((lengths * weights).sum() / below[-1] * scale)}
    for quantile in QUANTILES:
        place = np.searchsorted(below, quantile / 100 * below[-1])
        found[f"p{quantile}"] = ordered[min(int(place), len(ordered) - 1)] * scale
    return found | {"max": ordered[-1] * scale}


def summary(outcome: Outcome, slo: Slo | None = None, usd_per_hour: float | None = None) -> dict[str, Any]:
    """All figures as one JSON-ready document. `usd_per_hour` is the price of one replica."""
    found = lines(outcome)
    done = [line for line in found if line.reason == "length"]
    first_s = min((line.arrival_s for line in found), default=0.0)
    duration_s = max(outcome.ended_ns / NS_PER_S - first_s, 1 / NS_PER_S)
    output_tokens = sum(line.output_tokens for line in found)
    prompt_tokens = sum(line.prompt_tokens for line in done)
    cached_tokens = sum(line.cached_tokens for line in done)
    document: dict[str, Any] = {
        "requests": {
            "sent": len(found),
            "answered": len(done),
            "cancelled": sum(line.reason == "cancelled" for line in found),
            "refused": sum(line.reason == "refused" for line in found),
            "resumed": sum(line.resumed > 0 for line in found),
        },
        "duration_s": duration_s,
        "throughput": {
            "requests_per_s": len(done) / duration_s,
            "output_tokens_per_s": output_tokens / duration_s,
            "prompt_tokens_per_s": prompt_tokens / duration_s,
        },
        "ttft_s": spread(_known(done, "ttft_s")),
        "tpot_s": spread(_known(done, "tpot_s")),
        "itl_s": spread_of_gaps(outcome),
        "e2e_s": spread(_known(done, "e2e_s")),
        "queue_s": spread(_known(done, "queue_s")),
        "preemptions": sum(line.preemptions for line in found),
        "cache_hit_rate": cached_tokens / prompt_tokens if prompt_tokens else 0.0,
        **_use(outcome),
    }
    if slo is not None and slo.is_set:
        document["goodput"] = _goodput(found, slo, duration_s)
    if usd_per_hour is not None:
        document["cost"] = _cost(outcome, usd_per_hour, output_tokens, prompt_tokens)
    return document


def _known(found: Sequence[Line], name: str) -> list[float]:
    return [value for line in found if (value := getattr(line, name)) is not None]


def _use(outcome: Outcome) -> dict[str, Any]:
    """How full steps and memory were, weighed by time in steps; and the share of the time that was spent in steps."""
    tallies = outcome.tallies
    busy_ns = sum(tally.busy_ns for tally in tallies)
    blocks_ns = sum(tally.busy_ns * tally.num_kv_blocks for tally in tallies)
    return {
        "batch": {
            "mean_seqs": sum(tally.seqs_ns for tally in tallies) / busy_ns if busy_ns else 0.0,
            "mean_waiting": sum(tally.waiting_ns for tally in tallies) / busy_ns if busy_ns else 0.0,
            "num_steps": sum(tally.num_steps for tally in tallies),
            "num_tokens": sum(tally.num_tokens for tally in tallies),
        },
        "kv": {
            "mean_use": sum(tally.kv_ns for tally in tallies) / blocks_ns if blocks_ns else 0.0,
            "peak_use": max((tally.peak_kv_blocks / tally.num_kv_blocks for tally in tallies), default=0.0),
        },
        "busy_share": busy_ns / max(sum(outcome.up_ns), 1),
        "replicas": [
            {
                "replica": tally.replica,
                "up_s": up_ns / NS_PER_S,
                "busy_s": tally.busy_ns / NS_PER_S,
                "num_steps": tally.num_steps,
                "num_tokens": tally.num_tokens,
                "mean_seqs": tally.seqs_ns / tally.busy_ns if tally.busy_ns else 0.0,
                "requests": sum(one.replica == tally.replica for one in outcome.served),
            }
            for tally, up_ns in zip(tallies, outcome.up_ns, strict=True)
        ],
    }


def _goodput(found: Sequence[Line], slo: Slo, duration_s: float) -> dict[str, Any]:
    """Of all that was asked for and not given up by its client; a refused request is not good."""
    asked = [line for line in found if line.reason != "cancelled"]
    broken = [slo.broken_by(line) if line.reason == "length" else [line.reason] for line in asked]
    good = sum(not one for one in broken)
    share = good / len(asked) if asked else 0.0
    return {
        "objective": {"ttft_s": slo.ttft_s, "tpot_s": slo.tpot_s, "e2e_s": slo.e2e_s, "share": slo.quantile},
        "share": share,
        "requests_per_s": good / duration_s,
        "is_met": share >= slo.quantile,
        "broken_by": {
            name: sum(name in one for one in broken) for name in sorted({n for b in broken for n in b})
        },
    }


def _cost(
    outcome: Outcome, usd_per_hour: float, output_tokens: int, prompt_tokens: int
) -> dict[str, float | None]:
    usd = sum(outcome.up_ns) / NS_PER_S / 3600 * usd_per_hour
    return {
        "usd_per_replica_hour": usd_per_hour,
        "usd": usd,
        "usd_per_million_output_tokens": usd / output_tokens * 1e6 if output_tokens else None,
        "usd_per_million_tokens": usd / (output_tokens + prompt_tokens) * 1e6 if output_tokens else None,
    }
