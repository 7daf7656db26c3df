"""Compute-optimal models for those who will also serve them: smaller than training alone would advise, trained longer.

Every served token costs as many FLOPs as the forward pass of the model, so a smaller model that was trained longer
to the same loss can cost less over its life. Source: Sardana et al. 2024, "Beyond Chinchilla-Optimal" (arXiv
2401.00448), sec. 2 for FLOPs and sec. 3 for money.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from octavo.errors import ConfigError
from octavo.planner.laws import FLOP_PER_PARAM_TOKEN, ParametricLaw

FLOP_PER_SERVED_PARAM = 2.0
"""Of one parameter and one served token: a multiplication and an addition."""

SEARCH_STEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What training and serving cost, in any one unit (FLOPs or dollars).

    per_training_flop  of one FLOP of 6 N D
    per_param          of one parameter over the whole life of the model: what all served tokens cost, divided by N
    """

    per_training_flop: float
    per_param: float

    def __post_init__(self) -> None:
        if not (self.per_training_flop > 0 and self.per_param >= 0):
            raise ConfigError(f"training must cost something and serving not less than nothing, got {self}")

    def training(self, params: float, tokens: float) -> float:
        return self.per_training_flop * FLOP_PER_PARAM_TOKEN * params * tokens

    def serving(self, params: float) -> float:
        return self.per_param * params

    def total(self, params: float, tokens: float) -> float:
        return self.training(params, tokens) + self.serving(params)


def flop_costs(served_tokens: float) -> Costs:
    """6 N D + 2 N served_tokens: every token of prompts and answers, at the same utilisation as in training."""
    if served_tokens < 0:
        raise ConfigError(f"served tokens cannot be negative, got {served_tokens:g}")
    return Costs(per_training_flop=1.0, per_param=FLOP_PER_SERVED_PARAM * served_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Tokens of a model's whole life.

    cached_share  of the prompt tokens, those found in a prefix cache
    """

    prompt_tokens: float
    output_tokens: float
    cached_share: float = 0.0

    def __post_init__(self) -> None:
        if self.prompt_tokens < 0 or self.output_tokens < 0 or not 0 <= self.cached_share <= 1:
            raise ConfigError(
                f"tokens cannot be negative and the cached share lies between 0 and 1, got {self}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPrice:
    """Dollars per million tokens that serving a model of `params` active parameters was measured to cost.

    The prices stand for utilisation, batch, precision and hardware as they were; a model of another size is taken to
    cost in proportion to its parameters, which holds while weights and products rule, and not for long contexts.
    """

    params: float
    prompt_usd_per_million: float
    output_usd_per_million: float
    cached_usd_per_million: float = 0.0

    def __post_init__(self) -> None:
        prices = (self.prompt_usd_per_million, self.output_usd_per_million, self.cached_usd_per_million)
        if not self.params > 0 or min(prices) < 0:
            raise ConfigError(f"a measured price needs positive parameters and no negative price, got {self}")

    def usd(self, traffic: Traffic) -> float:
        """Of a whole life of traffic, for the model that was measured."""
        fresh = traffic.prompt_tokens * (1 - traffic.cached_share) * self.prompt_usd_per_million
        cached = traffic.prompt_tokens * traffic.cached_share * self.cached_usd_per_million
        return (fresh + cached + traffic.output_tokens * self.output_usd_per_million) / 1e6


def money_costs(usd_per_training_flop: float, price: MeasuredPrice, traffic: Traffic) -> Costs:
    """Dollars: training by its price per useful FLOP, serving by what was measured."""
    return Costs(per_training_flop=usd_per_training_flop, per_param=price.usd(traffic) / price.params)


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """A model, what it was trained on, and what it costs until nobody asks it any more."""

    params: float
    tokens: float
    loss: float
    training_cost: float
    serving_cost: float

    @property
    def total_cost(self) -> float:
        return self.training_cost + self.serving_cost

    @property
    def tokens_per_param(self) -> float:
        return self.tokens / self.params


def life(law: ParametricLaw, costs: Costs, params: float, tokens: float) -> Life:
    """The life of one model."""
    return Life(
        params=params,
        tokens=tokens,
        loss=law.loss(params, tokens),
        training_cost=costs.training(params, tokens),
        serving_cost=costs.serving(params),
    )


def of_quality(law: ParametricLaw, costs: Costs, params: float, loss: float) -> Life:
    """A model of `params` trained until it reaches `loss`. Raises ConfigError where it never does."""
    tokens = law.tokens_for_loss(params, loss)
    if math.isinf(tokens):
        least = (law.A / (loss - law.E)) ** (1 / law.alpha) if loss > law.E else math.inf
        raise ConfigError(
            f"{params:.3g} parameters never reach a loss of {loss:.4f} by this law; at least {least:.3g} would"
        )
    return life(law, costs, params, tokens)


def cheapest_of_quality(law: ParametricLaw, costs: Costs, loss: float) -> Life:
    """The model that reaches `loss` at the least total cost. Raises ConfigError for a loss not above E."""
    if not loss > law.E:
        raise ConfigError(f"no model reaches a loss of {loss:.4f}: the law's irreducible loss is {law.E:.4f}")
    least = (law.A / (loss - law.E)) ** (1 / law.alpha)

    def cost(log_params: float) -> float:
        params = math.exp(log_params)
        tokens = law.tokens_for_loss(params, loss)
        return costs.total(params, tokens)

    low = math.log(least)
    params = math.exp(_lowest(cost, low + 1e-9, low + 25.0))
    return of_quality(law, costs, params, loss)


def best_of_budget(law: ParametricLaw, costs: Costs, budget: float) -> Life:
    """The model of least loss whose training and serving together cost `budget`."""
    if not budget > 0:
        raise ConfigError(f"the budget must be positive, got {budget:g}")

    def tokens_of(params: float) -> float:
        left = budget - costs.serving(params)
        return left / (costs.per_training_flop * FLOP_PER_PARAM_TOKEN * params)

    def loss(log_params: float) -> float:
        params = math.exp(log_params)
        tokens = tokens_of(params)
        return law.loss(params, tokens) if tokens > 0 else math.inf

    most = law.optimum(budget / costs.per_training_flop).params
    if costs.per_param:
        most = min(most, budget / costs.per_param)
    params = math.exp(_lowest(loss, math.log(most) - 25.0, math.log(most)))
    return life(law, costs, params, tokens_of(params))


def _lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is least, by golden sections to the resolution of floats.

    Near its floor a valley is flat to half the digits; what is taken there is right to about 1e-8.
    """
    section = (math.sqrt(5) - 1) / 2
    left, right = high - section * (high - low), low + section * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(SEARCH_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - section * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + section * (high - low)
            at_right = function(right)
        if high - low < 1e-12:
            break
    return (low + high) / 2
