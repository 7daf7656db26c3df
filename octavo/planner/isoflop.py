"""Compute-optimal sizes read off the runs directly: IsoFLOP parabolas and the envelope of training curves.

These are approaches 2 and 1 of Hoffmann et al. 2022 (arXiv 2203.15556) sec. 3. Parabolas are biased even without
noise, wherever the valley of the loss is not symmetric or the sizes do not surround its floor ("Problems with
Chinchilla Approach 2", arXiv 2603.22339); `parabola_bias` says by how much for the sizes at hand. Prefer the
parametric fit, and take these as a check on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.planner.laws import FLOP_PER_PARAM_TOKEN, Allocation, ParametricLaw
from octavo.planner.runs import Runs

Floats = NDArray[np.float64]

SAME_BUDGET = 0.1
"""Width in log C of one budget: read off a plot, runs of one differ by a few per cent."""

MIN_SIZES = 4
"""Sizes a parabola is drawn through; three always fit exactly."""

ENVELOPE_POINTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Valley:
    """The runs of one budget and the parabola of loss in log N through them.

    optimum    N at its floor, or None where it has none
    is_inside  whether the floor lies among the sizes that were run
    """

    flop: float
    members: tuple[int, ...]
    coefficients: tuple[float, float, float]
    centre: float
    optimum: float | None
    is_inside: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """N* ~ C^exponent through the optima of several budgets.

    spread  root mean square of what the line leaves, in log N
    """

    exponent: float
    exponent_error: float
    intercept: float
    spread: float
    num_points: int

    def params(self, flop: float) -> float:
        return float(np.exp(self.intercept + self.exponent * np.log(flop)))

    def allocation(self, anchor_flop: float) -> Allocation:
        """The same as advice; D* is C / (6 N*)."""
        return Allocation(
            anchor_flop=anchor_flop, params_at_anchor=self.params(anchor_flop), exponent=self.exponent
        )


def budgets(runs: Runs, width: float = SAME_BUDGET) -> list[tuple[int, ...]]:
    """Runs of about the same compute, by number, from small budgets to large.

    The window of `width` in log C with the most runs is taken first, then the next among those left.
    """
    logs = np.log(runs.flop)
    left = [int(i) for i in np.argsort(logs, kind="stable")]
    groups = []
    while len(left) > 1:
        lows = logs[left]
        counts = np.searchsorted(lows, lows + width, side="right") - np.arange(len(left))
        first = int(np.argmax(counts))
        if counts[first] < 2:
            break
        groups.append(tuple(left[first : first + counts[first]]))
        del left[first : first + counts[first]]
    return sorted(groups, key=lambda members: logs[members[0]])


def valley(runs: Runs, members: Sequence[int]) -> Valley:
    """Least squares of loss on 1, x, x^2 with x = log N about its mean."""
    chosen = np.array(members)
    logs = np.log(runs.params[chosen])
    centre = float(logs.mean())
    square, slope, level = np.polyfit(logs - centre, runs.loss[chosen], 2)
    optimum, is_inside = None, False
    if square > 0:
        place = centre - slope / (2 * square)
        optimum = float(np.exp(place))
        is_inside = bool(logs.min() <= place <= logs.max())
    return Valley(
        flop=float(np.exp(np.log(runs.flop[chosen]).mean())),
        members=tuple(int(i) for i in members),
        coefficients=(float(level), float(slope), float(square)),
        centre=centre,
        optimum=optimum,
        is_inside=is_inside,
    )


def valleys(runs: Runs, width: float = SAME_BUDGET) -> list[Valley]:
    """A parabola for each budget with at least MIN_SIZES different sizes."""
    found = []
    for members in budgets(runs, width):
        sizes = len(np.unique(np.round(np.log(runs.params[list(members)]), 3)))
        if sizes >= MIN_SIZES:
            found.append(valley(runs, members))
    return found


def line(flop: Floats, params: Floats) -> Trend:
    """Least squares of log N* on log C. Raises ConfigError for fewer than two budgets."""
    if len(np.unique(np.round(np.log(flop), 6))) < 2:
        raise ConfigError(f"an exponent needs optima at two budgets or more, got {len(flop)}")
    x, y = np.log(flop), np.log(params)
    slope, intercept = np.polyfit(x, y, 1)
    left = y - intercept - slope * x
    freedom = max(len(x) - 2, 1)
    error = np.sqrt((left**2).sum() / freedom / ((x - x.mean()) ** 2).sum()) if len(x) > 2 else np.nan
    return Trend(
        exponent=float(slope),
        exponent_error=float(error),
        intercept=float(intercept),
        spread=float(np.sqrt(np.mean(left**2))),
        num_points=len(x),
    )


def parabola_trend(found: Sequence[Valley]) -> Trend:
    """Approach 2: a line through the floors that lie among the sizes run. Raises ConfigError for fewer than two."""
    inside = [one for one in found if one.is_inside]
    if len(inside) < 2:
        raise ConfigError(
            f"{len(found)} budgets have {MIN_SIZES} sizes or more, and {len(inside)} of their valleys have their floor "
            "among them; IsoFLOP parabolas need two: train smaller and larger models at the same compute"
        )
    return line(np.array([one.flop for one in inside]), np.array([one.optimum for one in inside]))


def parabola_bias(runs: Runs, found: Sequence[Valley], law: ParametricLaw, flop: float) -> float:
    """N* by parabolas over N* by the law itself, at a budget, for losses that follow the law without noise.

    The sizes and budgets are those of the runs, so this is what approach 2 gets wrong on them by itself.
    Raises ConfigError where it then finds fewer than two floors.
    """
    tokens = runs.flop / FLOP_PER_PARAM_TOKEN / runs.params
    exact = Runs(params=runs.params, tokens=tokens, flop=runs.flop, loss=law.losses(runs.params, tokens))
    trend = parabola_trend([valley(exact, one.members) for one in found])
    return trend.params(flop) / law.optimum(flop).params


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Where along compute which size has the least loss.

    flop, params  [n], the budgets and the size that wins each
    trend         through those won by neither the smallest nor the largest size measured there
    """

    flop: Floats
    params: Floats
    loss: Floats
    trend: Trend


