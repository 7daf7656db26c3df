"""Forms of scaling law that can be fitted: what each needs of the runs, where its search starts, what it becomes.

A form is a log-sum-exp model (`octavo.planner.descent`) whose variables are centred at their means, so that its
constants are of order one and hardly correlated. Starts come from variable projection: the coefficients are linear
once the exponents are given, so a grid over exponents alone, with a least-squares solve at each point, finds every
basin. Source: Golub and Pereyra 1973; for scaling laws "Problems with Chinchilla Approach 2" (arXiv 2603.22339).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.planner import descent
from octavo.planner.descent import Model, Term
from octavo.planner.laws import KaplanLaw, MoeLaw, ParametricLaw, PowerLaw
from octavo.planner.runs import Runs

Floats = NDArray[np.float64]
AnyLaw = ParametricLaw | PowerLaw | KaplanLaw | MoeLaw

EXPONENTS = np.geomspace(0.02, 2.0, 32)
"""Grid of exponents. Those published for language models lie between 0.05 and 0.5."""

NUM_STARTS = 12
FLOOR = 1e-6
"""What a coefficient that least squares would make negative starts from, as a share of the loss."""

Columns = dict[str, Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A family of laws.

    name        what `--law` calls it
    formula     for people
    needs       columns of `Runs` with at least `min_levels` different values
    constants   names of what it fits, in the order of `to_constants`
    centres     columns whose logarithm is a variable
    build       model from centred logarithms and log losses
    starts      constants [B, p] to search from
    to_constants  fitted theta [B, p] and the centres -> named columns [B]
    to_law      named constants -> the law
    profiled    constants that are themselves coordinates of theta, and their places
    """

    name: str
    formula: str
    needs: tuple[str, ...]
    constants: tuple[str, ...]
    build: Callable[[Columns, Floats], Model]
    starts: Callable[[Columns, Floats, Model], Floats]
    to_constants: Callable[[Floats, dict[str, float]], Columns]
    to_law: Callable[[dict[str, float]], AnyLaw]
    profiled: Mapping[str, int]
    min_levels: int = 3

    def centres(self, runs: Runs) -> dict[str, float]:
        """Mean logarithm of each variable."""
        return {name: float(np.log(_column(runs, name)).mean()) for name in self.needs}

    def variables(self, runs: Runs, centres: dict[str, float]) -> Columns:
        """Centred logarithms of the runs' variables."""
        return {name: np.log(_column(runs, name)) - centres[name] for name in self.needs}

    def named(self, theta: Floats, centres: dict[str, float]) -> Columns:
        """Constants by name, [B] each; infinite where they are beyond floats."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return self.to_constants(theta, centres)

    def check(self, runs: Runs) -> None:
        """Raises ConfigError where the runs cannot determine the constants."""
        minimum = len(self.constants) + 1
        if len(runs) < minimum:
            raise ConfigError(
                f"{self.formula} has {len(self.constants)} constants and needs at least {minimum} runs, got {len(runs)}"
            )
        for name in self.needs:
            levels = len(np.unique(np.round(np.log(_column(runs, name)), 3)))
            if levels < self.min_levels:
                every = "all runs have one" if levels == 1 else f"the runs have {levels} different"
                raise ConfigError(
                    f"{self.formula} needs at least {self.min_levels} different values of {name}; {every} {name}"
                    f"{_instead(name) if levels == 1 else ''}"
                )


def _instead(name: str) -> str:
    other = {"params": "tokens", "tokens": "params"}.get(name)
    return f". A law of {other} alone can be fitted: --law power-{other}" if other else ""


def _column(runs: Runs, name: str) -> Floats:
    if name == "experts":
        if runs.experts is None:
            raise ConfigError(
                "this law needs a column experts; give each run's number of experts, 1 for dense"
            )
        return runs.experts
    values: Floats = getattr(runs, name)
    return values


def _ones(values: Floats) -> Floats:
    return np.ones((len(values), 1))


def _power(values: Floats) -> Floats:
    """[1, -x]: log coefficient and exponent."""
    return np.stack([np.ones_like(values), -values], axis=1)


def _flat(values: Floats) -> Term:
    return Term(np.zeros_like(values), _ones(values))


def _free(features: Floats) -> Term:
    return Term(np.zeros(len(features)), features)


def projected(columns: Floats, target: Floats) -> Floats:
    """Positive coefficients [G, k] of least relative squares: columns [G, n, k] times them near target [n].

    Where the unbounded solution has a negative one, it starts from FLOOR of the target instead.
    """
    scaled = columns / target[None, :, None]
    gram = scaled.transpose(0, 2, 1) @ scaled
    right = scaled.sum(axis=1)
    ridge = 1e-12 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(gram.shape[1])
    solved = np.linalg.solve(gram + ridge, right[:, :, None])[:, :, 0]
    floor = FLOOR * target.mean() / columns.mean(axis=1)
    return np.asarray(np.maximum(solved, floor))


def _best(model: Model, candidates: Floats, count: int = NUM_STARTS) -> Floats:
    """The `count` candidates with the least objective."""
    values = np.concatenate(
        [
            descent.objective(model, part, np.ones(model.num_runs))
            for part in np.array_split(candidates, -(-len(candidates) // descent.chunk_fits(model.num_runs)))
        ]
    )
    best: Floats = candidates[np.argsort(values, kind="stable")[:count]]
    return best


def _grid(*axes: Sequence[float] | Floats) -> Floats:
    return np.array(list(itertools.product(*axes)))


# L = E + A / N^alpha + B / D^beta


def _build_parametric(x: Columns, log_losses: Floats) -> Model:
    return Model([_free(_power(x["params"])), _free(_power(x["tokens"])), _flat(log_losses)], log_losses)


def _start_parametric(x: Columns, log_losses: Floats, model: Model) -> Floats:
    grid = _grid(EXPONENTS, EXPONENTS)
    of_params = np.exp(-grid[:, :1] * x["params"])
    of_tokens = np.exp(-grid[:, 1:] * x["tokens"])
    columns = np.stack([of_params, of_tokens, np.ones_like(of_params)], axis=2)
    logs = np.log(projected(columns, np.exp(log_losses)))
    theta = np.stack([logs[:, 0], grid[:, 0], logs[:, 1], grid[:, 1], logs[:, 2]], axis=1)
    return _best(model, theta)


def _parametric_constants(theta: Floats, centres: dict[str, float]) -> Columns:
    a, alpha, b, beta, e = theta.T
    return {
        "E": np.exp(e),
        "A": np.exp(a + alpha * centres["params"]),
        "B": np.exp(b + beta * centres["tokens"]),
        "alpha": alpha,
        "beta": beta,
    }


PARAMETRIC = Form(
    name="chinchilla",
    formula="L = E + A / N^alpha + B / D^beta",
    needs=("params", "tokens"),
    constants=("E", "A", "B", "alpha", "beta"),
    build=_build_parametric,
    starts=_start_parametric,
    to_constants=_parametric_constants,
    to_law=lambda c: ParametricLaw(**c),
    profiled={"alpha": 1, "beta": 3},
)


# L = E + (scale / x)^exponent, and the same without E


def _power_form(variable: str, with_floor: bool) -> Form:
    def build(x: Columns, log_losses: Floats) -> Model:
        power = _free(_power(x[variable]))
        return Model([power, _flat(log_losses)] if with_floor else [power], log_losses)

    def starts(x: Columns, log_losses: Floats, model: Model) -> Floats:
        grid = EXPONENTS[:, None]
        powers = np.exp(-grid * x[variable])
        columns = np.stack([powers, np.ones_like(powers)][: 1 + with_floor], axis=2)
        logs = np.log(projected(columns, np.exp(log_losses)))
        return _best(model, np.concatenate([logs[:, :1], grid, logs[:, 1:]], axis=1))

    def to_constants(theta: Floats, centres: dict[str, float]) -> Columns:
        a, exponent = theta[:, 0], theta[:, 1]
        found = {"scale": np.exp(a / exponent + centres[variable]), "exponent": exponent}
        return found | {"E": np.exp(theta[:, 2])} if with_floor else found

    letter = {"params": "N", "tokens": "D", "flop": "C"}[variable]
    return Form(
        name=f"power-{variable}" + ("" if with_floor else "-bare"),
        formula=f"L = {'E + ' if with_floor else ''}(scale / {letter})^exponent",
        needs=(variable,),
        constants=("scale", "exponent", "E")[: 2 + with_floor],
        build=build,
        starts=starts,
        to_constants=to_constants,
        to_law=lambda c: PowerLaw(**c),
        profiled={"exponent": 1},
        min_levels=3 if with_floor else 2,
    )


# L = [(Nc / N)^(alpha_n / alpha_d) + Dc / D]^alpha_d


def _build_kaplan(x: Columns, log_losses: Floats) -> Model:
    tokens = x["tokens"]
    return Model(
        [_free(_power(x["params"])), Term(-tokens, _ones(tokens))],
        log_losses,
        has_power=True,
    )


def _start_kaplan(x: Columns, log_losses: Floats, model: Model) -> Floats:
    candidates = []
    for power in EXPONENTS:
        ratios = EXPONENTS[:, None]
        of_params = np.exp(-ratios * x["params"])
        of_tokens = np.broadcast_to(np.exp(-x["tokens"]), of_params.shape)
        target = np.exp((log_losses - log_losses.mean()) / power)
        logs = np.log(projected(np.stack([of_params, of_tokens], axis=2), target)) + log_losses.mean() / power
        log_power = np.full_like(ratios, np.log(power))
        candidates.append(np.concatenate([logs[:, :1], ratios, logs[:, 1:], log_power], axis=1))
    return _best(model, np.concatenate(candidates))


def _kaplan_constants(theta: Floats, centres: dict[str, float]) -> Columns:
    n, ratio, d, log_power = theta.T
    power = np.exp(log_power)
    return {
        "Nc": np.exp(n / ratio + centres["params"]),
        "Dc": np.exp(d + centres["tokens"]),
        "alpha_n": ratio * power,
        "alpha_d": power,
    }


KAPLAN = Form(
    name="kaplan",
    formula="L = [(Nc / N)^(alpha_n / alpha_d) + Dc / D]^alpha_d",
    needs=("params", "tokens"),
    constants=("Nc", "Dc", "alpha_n", "alpha_d"),
    build=_build_kaplan,
    starts=_start_kaplan,
    to_constants=_kaplan_constants,
    to_law=lambda c: KaplanLaw(**c),
    profiled={},
)


# L = c + a X^delta N^(alpha + gamma ln X) + b X^omega D^(beta + zeta ln X)


def _moe_features(values: Floats, experts: Floats) -> Floats:
    return np.stack([np.ones_like(values), experts, values, experts * values], axis=1)


def _build_moe(x: Columns, log_losses: Floats) -> Model:
    of_params = _moe_features(x["params"], x["experts"])
    of_tokens = _moe_features(x["tokens"], x["experts"])
    return Model([_free(of_params), _free(of_tokens), _flat(log_losses)], log_losses)


def _start_moe(x: Columns, log_losses: Floats, model: Model) -> Floats:
    """Starts of the dense form, with the experts' exponents at a few values."""
    dense = _start_parametric(x, log_losses, _build_parametric(x, log_losses))
    theta = []
    for a, alpha, b, beta, e in dense:
        for delta, omega in itertools.product((-0.1, 0.0, 0.1), repeat=2):
            theta.append([a, delta, -alpha, 0.0, b, omega, -beta, 0.0, e])
    return _best(model, np.array(theta), 3 * NUM_STARTS)


