"""Constants of a time model from how long requests took, where nobody wrote down the steps.

The run is simulated again and again, and the constants moved until the first requests take what they took. What is
compared are logarithms of ratios, of each request's time to its first token and of its time per further token, with
Huber's loss, so that one request that had bad luck does not decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.sim.report import lines
from octavo.sim.timing import Blend, Timing
from octavo.sim.workload import Workload
from octavo.sim.world import Deployment, simulate

Floats = NDArray[np.float64]

FITTED = ("overhead_s", "seq_s", "weights_s", "token_s", "context_s")
FITTED_TOO = ("mixed_s", "mixed_context_s")
"""Where the search begins above 0."""
HUBER = 0.1
"""Errors above a tenth count linearly."""


@dataclass(frozen=True, slots=True)
class Took:
    """What one request took, measured: to its first token, and per token after it (None for an answer of one)."""

    ttft_s: float
    tpot_s: float | None


@dataclass(frozen=True, slots=True)
class Found:
    """The constants, what is left of the loss per time compared, and how many simulations that took."""

    model: Blend
    loss: float
    num_runs: int


def fit_to_requests(
    deployment: Deployment,
    workload: Workload,
    took: Sequence[Took],
    start: Blend,
    *,
    num_runs: int = 200,
    floor_s: float = 0.02,
) -> Found:
    """The constants with which the first `len(took)` requests of a workload take what they took.

    start    with those of `FITTED` above 0; their size is where the search begins
    floor_s  added to both times before they are compared, so that shorter ones count for less
    Raises ConfigError for no requests and for a constant of 0.
    """
    if not took:
        raise ConfigError("no measured requests to fit a time model to")
    names = (*FITTED, *(name for name in FITTED_TOO if getattr(start, name) > 0))
    first = np.array([getattr(start, name) for name in names])
    if np.any(first <= 0):
        raise ConfigError(f"a search needs constants above 0 to begin with, got {start}")

    def model(shift: Floats) -> Blend:
        values = first * np.exp(np.clip(shift, -5.0, 5.0))
        return replace(start, **{name: float(value) for name, value in zip(names, values, strict=True)})

    def loss(shift: Floats) -> float:
        timing = Timing(model=model(shift), host=deployment.timing.host)
        return _loss(replace(deployment, timing=timing), workload, took, floor_s)

    shift, least, made = simplex(loss, np.zeros(len(names)), 0.2, num_runs)
    return Found(model(shift), least, made)


def _loss(deployment: Deployment, workload: Workload, took: Sequence[Took], floor_s: float) -> float:
    found = lines(simulate(deployment, workload))[: len(took)]
    total, count = 0.0, 0
    for line, measured in zip(found, took, strict=True):
        for ours, theirs in ((line.ttft_s, measured.ttft_s), (line.tpot_s, measured.tpot_s)):
            if theirs is None:
                continue
            floor = floor_s if theirs is measured.ttft_s else 0.0
            error = 5.0 if ours is None else math.log((ours + floor) / (theirs + floor))
            total += error * error / 2 if abs(error) <= HUBER else HUBER * (abs(error) - HUBER / 2)
            count += 1
    return total / count


def simplex(
    loss: Callable[[Floats], float], start: Floats, size: float, num_runs: int
) -> tuple[Floats, float, int]:
    """Where a function is least, its value, and how often it was asked.

    Source: Nelder and Mead, The Computer Journal 7 (1965); the adaptive coefficients of Gao and Han (2012).
    """
    count = len(start)
    reflect, expand, contract, shrink = 1.0, 1 + 2 / count, 0.75 - 1 / (2 * count), 1 - 1 / count
    points = [start, *(start + size * np.eye(count)[index] for index in range(count))]
    values = [loss(point) for point in points]
    made = len(points)
    while made < num_runs:
        order = np.argsort(values, kind="stable")
        points, values = [points[one] for one in order], [values[one] for one in order]
        if max(float(np.abs(point - points[0]).max()) for point in points) < 1e-4:
            break
        centre = np.mean(points[:-1], axis=0)
        away = centre - points[-1]
        tried = centre + reflect * away
        value = loss(tried)
        made += 1
        if value < values[0]:
            further = centre + expand * away
            further_value = loss(further)
            made += 1
            if further_value < value:
                tried, value = further, further_value
        elif value >= values[-2]:
            is_outside = value < values[-1]
            nearer = centre + (contract if is_outside else -contract) * away
            nearer_value = loss(nearer)
            made += 1
            if nearer_value < min(value, values[-1]):
                tried, value = nearer, nearer_value
            else:
                points = [points[0], *(points[0] + shrink * (point - points[0]) for point in points[1:])]
                values = [values[0], *(loss(point) for point in points[1:])]
                made += count
                continue
        points[-1], values[-1] = tried, value
    best = int(np.argmin(values))
    return points[best], values[best], made