def envelope(runs: Runs, points: int = ENVELOPE_POINTS) -> Envelope:
    """Approach 1: each size's loss along its training, log-linear between its runs, and the best of them.

    Where the smallest or the largest of the sizes measured at a budget wins, one that was not might do better, so
    these say nothing of the optimum. Raises ConfigError for fewer than three sizes with several runs each, or where
    no middle size ever wins.
    """
    keys = np.round(np.log(runs.params), 3)
    curves = []
    for key in np.unique(keys):
        members = np.flatnonzero(keys == key)
        if len(members) > 1:
            ordered = members[np.argsort(runs.flop[members], kind="stable")]
            curves.append((float(np.exp(np.log(runs.params[members]).mean())), ordered))
    if len(curves) < 3:
        raise ConfigError(
            f"an envelope needs three sizes with several token counts each; {len(curves)} have them"
        )
    low, high = float(np.log(runs.flop.min())), float(np.log(runs.flop.max()))
    grid = np.linspace(low, high, points)
    losses = np.full((len(curves), points), np.inf)
    for row, (_, members) in enumerate(curves):
        x = np.log(runs.flop[members])
        inside = (grid >= x[0]) & (grid <= x[-1])
        losses[row, inside] = np.interp(grid[inside], x, np.log(runs.loss[members]))
    measured = np.isfinite(losses)
    reached = measured.sum(axis=0) > 1
    winner = losses.argmin(axis=0)
    smallest, largest = measured.argmax(axis=0), len(curves) - 1 - measured[::-1].argmax(axis=0)
    middle = reached & (winner > smallest) & (winner < largest)
    sizes = np.array([size for size, _ in curves])
    if len(np.unique(winner[middle])) < 2:
        raise ConfigError(
            "fewer than two sizes between the smallest and the largest ever have the least loss; "
            "train more sizes, or each of them longer"
        )
    return Envelope(
        flop=np.exp(grid[reached]),
        params=sizes[winner[reached]],
        loss=np.exp(losses.min(axis=0)[reached]),
        trend=line(np.exp(grid[middle]), sizes[winner[middle]]),
    )
