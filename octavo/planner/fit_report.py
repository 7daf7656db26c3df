"""Everything `octavo fit` has to say of a table of runs, as values: the law, its doubts, its advice, and warnings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.planner import fits, isoflop, scrutiny, spans
from octavo.planner.descent import DELTA
from octavo.planner.fits import Bootstrap, Fit
from octavo.planner.laws import FLOP_PER_PARAM_TOKEN, KaplanLaw, MoeLaw, ParametricLaw, PowerLaw
from octavo.planner.runs import Runs

Floats = NDArray[np.float64]

NUM_INFLUENCES = 5
MANY_SIGMAS = 0.5
"""How far, in its own standard errors, a constant must move with one run for that run to be named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What a user chose.

    drop      highest losses to leave out, or "auto" for the runs far off the fit
    level     of all intervals
    flop      budget to give advice for
    experts   number of experts to give advice for, where the law knows of them
    """

    law: str = "chinchilla"
    drop: int | str = 0
    delta: float = DELTA
    resamples: int = 1000
    level: float = 0.9
    seed: int = 0
    flop: float | None = None
    experts: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.drop, str) and self.drop != "auto":
            raise ConfigError(f"runs to drop are a number or 'auto', got {self.drop!r}")
        if not 0 < self.level < 1:
            raise ConfigError(f"the level of intervals must lie between 0 and 1, got {self.level:g}")
        if self.flop is not None and not self.flop > 0:
            raise ConfigError(f"the budget must be positive FLOPs, got {self.flop:g}")


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with the interval and the standard error of its refits, where there are any."""

    value: float
    error: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One answered `octavo fit`.

    dropped      runs left out before fitting
    profiles     constant -> interval from the objective alone
    influences   the runs whose absence moves some constant most, strongest first, with that constant and its move
                 in standard errors
    cleaned      the fit without outlying runs, where there are any and they were not dropped
    parabolas    trend of IsoFLOP valleys, or why there is none; `parabola_bias` is N* by them over N* by the law
    advice       figures at the budget
    """

    choices: Choices
    fitted: Fit
    dropped: int
    bootstrap: Bootstrap | None
    constants: dict[str, Figure]
    profiles: dict[str, tuple[float, float]]
    influences: list[tuple[scrutiny.Influence, str, float]]
    outlying: list[int]
    cleaned: Fit | None
    valleys: list[isoflop.Valley]
    parabolas: isoflop.Trend | str
    parabola_bias: float | None
    envelope: isoflop.Envelope | str
    advice: dict[str, Figure]
    warnings: list[str]


def report(runs: Runs, choices: Choices) -> Report:
    """Fit and look at it from all sides. Raises ConfigError for runs that cannot be fitted."""
    every = len(runs)
    if choices.drop == "auto":
        fitted = scrutiny.without_outlying(fits.fit(runs, choices.law, delta=choices.delta))
    else:
        runs = runs.without_highest_losses(int(choices.drop))
        fitted = fits.fit(runs, choices.law, delta=choices.delta)
    bootstrap = fits.bootstrap(fitted, choices.resamples, choices.seed) if choices.resamples else None
    constants = _constants(fitted, bootstrap, choices.level)
    outlying = [int(run) for run in scrutiny.outlying(fitted)]
    valleys, parabolas, bias = _parabolas(fitted, choices.flop)
    advice = _advice(fitted, bootstrap, choices)
    return Report(
        choices=choices,
        fitted=fitted,
        dropped=every - len(fitted.runs),
        bootstrap=bootstrap,
        constants=constants,
        profiles={
            name: scrutiny.profile_interval(fitted, name, choices.level) for name in fitted.form.profiled
        },
        influences=_influences(fitted, constants),
        outlying=outlying,
        cleaned=_cleaned(fitted) if outlying else None,
        valleys=valleys,
        parabolas=parabolas,
        parabola_bias=bias,
        envelope=_envelope(fitted.runs),
        advice=advice,
        warnings=_warnings(fitted, bootstrap, advice, choices),
    )


def _figure(value: float, samples: Floats | None, level: float) -> Figure:
    if samples is None:
        return Figure(value)
    low, high = fits.interval(samples, level)
    return Figure(value, fits.spread(samples), low, high)


def _constants(fitted: Fit, bootstrap: Bootstrap | None, level: float) -> dict[str, Figure]:
    values = {name: value for name, value in fitted.constants().items() if name in fitted.form.constants}
    if isinstance(fitted.law, ParametricLaw):
        values |= {"a": fitted.law.params_exponent, "b": fitted.law.tokens_exponent}
    samples = bootstrap.samples if bootstrap else {}
    return {name: _figure(value, samples.get(name), level) for name, value in values.items()}


def _influences(fitted: Fit, constants: dict[str, Figure]) -> list[tuple[scrutiny.Influence, str, float]]:
    """The runs that move a constant by more than MANY_SIGMAS of its standard errors, at most NUM_INFLUENCES."""
    found = []
    for one in scrutiny.influences(fitted):
        moves = {
            name: (value - constants[name].value) / error
            for name, value in one.without.items()
            if name in constants and (error := constants[name].error)
        }
        if moves:
            name = max(moves, key=lambda key: abs(moves[key]))
            found.append((one, name, moves[name]))
    found.sort(key=lambda entry: -abs(entry[2]))
    return [entry for entry in found[:NUM_INFLUENCES] if abs(entry[2]) >= MANY_SIGMAS]


def _cleaned(fitted: Fit) -> Fit | None:
    try:
        return scrutiny.without_outlying(fitted)
    except ConfigError:  # too few runs are left to fit
        return None


def _parabolas(
    fitted: Fit, flop: float | None
) -> tuple[list[isoflop.Valley], isoflop.Trend | str, float | None]:
    valleys = isoflop.valleys(fitted.runs)
    try:
        trend = isoflop.parabola_trend(valleys)
    except ConfigError as error:
        return valleys, str(error), None
    if not isinstance(fitted.law, ParametricLaw):
        return valleys, trend, None
    try:
        bias = isoflop.parabola_bias(fitted.runs, valleys, fitted.law, flop or float(fitted.runs.flop.max()))
    except ConfigError:  # losses of the law itself have no floor among these sizes
        bias = None
    return valleys, trend, bias


def _envelope(runs: Runs) -> isoflop.Envelope | str:
    try:
        return isoflop.envelope(runs)
    except ConfigError as error:
        return str(error)


def _advice(fitted: Fit, bootstrap: Bootstrap | None, choices: Choices) -> dict[str, Figure]:
    """What the law says of the budget: the split where it knows of one, and the loss."""
    flop, level, law = choices.flop, choices.level, fitted.law
    if flop is None:
        return {}
    samples: dict[str, Floats] = {}
    if isinstance(law, MoeLaw):
        if choices.experts is None:
            raise ConfigError("advice from a law of experts needs their number; add --experts")
        law = law.at_experts(choices.experts)
    elif isinstance(law, ParametricLaw) and bootstrap:
        samples = fits.optimum_samples(bootstrap.samples, flop)
    if isinstance(law, PowerLaw):
        if fitted.form.needs != ("flop",):
            raise ConfigError(
                f"{fitted.form.formula} says nothing of a budget; fit chinchilla, kaplan or power-flop for --budget"
            )
        if bootstrap:
            ratio = (bootstrap.samples["scale"] / flop) ** bootstrap.samples["exponent"]
            samples["loss"] = ratio + bootstrap.samples.get("E", np.zeros_like(ratio))
        return {"loss": _figure(law.loss(flop), samples.get("loss"), level)}
    best = law.optimum(flop)
    values = {"params": best.params, "tokens": best.tokens, "tokens_per_param": best.tokens_per_param}
    if best.loss is not None:
        values["loss"] = best.loss
    return {name: _figure(value, samples.get(name), level) for name, value in values.items()}


def _warnings(
    fitted: Fit, bootstrap: Bootstrap | None, advice: dict[str, Figure], choices: Choices
) -> list[str]:
    found = []
    if choices.flop is not None and "params" in advice:
        found += spans.extrapolation_warnings(
            spans.ranges(fitted.runs),
            flop=choices.flop,
            params=advice["params"].value,
            tokens=advice["tokens"].value,
        )
    elif choices.flop is not None:
        span = spans.ranges(fitted.runs)["flop"]
        times = span.times_outside(choices.flop)
        if times > 1:
            found.append(f"C = {choices.flop:.3g} FLOPs is {times:.3g} times outside the runs")
    if fitted.num_agreeing < 2:
        found.append(
            f"only one of {fitted.num_starts} searches ended here; the minimum may not be the lowest"
        )
    if bootstrap and bootstrap.num_unsettled:
        every = bootstrap.num_unsettled + bootstrap.num_samples
        found.append(
            f"{bootstrap.num_unsettled} of {every} resamples gave no law and are left out of the intervals, which are "
            "too narrow for it"
        )
    found += _product_warning(fitted)
    return found


def _product_warning(fitted: Fit) -> list[str]:
    """Whether N and D rose together, so that their terms cannot be told apart; and whether C is 6 N D."""
    found = []
    runs = fitted.runs
    if isinstance(fitted.law, ParametricLaw | KaplanLaw):
        together = float(np.corrcoef(np.log(runs.params), np.log(runs.tokens))[0, 1])
        if abs(together) > 0.97:
            found.append(
                f"N and D of the runs move together (correlation {together:.2f} of their logarithms); their terms can "
                "hardly be told apart: train one size for several token counts"
            )
    ratio = float(np.median(runs.flop / (FLOP_PER_PARAM_TOKEN * runs.params * runs.tokens)))
    if not 0.8 < ratio < 1.25:
        found.append(
            f"the flop column is {ratio:.3g} times 6 N D; advice for a budget counts 6 N D, so scale the budget"
        )
    return found
