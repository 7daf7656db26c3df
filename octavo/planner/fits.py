"""Fitting a scaling law to runs: the best constants, how sure they are, and which runs decide them.

The objective is that of Hoffmann et al. 2022 (arXiv 2203.15556) eq. 3: the sum over runs of the Huber loss, with
delta 1e-3, of predicted minus observed log loss. It is summed, not averaged: an optimiser that stops at a small
gradient stops early on an average, which is how the published constants came about (Besiroglu et al. 2024, arXiv
2404.10102). Starts come from variable projection, the descent is Newton's with exact derivatives: the first finds
every basin cheaply, the second goes to its floor, where quasi-Newton methods tend to stop short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.planner import descent, forms
from octavo.planner.descent import DELTA, Model
from octavo.planner.forms import AnyLaw, Form
from octavo.planner.laws import FLOP_PER_PARAM_TOKEN
from octavo.planner.runs import Runs

Floats = NDArray[np.float64]

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution whose median absolute deviation is one."""

START_RUNS = 512

SAME_OBJECTIVE = 1e-6
"""Relative difference below which two ends of the search are one minimum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A law fitted to runs.

    objective   sum of Huber losses
    residuals   [n], predicted minus observed log loss
    num_starts  searches made, of which `num_agreeing` ended at this minimum
    theta       [p], the form's own centred constants
    """

    form: Form
    runs: Runs
    law: AnyLaw
    objective: float
    residuals: Floats
    num_starts: int
    num_agreeing: int
    theta: Floats
    centres: dict[str, float]
    delta: float

    @property
    def model(self) -> Model:
        return _model(self.form, self.runs, self.centres)

    @property
    def robust_sigma(self) -> float:
        """Spread of the residuals that outliers do not move."""
        return MAD_TO_SIGMA * float(np.median(np.abs(self.residuals - np.median(self.residuals))))

    @property
    def rms(self) -> float:
        return float(np.sqrt(np.mean(self.residuals**2)))

    def constants(self) -> dict[str, float]:
        return self.law.constants()


def _model(form: Form, runs: Runs, centres: dict[str, float]) -> Model:
    return form.build(form.variables(runs, centres), np.log(runs.loss))


def fit(runs: Runs, law: str = "chinchilla", *, delta: float = DELTA) -> Fit:
    """The best constants of a law. Raises ConfigError where the runs cannot determine them."""
    form = forms.form(law)
    form.check(runs)
    if not delta > 0:
        raise ConfigError(f"delta must be positive, got {delta:g}")
    centres = form.centres(runs)
    model = _model(form, runs, centres)
    ends = descent.minimise(model, _starts(form, runs, centres), delta=delta)
    best = int(np.argmin(ends.objective))
    if not (math.isfinite(ends.objective[best]) and ends.converged[best]):
        raise ConfigError(
            f"{form.formula} did not settle on these {len(runs)} runs; use a law with fewer constants"
        )
    theta = ends.theta[best]
    found = {name: float(value[0]) for name, value in form.named(theta[None], centres).items()}
    floor = SAME_OBJECTIVE * ends.objective[best] + 1e-18
    return Fit(
        form=form,
        runs=runs,
        law=_law(form, found),
        objective=float(ends.objective[best]),
        residuals=descent.predict(model, theta[None])[0] - model.log_losses,
        num_starts=len(ends.objective),
        num_agreeing=int((ends.objective <= ends.objective[best] + floor).sum()),
        theta=theta,
        centres=centres,
        delta=delta,
    )


def _starts(form: Form, runs: Runs, centres: dict[str, float]) -> Floats:
    """Where the search starts; of many runs only some are asked, from the least loss to the highest."""
    if len(runs) > START_RUNS:
        order = np.argsort(runs.loss, kind="stable")
        runs = runs.chosen(order[np.linspace(0, len(runs) - 1, START_RUNS).astype(int)])
    variables, log_losses = form.variables(runs, centres), np.log(runs.loss)
    return form.starts(variables, log_losses, form.build(variables, log_losses))


