"""How long prompts and outputs are, and how far apart arrivals: distributions that draw from a given generator."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from octavo.errors import ConfigError
from octavo.units import parse_count


class Lengths(Protocol):
    """A distribution over token counts of at least 1."""

    @property
    def mean(self) -> float: ...

    def draw(self, rng: random.Random) -> int: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always `tokens`."""

    tokens: int

    def __post_init__(self) -> None:
        _at_least_one("length", self.tokens)

    @property
    def mean(self) -> float:
        return float(self.tokens)

    def draw(self, rng: random.Random) -> int:  # noqa: ARG002
        return self.tokens


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every count from `low` to `high` alike, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _at_least_one("length", self.low)
        if self.high < self.low:
            raise ConfigError(
                f"lengths from {self.low} to {self.high}: the second must not be below the first"
            )

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Log-normal with this mean and coefficient of variation, rounded, at least 1 and at most `most`."""

    mean: float
    cv: float
    most: int = 2**31 - 1

    def __post_init__(self) -> None:
        if not 1 <= self.mean < math.inf or not 0 < self.cv < math.inf:
            raise ConfigError(
                f"a lognormal length needs a mean of at least 1 and a variation above 0, got {self.mean} and {self.cv}"
            )
        _at_least_one("length", self.most)

    def draw(self, rng: random.Random) -> int:
        variance = math.log1p(self.cv * self.cv)
        value = rng.lognormvariate(math.log(self.mean) - variance / 2, math.sqrt(variance))
        return min(max(round(value), 1), self.most)


@dataclass(frozen=True, slots=True)
class Empirical:
    """One of the given counts, each as likely as the others."""

    counts: Sequence[int]

    def __post_init__(self) -> None:
        if not self.counts:
            raise ConfigError("lengths are to be drawn from a list, and it is empty")
        for count in self.counts:
            _at_least_one("length", count)

    @property
    def mean(self) -> float:
        return sum(self.counts) / len(self.counts)

    def draw(self, rng: random.Random) -> int:
        return rng.choice(self.counts)


def parse_lengths(text: str) -> Lengths:
    """`512`, `100-1000` (uniform), `lognormal:512:1.2` (mean, variation), with a third number at most that many.

    Raises ConfigError.
    """
    kind, _, rest = text.partition(":")
    if kind == "lognormal":
        try:
            mean, cv, *most = rest.split(":")
            return Lognormal(float(mean), float(cv), *(parse_count(one) for one in most))
        except (TypeError, ValueError):
            raise ConfigError(
                f"length {text!r}: write lognormal:MEAN:VARIATION[:MOST], such as lognormal:512:1.2:8000"
            ) from None
    low, dash, high = text.partition("-")
    if dash:
        return Uniform(parse_count(low), parse_count(high))
    return Fixed(parse_count(text))


class Gaps(Protocol):
    """Seconds between arrivals."""

    @property
    def rate_per_s(self) -> float: ...

    def draw_s(self, rng: random.Random) -> float: ...


@dataclass(frozen=True, slots=True)
class Constant:
    """One arrival each `1 / rate_per_s` seconds."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _positive("rate", self.rate_per_s)

    def draw_s(self, rng: random.Random) -> float:  # noqa: ARG002
        return 1.0 / self.rate_per_s


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals: exponential gaps."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _positive("rate", self.rate_per_s)

    def draw_s(self, rng: random.Random) -> float:
        return rng.expovariate(self.rate_per_s)


@dataclass(frozen=True, slots=True)
class Gamma:
    """Bursts: gamma-distributed gaps with coefficient of variation `cv`; 1 is Poisson, more is burstier."""

    rate_per_s: float
    cv: float

    def __post_init__(self) -> None:
        _positive("rate", self.rate_per_s)
        _positive("variation of the gaps", self.cv)

    def draw_s(self, rng: random.Random) -> float:
        shape = 1.0 / (self.cv * self.cv)
        return rng.gammavariate(shape, 1.0 / (shape * self.rate_per_s))


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} must be above 0, got {value!r}")


def _at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"a {name} must be a whole number of at least 1, got {value!r}")