def _moe_constants(theta: Floats, centres: dict[str, float]) -> Columns:
    """Undo the centring: (alpha + gamma (x - X0)) (n - N0) + delta (x - X0) is a plain polynomial in x and n."""
    a, delta, alpha, gamma, b, omega, beta, zeta, c = theta.T
    n0, d0, x0 = centres["params"], centres["tokens"], centres["experts"]
    return {
        "a": np.exp(a - delta * x0 - alpha * n0 + gamma * x0 * n0),
        "delta": delta - gamma * n0,
        "alpha": alpha - gamma * x0,
        "gamma": gamma,
        "b": np.exp(b - omega * x0 - beta * d0 + zeta * x0 * d0),
        "omega": omega - zeta * d0,
        "beta": beta - zeta * x0,
        "zeta": zeta,
        "c": np.exp(c),
    }


MOE = Form(
    name="moe",
    formula="L = c + a X^delta N^(alpha + gamma ln X) + b X^omega D^(beta + zeta ln X)",
    needs=("params", "tokens", "experts"),
    constants=("a", "delta", "alpha", "gamma", "b", "omega", "beta", "zeta", "c"),
    build=_build_moe,
    starts=_start_moe,
    to_constants=_moe_constants,
    to_law=lambda c: MoeLaw(**c),
    profiled={"gamma": 3, "zeta": 7},
    min_levels=2,
)

FORMS = {
    form.name: form
    for form in (
        PARAMETRIC,
        KAPLAN,
        *(_power_form(name, floor) for name in ("params", "tokens", "flop") for floor in (True, False)),
        MOE,
    )
}
"""By the name `--law` takes."""


def form(name: str) -> Form:
    """Raises ConfigError that lists the forms there are."""
    if name not in FORMS:
        raise ConfigError(f"unknown law {name!r}; laws that can be fitted: {', '.join(FORMS)}")
    return FORMS[name]