def _law(form: Form, constants: dict[str, float]) -> AnyLaw:
    try:
        return form.to_law(constants)
    except ConfigError as error:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in constants.items())
        raise ConfigError(
            f"the best {form.formula} for these runs is no scaling law ({shown}): {error}. The loss must fall with "
            "every variable; look at the runs, or fit a law of fewer variables"
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """Constants refitted to resamples of the runs, drawn with replacement.

    samples       constant -> [B]; for the parametric law also a and b, the exponents of N* and D*
    num_unsettled   resamples whose fit did not converge or was no law; they are left out
    """

    samples: dict[str, Floats]
    num_unsettled: int
    seed: int

    @property
    def num_samples(self) -> int:
        return len(next(iter(self.samples.values())))

    def standard_error(self, name: str) -> float:
        return spread(self.samples[name])

    def interval(self, name: str, level: float) -> tuple[float, float]:
        """Percentile interval that holds `level` of the refits, as much left out below as above."""
        return interval(self.samples[name], level)

    def covariance(self, names: Sequence[str]) -> Floats:
        """[k, k] of some constants."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.atleast_2d(np.cov(np.stack([self.samples[name] for name in names])))


def spread(values: Floats) -> float:
    """Standard deviation; infinite where squares are beyond floats."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.nan_to_num(np.std(values, ddof=1), nan=np.inf))


def interval(values: Floats, level: float) -> tuple[float, float]:
    """Percentile interval of values."""
    if not 0 < level < 1:
        raise ConfigError(f"the level of an interval must lie between 0 and 1, got {level:g}")
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap(fitted: Fit, resamples: int, seed: int) -> Bootstrap:
    """Refit to resamples of the runs; the same seed gives the same samples."""
    if resamples < 2:
        raise ConfigError(f"a bootstrap needs at least 2 resamples, got {resamples}")
    rng = np.random.default_rng(seed)
    number = len(fitted.runs)
    counts = rng.multinomial(number, np.full(number, 1 / number), size=resamples).astype(float)
    starts = np.repeat(fitted.theta[None], resamples, axis=0)
    ends = descent.minimise(fitted.model, starts, counts, delta=fitted.delta)
    samples = with_exponents(fitted.form.named(ends.theta, fitted.centres))
    good = ends.converged & np.all([np.isfinite(values) for values in samples.values()], axis=0)
    if "a" in samples and "beta" in samples and fitted.form is forms.PARAMETRIC:
        good &= (samples["alpha"] > 0) & (samples["beta"] > 0)
    if good.sum() < 2:
        raise ConfigError(
            f"none of {resamples} resamples of these {number} runs gave a law; more runs are needed"
        )
    return Bootstrap(
        samples={name: values[good] for name, values in samples.items()},
        num_unsettled=int((~good).sum()),
        seed=seed,
    )


def with_exponents(samples: dict[str, Floats]) -> dict[str, Floats]:
    if set(samples) != {"E", "A", "B", "alpha", "beta"}:
        return samples
    both = samples["alpha"] + samples["beta"]
    return samples | {"a": samples["beta"] / both, "b": samples["alpha"] / both}


def optimum_samples(samples: dict[str, Floats], flop: float) -> dict[str, Floats]:
    """params, tokens, tokens_per_param and loss at the optimum of a budget, for each refit of the parametric law."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        alpha, beta = samples["alpha"], samples["beta"]
        balance = (alpha * samples["A"] / (beta * samples["B"])) ** (1 / (alpha + beta))
        pairs = flop / FLOP_PER_PARAM_TOKEN
        params = balance * pairs ** (beta / (alpha + beta))
        tokens = pairs / params
        loss = samples["E"] + samples["A"] / params**alpha + samples["B"] / tokens**beta
        ratio = tokens / params
    return {"params": params, "tokens": tokens, "tokens_per_param": ratio, "loss": loss}
