"""How sure a figure is: where it comes from, and between what it lies.

A prediction's interval is the 5th to the 95th percentile of measured over predicted in one half of the public
deployments; of the other half it held 87 to 93 % (`python -m benches.planner.silicon`). For a rate at the greatest load
it is that of MLPerf's and TensorRT-LLM's 128 published figures (`python -m benches.planner.throughput`).
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.arch.shape import Shape

EXACT, MEASURED, FITTED, ASSUMED, PREDICTED = "exact", "measured", "fitted", "assumed", "predicted"

RATIOS = {
    ("tpot", "dense"): (0.81, 1.37),
    ("tpot", "moe"): (0.70, 1.47),
    ("ttft", "dense"): (0.29, 2.85),
    ("ttft", "moe"): (0.61, 3.06),
    ("rate", "dense"): (0.72, 1.27),
    ("rate", "moe"): (0.72, 1.27),
}
"""(figure, kind of model) to measured over predicted, 5th and 95th percentile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A value and what it rests on.

    basis  "exact" counted from the model's config; "measured", "fitted", "assumed"; "predicted" from all of these
    """

    value: float
    basis: str
    source: str
    low: float | None = None
    high: float | None = None

    def as_json(self) -> dict[str, object]:
        found: dict[str, object] = {"value": self.value, "basis": self.basis, "source": self.source}
        if self.low is not None:
            found |= {"low": self.low, "high": self.high}
        return found


def kind(shape: Shape) -> str:
    return "moe" if any(layer.experts is not None for layer in shape.layers) else "dense"


def predicted(what: str, shape: Shape, value: float) -> Figure:
    """A prediction with its 90 % interval. `what` is "tpot", "ttft" or "rate"."""
    low, high = RATIOS[what, kind(shape)]
    return Figure(
        value=value,
        basis=PREDICTED,
        source="interval: public deployments of the other half, 5th to 95th percentile",
        low=value * low,
        high=value * high,
    )


def inverse(rate: Figure, value: float) -> Figure:
    """What falls as the rate rises, such as money for a token."""
    assert rate.low is not None
    assert rate.high is not None
    return Figure(
        value=value,
        basis=PREDICTED,
        source=rate.source,
        low=value * rate.value / rate.high,
        high=value * rate.value / rate.low,
    )


FITTED_ERROR = {"dense": 0.05, "moe": 0.25}
"""Largest error of TTFT, TPOT and end to end, mean to p99, once five constants of a step were fitted to 60 requests of
the deployment itself: 3 % on one device, 24 % for experts on two whose ranks wait for each other
(`python -m benches.sim.vllm_runs`, vLLM 0.19)."""

_WHAT = {
    "host": "the host's time between steps",
    "launches": "launches of kernels",
    "weights": "the share of the memory rate that weights are read at",
    "arithmetic": "the share of the peak that products reach",
    "activations": "the time between products",
    "kv": "the share of the memory rate that keys and values are read at",
    "links": "the time of other ranks",
}


def sharpen(shape: Shape, parts: dict[str, float], basis: str) -> str:
    """The one measurement that would narrow the interval most."""
    largest = max(parts, key=lambda name: parts[name])
    share = parts[largest] / sum(parts.values())
    return (
        "Narrowed most by 60 timed requests on one replica, to which a step's constants are fitted: to about "
        f"{FITTED_ERROR[kind(shape)]:.0%} either way. {share:.0%} of a step is {_WHAT[largest]}, {basis} here."
    )
