"""Scaling laws others have published, by name, with their sources and unrounded where that is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from octavo.errors import ConfigError
from octavo.planner.laws import FLOP_PER_PARAM_TOKEN, Allocation, KaplanLaw, Optimum, ParametricLaw, PowerLaw
from octavo.planner.spans import Range, extrapolation_warnings

PF_DAY_FLOP = 1e15 * 86400
"""Compute is in PF-days in Kaplan et al. 2020."""

GOPHER_FLOP = 5.76e23
"""The budget at which published laws are compared. Hoffmann et al. 2022 (arXiv 2203.15556) table 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A law with its source.

    remark    what a user must know before following it
    spans     how far the runs reached that it was fitted to, where that is known
    is_sound  False for constants that are kept only to show what rounding does
    """

    name: str
    law: ParametricLaw | Allocation
    source: str
    remark: str = ""
    spans: Mapping[str, Range] | None = None
    is_sound: bool = True

    def optimum(self, flop: float) -> Optimum:
        """The split of a budget that the law advises."""
        return self.law.optimum(flop)


def _between(low_params: float, low_flop: float, high_params: float, high_flop: float) -> float:
    """Exponent of N* ~ C^a through two rows of a table."""
    return math.log(high_params / low_params) / math.log(high_flop / low_flop)


CHINCHILLA_SPANS = {
    "params": Range(low=57.3e6, high=16.2e9),
    "tokens": Range(low=0.819e9, high=318e9),
    "flop": Range(low=1.40e18, high=1.30e22),
}
"""Of the 240 points that remain of figure 4 of Hoffmann et al. 2022 (epoch-research/analyzing-chinchilla)."""

_ADVICE = (
    Published(
        name="kaplan",
        law=Allocation(anchor_flop=PF_DAY_FLOP, params_at_anchor=1.3e9, exponent=0.73),
        source="Kaplan et al. 2020 (arXiv 2001.08361) table 6",
        remark="N without embeddings, runs not decayed to their end: too large a model by later work",
    ),
    Published(
        name="chinchilla-1",
        law=Allocation(
            anchor_flop=GOPHER_FLOP,
            params_at_anchor=67e9,
            exponent=_between(400e6, 1.92e19, 10e12, 1.30e28),
        ),
        source="Hoffmann et al. 2022 (arXiv 2203.15556) table 3, envelope of training curves",
    ),
    Published(
        name="chinchilla-2",
        law=Allocation(
            anchor_flop=6.88e23,
            params_at_anchor=67e9,
            exponent=_between(400e6, 1.84e19, 10e12, 1.75e28),
        ),
        source="Hoffmann et al. 2022 (arXiv 2203.15556) table A3, IsoFLOP parabolas",
    ),
    Published(
        name="chinchilla",
        law=ParametricLaw(
            E=math.exp(0.5267228),
            A=math.exp(6.0073404),
            B=math.exp(6.0179186),
            alpha=0.33917084,
            beta=0.2849083,
        ),
        spans=CHINCHILLA_SPANS,
        source="Hoffmann et al. 2022 (arXiv 2203.15556) approach 3, unrounded in the paper's TeX source",
        remark="does not minimise its own objective: the optimiser stopped early (arXiv 2404.10102)",
    ),
    Published(
        name="deepseek",
        law=Allocation(anchor_flop=1.0, params_at_anchor=0.1715 / FLOP_PER_PARAM_TOKEN, exponent=0.5243),
        source="DeepSeek LLM 2024 (arXiv 2401.02954) eq. 4, IsoFLOP profiles on better data",
        remark="N here is their FLOPs per token without embeddings over 6, so attention counts as parameters",
    ),
    Published(
        name="epoch",
        law=ParametricLaw(E=1.8169, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),
        spans=CHINCHILLA_SPANS,
        source="Besiroglu et al. 2024 (arXiv 2404.10102), refit of 240 points of approach 3, as printed",
    ),
    Published(
        name="corrected",
        law=ParametricLaw(
            E=1.8172180835947889,
            A=477.8257528374733,
            B=2143.417481643301,
            alpha=0.34731048477188103,
            beta=0.36717243522652604,
        ),
        spans=CHINCHILLA_SPANS,
        source="`octavo fit --drop-outliers 5` on the 245 points of epoch-research/analyzing-chinchilla",
        remark="the exact minimum of the objective of approach 3",
    ),
    Published(
        name="chinchilla-rounded",
        law=ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
        spans=CHINCHILLA_SPANS,
        source="Hoffmann et al. 2022 (arXiv 2203.15556) appendix D.2, as printed",
        remark="two digits only",
        is_sound=False,
    ),
    Published(
        name="chinchilla-0.29",
        law=ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.29),
        spans=CHINCHILLA_SPANS,
        source="the same, as lecture notes give it: 0.2849 rounded up",
        remark="a wrong rounding",
        is_sound=False,
    ),
)

PUBLISHED = {one.name: one for one in _ADVICE}
"""Laws that split a budget, by name."""

DEFAULT = "corrected"

KAPLAN_PARAMS = PowerLaw(scale=8.8e13, exponent=0.076)
"""L(N) in parameters without embeddings. Kaplan et al. 2020 (arXiv 2001.08361) table 5."""

KAPLAN_TOKENS = PowerLaw(scale=5.4e13, exponent=0.095)
"""L(D). Kaplan et al. 2020 table 5."""

KAPLAN_COMPUTE = PowerLaw(scale=3.1e8 * PF_DAY_FLOP, exponent=0.050)
"""L(C) of compute-efficient training, C in FLOPs. Kaplan et al. 2020 table 5."""

KAPLAN_JOINT = KaplanLaw(Nc=6.4e13, Dc=1.8e13, alpha_n=0.076, alpha_d=0.103)
"""L(N, D). Kaplan et al. 2020 table 2; its pair for D is not that of `KAPLAN_TOKENS`."""


def beyond(name: str, *, params: float, tokens: float, flop: float) -> list[str]:
    """How far a model leaves the runs a published law was fitted to; nothing where they are not known."""
    known = published(name).spans
    if known is None:
        return []
    what = f"the runs of {name}"
    return extrapolation_warnings(known, params=params, tokens=tokens, flop=flop, what=what)


def published(name: str) -> Published:
    """Raises ConfigError that lists the names there are."""
    if name not in PUBLISHED:
        raise ConfigError(f"unknown law {name!r}; published laws: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


@dataclass(frozen=True, slots=True)
class Rates:
    """What to train with at first: batch in tokens, peak learning rate of AdamW."""

    batch_tokens: float
    learning_rate: float


def rates(flop: float) -> Rates:
    """Near-best batch and learning rate of a budget, for models and data like those they were fitted on.

    Source: DeepSeek LLM 2024 (arXiv 2401.02954) eq. 1, fitted between 1e17 and 2e19 FLOPs.
    """
    return Rates(batch_tokens=0.2920 * flop**0.3271, learning_rate=0.3118 * flop**-0.1250)
