"""How a cause is told: by signs, each of which is a figure, and by the share of the time that it explains.

A cause explains a share of the time of requests, of all or of the slowest tenth. How sure it is comes from its signs:
each is a figure between one at which it says nothing and one at which it is plain, and the certainty is the geometric
mean of how far along they are, so that one sign that is missing rules the cause out. The cause is what explains most,
weighed by how sure it is; where nothing passes both bounds, nothing stands out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAST_SURE = 0.5
LEAST_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Sign:
    """A figure that speaks for a cause: nothing at `nothing`, plain at `plain`."""

    says: str
    value: float
    nothing: float
    plain: float

    @property
    def strength(self) -> float:
        along = (self.value - self.nothing) / (self.plain - self.nothing)
        return min(max(along, 0.0), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A cause that was looked for.

    says      what happened, in a sentence
    share     of the time of all requests that it explains; `tail_share` of that of the slowest tenth
    evidence  in lines, with figures
    bears_on  names of changes in `changes.py` that may help
    metric    what of a request suffers: "e2e_s", "ttft_s", "tpot_s", or "gap_s", the longest pause between tokens
    client    whom it is about, if it is about one
    """

    cause: str
    says: str
    share: float
    tail_share: float
    signs: tuple[Sign, ...]
    evidence: tuple[str, ...]
    bears_on: tuple[str, ...]
    metric: str = "e2e_s"
    client: str | None = None

    @property
    def confidence(self) -> float:
        """The geometric mean of the strengths of its signs."""
        return math.prod(sign.strength for sign in self.signs) ** (1 / len(self.signs))

    @property
    def explains(self) -> float:
        return max(self.share, self.tail_share)

    @property
    def score(self) -> float:
        return self.confidence * self.explains

    @property
    def stands_out(self) -> bool:
        return self.confidence >= LEAST_SURE and self.explains >= LEAST_SHARE


def percent(share: float) -> str:
    return f"{share:.0%}"


def of_time(shares: tuple[float, float]) -> str:
    return (
        f"{percent(shares[0])} of the time of all requests, {percent(shares[1])} of that of the slowest tenth"
    )


def share_sign(shares: tuple[float, float], nothing: float = 0.05, plain: float = 0.2) -> Sign:
    return Sign("share of the time", max(shares), nothing, plain)
