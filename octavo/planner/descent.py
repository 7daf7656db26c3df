"""Many robust fits at once: the Huber loss of a log-sum-exp model, minimised by damped Newton steps.

The model of a run is log L = s log sum_k exp(o_k + x_k . theta_k): the terms of a scaling law, each a power of its
variables, added up and taken to the power s (which is 1 but in Kaplan's joint form). Gradient and Hessian are exact.
A whole stack of fits goes through together, one row each: starts of one fit, bootstrap resamples, fits that leave a
run out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DELTA = 1e-3
"""Where the Huber loss turns from square to straight. Hoffmann et al. 2022 (arXiv 2203.15556) appendix D.2."""

MAX_STEPS = 300
SETTLED = 1e-8
"""Descent still promised, as a share of the objective, below which a fit has converged."""

CHUNK_RUNS = 1 << 16
"""Runs of all fits that go through together: what they need stays within the cache of a core."""


@dataclass(frozen=True, slots=True)
class Term:
    """One power of a law: log value = offset + features . theta.

    offset    [n] for the part without constants to fit
    features  [n, p]
    """

    offset: Floats
    features: Floats


@dataclass(frozen=True, slots=True)
class Model:
    """Terms, what they should come to, and whether the last constant is log s.

    log_losses  [n], natural logarithm of the observed loss
    """

    terms: Sequence[Term]
    log_losses: Floats
    has_power: bool = False

    @property
    def num_constants(self) -> int:
        return int(sum(term.features.shape[1] for term in self.terms)) + self.has_power

    @property
    def num_runs(self) -> int:
        return len(self.log_losses)


@dataclass(frozen=True, slots=True)
class Descent:
    """Where a stack of fits ended.

    theta      [B, p]
    objective  [B]
    converged  [B], False where the descent got stuck or MAX_STEPS were not enough
    """

    theta: Floats
    objective: Floats
    converged: NDArray[np.bool_]


def huber(residuals: Floats, delta: float = DELTA) -> Floats:
    """r^2 / 2 up to delta, delta (|r| - delta / 2) beyond. Huber 1964."""
    size = np.abs(residuals)
    return np.asarray(np.where(size <= delta, 0.5 * size * size, delta * (size - 0.5 * delta)))


def chunk_fits(num_runs: int) -> int:
    """Fits that go through together."""
    return max(1, CHUNK_RUNS // num_runs)


def _log_terms(model: Model, theta: Floats) -> Floats:
    """[K, B, n]"""
    values, first = [], 0
    for term in model.terms:
        last = first + term.features.shape[1]
        values.append(term.offset + theta[:, first:last] @ term.features.T)
        first = last
    return np.stack(values)


def _log_sum(log_terms: Floats) -> tuple[Floats, Floats]:
    """Logarithm of the sum of the terms [B, n], and each one's share [K, B, n]."""
    highest = log_terms.max(axis=0)
    shares = np.exp(log_terms - highest)
    total = shares.sum(axis=0)
    return highest + np.log(total), shares / total


def predict(model: Model, theta: Floats) -> Floats:
    """log L of every run, [B, n], for constants [B, p]."""
    log_sum, _ = _log_sum(_log_terms(model, theta))
    return np.exp(theta[:, -1:]) * log_sum if model.has_power else log_sum


