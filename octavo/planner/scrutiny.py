"""Looking hard at a fit: which runs decide it, how far its constants could move, how far its advice is stretched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.planner import descent, fits
from octavo.planner.fits import Fit, with_exponents

MAX_LEFT_OUT = 1000

OUTLYING = 6.0
"""Robust standard deviations from the fit beyond which a run is called outlying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Influence:
    """What one run does to the fit.

    residual  predicted minus observed log loss
    sigmas    the residual in robust standard deviations
    without   constants refitted without the run
    """

    run: int
    residual: float
    sigmas: float
    without: dict[str, float]


def influences(fitted: Fit) -> list[Influence]:
    """Runs left out in turn, each time exactly refitted; in the order of the runs.

    Of more than MAX_LEFT_OUT runs those that pull hardest are tried: by what they add to the gradient, measured by
    the curvature of the rest.
    """
    chosen = _strongest(fitted) if len(fitted.runs) > MAX_LEFT_OUT else np.arange(len(fitted.runs))
    weights = np.ones((len(chosen), len(fitted.runs)))
    weights[np.arange(len(chosen)), chosen] = 0.0
    ends = descent.minimise(
        fitted.model, np.repeat(fitted.theta[None], len(chosen), axis=0), weights, delta=fitted.delta
    )
    found = with_exponents(fitted.form.named(ends.theta, fitted.centres))
    sigma = fitted.robust_sigma
    return [
        Influence(
            run=int(run),
            residual=float(fitted.residuals[run]),
            sigmas=float(fitted.residuals[run] / sigma) if sigma > 0 else 0.0,
            without={name: float(values[place]) for name, values in found.items()},
        )
        for place, run in enumerate(chosen)
    ]


def _strongest(fitted: Fit) -> NDArray[np.intp]:
    """Numbers of the MAX_LEFT_OUT runs with the longest step of their own."""
    slopes = descent.jacobian(fitted.model, fitted.theta[None])[0]
    pull = np.clip(fitted.residuals, -fitted.delta, fitted.delta)[:, None] * slopes
    gram = slopes.T @ slopes
    steps = np.linalg.solve(gram + 1e-12 * np.trace(gram) * np.eye(len(gram)), pull.T)
    strength = (pull.T * steps).sum(axis=0)
    return np.sort(np.argsort(-strength, kind="stable")[:MAX_LEFT_OUT])


def outlying(fitted: Fit, sigmas: float = OUTLYING) -> NDArray[np.intp]:
    """Numbers of the runs more than `sigmas` robust standard deviations from the fit."""
    sigma = fitted.robust_sigma
    return (
        np.flatnonzero(np.abs(fitted.residuals) > sigmas * sigma)
        if sigma > 0
        else np.array([], dtype=np.intp)
    )


def without_outlying(fitted: Fit, sigmas: float = OUTLYING, rounds: int = 10) -> Fit:
    """Refit without the outlying runs until none is left, at most `rounds` times."""
    for _ in range(rounds):
        apart = outlying(fitted, sigmas)
        if not len(apart):
            break
        keep = np.ones(len(fitted.runs), dtype=bool)
        keep[apart] = False
        fitted = fits.fit(fitted.runs.chosen(keep), fitted.form.name, delta=fitted.delta)
    return fitted


def profile_interval(fitted: Fit, constant: str, level: float) -> tuple[float, float]:
    """Interval of one constant from the objective alone: where the best fit with it held there is too much worse.

    Too much is the quantile of chi-square with one degree, divided by 2 sum(psi') / sum(psi^2): the robust
    likelihood ratio (Heritier and Ronchetti 1994). A second opinion on the bootstrap, and not symmetric.
    Raises ConfigError for constants that are no coordinate of their form.
    """
    places = fitted.form.profiled
    if constant not in places:
        raise ConfigError(
            f"{constant} of {fitted.form.name} has no profile; these have: {', '.join(places) or 'none'}"
        )
    place = places[constant]
    size = np.abs(fitted.residuals)
    curvature, variance = (
        float((size <= fitted.delta).sum()),
        float((np.minimum(size, fitted.delta) ** 2).sum()),
    )
    if curvature == 0 or variance == 0:
        best = float(fitted.theta[place])
        return best, best
    quantile = NormalDist().inv_cdf((1 + level) / 2) ** 2
    bound = fitted.objective + quantile * variance / (2 * curvature)
    return _crossing(fitted, place, bound, -1.0), _crossing(fitted, place, bound, 1.0)


def _crossing(fitted: Fit, place: int, bound: float, sign: float) -> float:
    """Where the profile first exceeds `bound` on one side; infinite where it never does."""
    free = np.ones(len(fitted.theta), dtype=bool)
    free[place] = False
    best = float(fitted.theta[place])
    reach = 0.02 * abs(best)
    model = fitted.model
    for _ in range(12):
        values = best + sign * reach * np.linspace(0, 1, 25)
        starts = np.repeat(fitted.theta[None], len(values), axis=0)
        starts[:, place] = values
        heights = descent.minimise(model, starts, delta=fitted.delta, free=free).objective
        above = np.flatnonzero(heights > bound)
        if len(above):
            right = int(above[0])
            low, high = heights[right - 1], heights[right]
            share = (bound - low) / (high - low) if np.isfinite(high) else 1.0
            return float(values[right - 1] + share * (values[right] - values[right - 1]))
        reach *= 2
    return sign * math.inf
