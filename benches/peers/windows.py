"""S1: what servers are sent in a window of time, and what is made of their answers."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.cli import load
from octavo.cli.load import Ask, Outcome, Slo
from octavo.errors import ConfigError

RATES = (0.5, 0.8, 1.0, 1.2)
FIGURE = "good_share"
REFUSED = "overloaded"
WARMUP_OUTPUT = 8
Figures = dict[str, float]


class Unserved(Exception):
    """A server that does not do what it is asked, and why."""


@dataclass(frozen=True, slots=True)
class Window:
    """Requests for a while, at a part of capacity."""

    rate: float

    @property
    def id(self) -> str:
        return f"S1 at {self.rate:g}"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all servers of a session are asked.

    lengths   (prompt, output) tokens that requests are drawn from
    window_s  arrivals come for so long
    seats     requests that a server computes at once
    slo       what makes an answer a good one
    """

    lengths: Sequence[tuple[int, int]]
    vocab_size: int
    window_s: float
    seats: int
    slo: Slo

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be asked."""
        if not self.window_s > 0 or self.window_s == math.inf:
            raise ConfigError(f"--window-s must be above 0 and finite, got {self.window_s:g}")
        if self.seats < 1:
            raise ConfigError(f"--seats must be at least 1, got {self.seats}")
        if not self.slo.ttft_s > 0 or not self.slo.tpot_s > 0:
            limits = f"{self.slo.ttft_s:g} and {self.slo.tpot_s:g}"
            raise ConfigError(f"--slo-ttft-s and --slo-tpot-s must be above 0, got {limits}")

    @property
    def longest(self) -> tuple[int, int]:
        """Of the prompts and of the outputs."""
        return max(prompt for prompt, _ in self.lengths), max(output for _, output in self.lengths)

    def count(self, window: Window, capacity_per_s: float) -> int:
        return max(round(self.window_s * window.rate * capacity_per_s), 1)

    def asks(
        self, window: Window, capacity_per_s: float, number: int, more: Mapping[str, Any] | None = None
    ) -> list[Ask]:
        """The requests of a window in round `number`. Equal numbers give equal requests to every server."""
        rng = random.Random(f"{window.id} {number}")
        times = arrivals(rng, self.count(window, capacity_per_s), self.window_s)
        return self._drawn(rng, times, more or {})

    def crowd(self, seed: str, count: int, more: Mapping[str, Any]) -> list[Ask]:
        """Requests without times, for a closed loop."""
        return self._drawn(random.Random(f"S1 {seed}"), [0.0] * count, more)

    def warmup(self, more: Mapping[str, Any]) -> list[Ask]:
        """One for each seat, with short answers."""
        asks = self.crowd("warmup", self.seats, more)
        return [Ask(0.0, one.prompt, min(one.num_output_tokens, WARMUP_OUTPUT), None, more) for one in asks]

    def _drawn(self, rng: random.Random, times: Sequence[float], more: Mapping[str, Any]) -> list[Ask]:
        asks = []
        for at_s in times:
            prompt, output = rng.choice(self.lengths)
            asks.append(
                Ask(at_s, [rng.randrange(self.vocab_size) for _ in range(prompt)], output, None, more)
            )
        return asks


def windows(words: str) -> list[Window]:
    """From rates with commas between. Raises ConfigError for what is no rate."""
    try:
        rates = [float(word) for word in words.split(",")]
    except ValueError:
        raise ConfigError(
            f"--rates must be numbers with commas between, such as 0.5,1, got {words!r}"
        ) from None
    if not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
        raise ConfigError(f"--rates must be finite, above 0 and each another one, got {words!r}")
    return [Window(rate) for rate in rates]


def arrivals(rng: random.Random, count: int, window_s: float) -> list[float]:
    """Times of `count` arrivals of a Poisson process in a window.

    Their number given, they are as uniform draws in order (Ross, Stochastic Processes, section 2.3), which are sums
    of exponential gaps over the sum of one gap more: every window offers the very rate that it is named after.
    """
    *times, end = load.poisson(rng, count + 1, 1.0)
    return [window_s * at_s / end for at_s in times]


def capacity(outcomes: Sequence[Outcome]) -> float:
    """Requests per second of a closed loop. Raises Unserved when it was not answered rightly."""
    refuse(outcomes, allowed=())
    return load.summary(outcomes, Slo()).goodput_per_s


def refuse(outcomes: Sequence[Outcome], allowed: Sequence[str] = (REFUSED,)) -> None:
    """Raises Unserved where requests ended with errors but those allowed, or with another number of tokens."""
    codes = sorted({one.code for one in outcomes if one.code is not None} - set(allowed))
    if codes:
        failed = sum(one.code in codes for one in outcomes)
        raise Unserved(f"{failed} of {len(outcomes)} requests ended with {', '.join(codes)}")
    answered = [one for one in outcomes if one.code is None]
    for one in answered:
        if one.num_tokens != one.ask.num_output_tokens:
            raise Unserved(f"{one.num_tokens} tokens came, {one.ask.num_output_tokens} were asked for")
        if one.first_s is None:
            raise Unserved(f"an answer of {one.num_tokens} tokens showed none of them")
    if not answered:
        raise Unserved(f"none of {len(outcomes)} requests was answered")


def figures(outcomes: Sequence[Outcome], terms: Terms) -> Figures:
    """Of one window: times are those of answers that came, shares are of all requests sent.

    goodput_per_s  good answers to the requests of the window, per second of the window
    drained_s      from the window's start to the end of the last answer
    """
    found, count = load.summary(outcomes, terms.slo), len(outcomes)
    times = {
        f"{name}_{part}_s": found.percentiles_s[name][part]
        for name in ("ttft", "tpot")
        for part in ("p50", "p99")
    }
    return {
        FIGURE: found.num_good / count,
        "goodput_per_s": found.num_good / terms.window_s,
        "offered_per_s": count / terms.window_s,
        **times,
        "refused_share": sum(found.codes.values()) / count,
        "drained_s": max(one.last_s for one in outcomes),
    }
