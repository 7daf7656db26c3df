"""Scaling laws: the loss of a language model as a function of its size, its training tokens, or its compute.

Symbols are those of the papers: N parameters, D training tokens, C training FLOPs, L loss in nats per token.
Constants are kept as they were fitted, never rounded: two digits of an exponent decide between 18 and 93 tokens
per parameter (`octavo plan design --flop 5.76e23` shows it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from octavo.errors import ConfigError

FLOP_PER_PARAM_TOKEN = 6.0
"""Training FLOPs of one parameter and one token: two forward, four backward. Kaplan et al. 2020 (arXiv 2001.08361)
sec. 2.1; Hoffmann et al. 2022 (arXiv 2203.15556) appendix F finds it within 10 % of an exact count."""

Floats = NDArray[np.float64]


class Law(Protocol):
    """What every law can say of itself."""

    def constants(self) -> dict[str, float]:
        """Its constants by name, unrounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """The split of a compute budget with the least loss."""

    flop: float
    params: float
    tokens: float
    loss: float | None

    @property
    def tokens_per_param(self) -> float:
        return self.tokens / self.params


def _positive(law: object, *names: str) -> None:
    for name in names:
        value = getattr(law, name)
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} of a {type(law).__name__} must be positive, got {value!r}")


def _own_constants(law: object) -> dict[str, float]:
    return {field.name: float(getattr(law, field.name)) for field in fields(law)}  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParametricLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta.

    Source: Hoffmann et al. 2022 (arXiv 2203.15556) eq. 2; the optimum is their eq. 4.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        _positive(self, "A", "B", "alpha", "beta")
        if not (math.isfinite(self.E) and self.E >= 0):
            raise ConfigError(f"E of a ParametricLaw must be at least 0, got {self.E!r}")

    def constants(self) -> dict[str, float]:
        return _own_constants(self)

    def losses(self, params: ArrayLike, tokens: ArrayLike) -> Floats:
        """L at sizes and token counts of any shapes that broadcast."""
        n, d = np.asarray(params, dtype=float), np.asarray(tokens, dtype=float)
        return np.asarray(self.E + self.A / n**self.alpha + self.B / d**self.beta)

    def loss(self, params: float, tokens: float) -> float:
        return float(self.E + self.A / params**self.alpha + self.B / tokens**self.beta)

    @property
    def params_exponent(self) -> float:
        """a of N* ~ C^a."""
        return self.beta / (self.alpha + self.beta)

    @property
    def tokens_exponent(self) -> float:
        """b of D* ~ C^b."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def balance(self) -> float:
        """G of N* = G (C / 6)^a."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        return float(ratio ** (1 / (self.alpha + self.beta)))

    def optimum(self, flop: float) -> Optimum:
        """The split of `flop` = 6 N D with the least loss."""
        pairs = flop / FLOP_PER_PARAM_TOKEN
        params = self.balance * pairs**self.params_exponent
        tokens = pairs / params
        return Optimum(flop=flop, params=params, tokens=tokens, loss=self.loss(params, tokens))

    def optimum_of_params(self, params: float) -> Optimum:
        """The budget whose optimum has `params` parameters."""
        return self.optimum(FLOP_PER_PARAM_TOKEN * (params / self.balance) ** (1 / self.params_exponent))

    def tokens_for_loss(self, params: float, loss: float) -> float:
        """Training tokens after which a model of `params` reaches `loss`; infinite where it never does."""
        rest = loss - self.E - self.A / params**self.alpha
        return float((self.B / rest) ** (1 / self.beta)) if rest > 0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """L(x) = E + (scale / x)^exponent of one variable: parameters, tokens or compute.

    Source: Kaplan et al. 2020 (arXiv 2001.08361) eqs. 1.1 to 1.3, where E is 0; Henighan et al. 2020
    (arXiv 2010.14701) eq. 1.1 with it.
    """

    scale: float
    exponent: float
    E: float = 0.0

    def __post_init__(self) -> None:
        _positive(self, "scale", "exponent")

    def constants(self) -> dict[str, float]:
        return _own_constants(self)

    def losses(self, values: ArrayLike) -> Floats:
        return np.asarray(self.E + (self.scale / np.asarray(values, dtype=float)) ** self.exponent)

    def loss(self, value: float) -> float:
        return float(self.E + (self.scale / value) ** self.exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class KaplanLaw:
    """L(N, D) = [(Nc / N)^(alpha_n / alpha_d) + Dc / D]^alpha_d.

    Source: Kaplan et al. 2020 (arXiv 2001.08361) eq. 1.5. Its constants (their table 2) are not those of the laws
    of one variable (their table 5): the two sets must not be mixed.
    """

    Nc: float
    Dc: float
    alpha_n: float
    alpha_d: float

    def __post_init__(self) -> None:
        _positive(self, "Nc", "Dc", "alpha_n", "alpha_d")

    def constants(self) -> dict[str, float]:
        return _own_constants(self)

    def losses(self, params: ArrayLike, tokens: ArrayLike) -> Floats:
        n, d = np.asarray(params, dtype=float), np.asarray(tokens, dtype=float)
        return np.asarray(((self.Nc / n) ** (self.alpha_n / self.alpha_d) + self.Dc / d) ** self.alpha_d)

    def loss(self, params: float, tokens: float) -> float:
        return float(self.losses(params, tokens))

    def optimum(self, flop: float) -> Optimum:
        """The split of `flop` = 6 N D with the least loss.

        With q = alpha_n / alpha_d the bracket is (Nc / N)^q + 6 Dc N / C, least at N^(1 + q) = q Nc^q C / (6 Dc).
        It is not the paper's own allocation, which also counts steps and batch sizes: see `published`.
        """
        pairs = flop / FLOP_PER_PARAM_TOKEN
        ratio = self.alpha_n / self.alpha_d
        params = (ratio * self.Nc**ratio * pairs / self.Dc) ** (1 / (1 + ratio))
        return Optimum(
            flop=flop, params=params, tokens=pairs / params, loss=self.loss(params, pairs / params)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeLaw:
    """L(N, D, X) = c + a X^delta N^(alpha + gamma ln X) + b X^omega D^(beta + zeta ln X).

    N are active parameters, X the experts of a layer as `effective_experts` counts them; all exponents carry
    their signs, so alpha and beta are negative.
    Source: Ludziejewski et al. 2025, "Joint MoE Scaling Laws: Mixture of Experts Can Be Memory Efficient"
    (arXiv 2502.05172). No constants are offered: fit your own runs.
    """

    a: float
    delta: float
    alpha: float
    gamma: float
    b: float
    omega: float
    beta: float
    zeta: float
    c: float

    def __post_init__(self) -> None:
        _positive(self, "a", "b")

    def constants(self) -> dict[str, float]:
        return _own_constants(self)

    def losses(self, params: ArrayLike, tokens: ArrayLike, experts: ArrayLike) -> Floats:
        n, d = np.log(np.asarray(params, dtype=float)), np.log(np.asarray(tokens, dtype=float))
        x = np.log(np.asarray(experts, dtype=float))
        of_params = np.exp(math.log(self.a) + self.delta * x + (self.alpha + self.gamma * x) * n)
        of_tokens = np.exp(math.log(self.b) + self.omega * x + (self.beta + self.zeta * x) * d)
        return np.asarray(self.c + of_params + of_tokens)

    def at_experts(self, experts: float) -> ParametricLaw:
        """The law of N and D that is left for one number of experts. Raises ConfigError where loss would grow."""
        x = math.log(experts)
        return ParametricLaw(
            E=self.c,
            A=self.a * experts**self.delta,
            B=self.b * experts**self.omega,
            alpha=-(self.alpha + self.gamma * x),
            beta=-(self.beta + self.zeta * x),
        )


def effective_experts(experts: float, *, start: float, maximum: float) -> float:
    """Experts as a joint law counts them: growing from `start` at one expert and saturating at `maximum`.

    1 / X = 1 / (experts - 1 + 1 / (1 / start - 1 / maximum)) + 1 / maximum.
    Source: Clark et al. 2022 (arXiv 2202.01169), as used in arXiv 2502.05172. Raises ConfigError unless
    0 < start < maximum.
    """
    if not 0 < start < maximum or experts < 1:
        raise ConfigError(
            f"effective experts need 0 < start < maximum and experts of at least 1, got start {start:g}, "
            f"maximum {maximum:g}, experts {experts:g}"
        )
    return 1 / (1 / (experts - 1 + 1 / (1 / start - 1 / maximum)) + 1 / maximum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """N* = params_at_anchor (C / anchor_flop)^exponent, and D* = C / (6 N*): advice without a loss."""

    anchor_flop: float
    params_at_anchor: float
    exponent: float

    def __post_init__(self) -> None:
        _positive(self, "anchor_flop", "params_at_anchor", "exponent")

    def constants(self) -> dict[str, float]:
        return _own_constants(self)

    def optimum(self, flop: float) -> Optimum:
        params = self.params_at_anchor * (flop / self.anchor_flop) ** self.exponent
        return Optimum(flop=flop, params=params, tokens=flop / FLOP_PER_PARAM_TOKEN / params, loss=None)
