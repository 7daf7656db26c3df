"""What a steady load's requests see: means and percentiles of the first token and of those after it, against limits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from octavo.errors import ConfigError
from octavo.planner.steady import Steady
from octavo.units import format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Limits of a request's times.

    percentile  of requests that must keep them; None for the mean
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    percentile: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"the limit {name} must be above 0, got {value:g}")
        if self.percentile is not None and not 1 <= self.percentile < 100:
            raise ConfigError(f"the percentile must be at least 1 and below 100, got {self.percentile:g}")

    @property
    def label(self) -> str:
        return "mean" if self.percentile is None else f"p{self.percentile:g}"


@dataclass(frozen=True, slots=True)
class Miss:
    """A limit that is not kept. `what` is "TTFT" or "TPOT"."""

    what: str
    value_s: float
    limit_s: float

    def __str__(self) -> str:
        return f"{self.what} {format_seconds(self.value_s)}, {self.value_s / self.limit_s:.2f} x its limit"


def ttft_s(made: Steady, front_end_s: float, percentile: float | None = None) -> float:
    """Of a request, from its sending.

    The mean is the balance's. A percentile adds to a request's own steps the step under way, of which any part may be
    left, and a wait for others' prompts that falls off exponentially, as that of a queue under load does (Kingman).
    """
    if percentile is None:
        return front_end_s + made.ttft_s
    share = percentile / 100
    queue_s = max(0.0, made.wait_s - made.tpot_s / 2)
    queued = 0.0
    if queue_s > 0 and made.busy > 1 - share:
        queued = queue_s / made.busy * math.log(made.busy / (1 - share))
    own_s = made.ttft_s - made.wait_s
    return front_end_s + own_s + share * made.tpot_s + queued


def tpot_s(made: Steady, further: float, percentile: float | None = None) -> float:
    """Between tokens of a request. Requests differ by how many of their `further` steps had prompts in them, which is
    a binomial share."""
    if percentile is None or further < 1:
        return made.tpot_s
    deviation = math.sqrt(made.mixed_share * (1 - made.mixed_share) / further) * (
        made.mixed_s - made.decode_s
    )
    return max(made.decode_s, made.tpot_s + NormalDist().inv_cdf(percentile / 100) * deviation)


def misses(made: Steady, slo: Slo, further: float, front_end_s: float) -> tuple[Miss, ...]:
    """Limits that a load does not keep, worst first."""
    values = (
        ("TTFT", ttft_s(made, front_end_s, slo.percentile), slo.ttft_s),
        ("TPOT", tpot_s(made, further, slo.percentile), slo.tpot_s),
    )
    found = [Miss(what, value, limit) for what, value, limit in values if limit is not None and value > limit]
    return tuple(sorted(found, key=lambda miss: -miss.value_s / miss.limit_s))