def objective(model: Model, theta: Floats, weights: Floats, delta: float = DELTA) -> Floats:
    """Weighted sum of Huber losses, [B]; weights [B, n] or [n]. Infinite where a sum overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = (weights * huber(predict(model, theta) - model.log_losses, delta)).sum(axis=1)
    return np.where(np.isfinite(total), total, np.inf)


def jacobian(model: Model, theta: Floats) -> Floats:
    """d log L / d theta, [B, n, p]."""
    log_sum, shares = _log_sum(_log_terms(model, theta))
    parts = [share[:, :, None] * term.features for share, term in zip(shares, model.terms, strict=True)]
    if not model.has_power:
        return np.concatenate(parts, axis=2)
    power = np.exp(theta[:, -1:])
    return np.concatenate(
        [power[:, :, None] * np.concatenate(parts, axis=2), (power * log_sum)[:, :, None]], axis=2
    )


def _curvatures(model: Model, theta: Floats, weights: Floats, delta: float) -> tuple[Floats, Floats, Floats]:
    """Gradient [B, p], exact Hessian [B, p, p], and the Hessian [B, p, p] of a square that bounds the Huber loss.

    The last is positive where the runs determine the constants; damping adds it to the exact one.
    """
    log_terms = _log_terms(model, theta)
    log_sum, shares = _log_sum(log_terms)
    power = np.exp(theta[:, -1:]) if model.has_power else np.ones((len(theta), 1))
    residuals = power * log_sum - model.log_losses
    size = np.abs(residuals)
    slope = weights * np.clip(residuals, -delta, delta)
    inner = weights * (size <= delta)
    outer = weights * (delta / np.maximum(size, delta))

    parts = [share[:, :, None] * term.features for share, term in zip(shares, model.terms, strict=True)]
    of_sum = np.concatenate(parts, axis=2)
    slopes = power[:, :, None] * of_sum
    if model.has_power:
        slopes = np.concatenate([slopes, (power * log_sum)[:, :, None]], axis=2)
    across = slopes.transpose(0, 2, 1)
    gradient = (across @ slope[:, :, None])[:, :, 0]
    bound = (across * outer[:, None, :]) @ slopes
    exact = (across * inner[:, None, :]) @ slopes

    bend = slope * power
    first = 0
    p = of_sum.shape[2]
    exact[:, :p, :p] -= (of_sum.transpose(0, 2, 1) * bend[:, None, :]) @ of_sum
    for part, term in zip(parts, model.terms, strict=True):
        last = first + term.features.shape[1]
        exact[:, first:last, first:last] += (part.transpose(0, 2, 1) * bend[:, None, :]) @ term.features
        first = last
    if model.has_power:
        mixed = (of_sum.transpose(0, 2, 1) @ bend[:, :, None])[:, :, 0]
        exact[:, :p, p] += mixed
        exact[:, p, :p] += mixed
        exact[:, p, p] += (bend * log_sum).sum(axis=1)
    return gradient, exact, bound


def _steps(
    gradient: Floats, exact: Floats, bound: Floats, damping: Floats, free: NDArray[np.bool_]
) -> Floats:
    """Damped Newton steps [B, p]; constants that are not free stay."""
    p = gradient.shape[1]
    scale = np.trace(bound, axis1=1, axis2=2) / p
    ridge = (1e-13 * scale + 1e-300)[:, None, None] * np.eye(p)
    matrix = exact + damping[:, None, None] * bound + ridge
    matrix = np.where(free[:, None] & free[None, :], matrix, 0.0)
    matrix[:, ~free, ~free] = 1.0
    right = np.where(free, gradient, 0.0)
    sound = np.isfinite(matrix).all(axis=(1, 2)) & np.isfinite(right).all(axis=1)
    matrix[~sound], right[~sound] = np.eye(p), 0.0
    try:
        step = np.linalg.solve(matrix, right[:, :, None])
    except np.linalg.LinAlgError:  # some fit's runs do not determine its constants: the shortest of all steps
        step = np.linalg.pinv(matrix) @ right[:, :, None]
    return -np.asarray(step[:, :, 0])


def minimise(
    model: Model,
    starts: Floats,
    weights: Floats | None = None,
    *,
    delta: float = DELTA,
    free: NDArray[np.bool_] | None = None,
) -> Descent:
    """The local minimum that each start runs into.

    starts   [B, p]
    weights  [B, n] or [n], how often each run counts; None counts each once
    free     [p], False for constants that stay at their start
    """
    starts = np.atleast_2d(np.asarray(starts, dtype=float))
    every = np.ones(model.num_runs) if weights is None else np.asarray(weights, dtype=float)
    every = np.broadcast_to(every, (len(starts), model.num_runs))
    moving = np.ones(model.num_constants, dtype=bool) if free is None else free
    chunk = chunk_fits(model.num_runs)
    parts = [
        _minimise_chunk(model, starts[i : i + chunk], every[i : i + chunk], delta, moving)
        for i in range(0, len(starts), chunk)
    ]
    return Descent(
        theta=np.concatenate([part.theta for part in parts]),
        objective=np.concatenate([part.objective for part in parts]),
        converged=np.concatenate([part.converged for part in parts]),
    )


def _minimise_chunk(
    model: Model, starts: Floats, weights: Floats, delta: float, free: NDArray[np.bool_]
) -> Descent:
    theta = starts.copy()
    value = objective(model, theta, weights, delta)
    damping = np.full(len(theta), 1e-2)
    active = np.flatnonzero(np.isfinite(value))
    for _ in range(MAX_STEPS):
        if not len(active):
            break
        now, counts = theta[active], weights[active]
        gradient, exact, bound = _curvatures(model, now, counts, delta)
        step = _steps(gradient, exact, bound, damping[active], free)
        with np.errstate(over="ignore", invalid="ignore"):
            tried = objective(model, now + step, counts, delta)
        better = tried < value[active]
        gain = value[active] - tried
        promised = -(step * gradient).sum(axis=1)
        theta[active[better]] += step[better]
        still = better & (gain > 1e-15 * value[active])
        value[active[better]] = tried[better]
        damping[active] = np.where(better, np.maximum(damping[active] * 0.2, 1e-14), damping[active] * 6)
        small = np.abs(promised) <= 1e-16 * np.maximum(value[active], 1e-300)
        going = (still | (~better & ~small)) & (damping[active] < 1e12)
        active = active[going]
    return Descent(
        theta=theta, objective=value, converged=_is_settled(model, theta, value, weights, delta, free)
    )


def _is_settled(
    model: Model, theta: Floats, value: Floats, weights: Floats, delta: float, free: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Whether the bounding square promises no descent worth naming from where each fit ended."""
    with np.errstate(over="ignore", invalid="ignore"):
        gradient, _, bound = _curvatures(model, theta, weights, delta)
        step = _steps(gradient, bound, bound, np.zeros(len(theta)), free)
        promised = -(step * gradient).sum(axis=1)
        return np.asarray(np.isfinite(value) & (promised <= SETTLED * value + 1e-18))
