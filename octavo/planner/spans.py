"""How far runs reach, and how far advice leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from octavo.planner.runs import Runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The span of the runs in one variable."""

    low: float
    high: float

    def times_outside(self, value: float) -> float:
        """How many times beyond the nearer end a value lies; 1 inside."""
        return max(value / self.high, self.low / value, 1.0)


def ranges(runs: Runs) -> dict[str, Range]:
    """Spans of parameters, tokens and compute."""
    columns = {"params": runs.params, "tokens": runs.tokens, "flop": runs.flop}
    return {
        name: Range(low=float(values.min()), high=float(values.max())) for name, values in columns.items()
    }


LABELS = {"params": ("N", "parameters"), "tokens": ("D", "tokens"), "flop": ("C", "FLOPs")}


def extrapolation_warnings(
    spans: Mapping[str, Range], *, params: float, tokens: float, flop: float, what: str = "the runs"
) -> list[str]:
    """A sentence for each variable in which advice leaves the range of the runs, by how many times."""
    warnings = []
    for name, value in (("flop", flop), ("params", params), ("tokens", tokens)):
        span, (letter, unit) = spans[name], LABELS[name]
        times = span.times_outside(value)
        if times > 1.0 + 1e-9:
            side = "above the largest" if value > span.high else "below the smallest"
            warnings.append(
                f"{letter} = {value:.3g} {unit} is {times:.3g} times {side} of {what} "
                f"({span.low:.3g} to {span.high:.3g})"
            )
    return warnings
