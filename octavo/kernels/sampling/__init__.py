"""From rows of logits to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from octavo.kernels.choose import Impl, Need, fits_all
from octavo.kernels.sampling import reference
from octavo.kernels.triton import lazily, refuses

PROBLEMS = ("", "is NaN", "is +inf", "every logit is -inf")
NO_TOKEN = reference.NO_TOKEN


class Greedy(NamedTuple):
    """The likeliest token of a row.

    token    the lowest id among equals
    logprob  natural logarithm of its probability
    problem  0; or an index of PROBLEMS, and then the token means nothing: 1 a logit is NaN, 2 one is +inf,
             3 all are -inf
    """

    token: int
    logprob: float
    problem: int


class Draw(NamedTuple):
    """A token to be drawn: the highest logit / temperature + Gumbel noise of those that top-k, top-p and min-p keep.

    row          index of its row of logits; several may share one
    temperature  above 0
    top_k        keep the k highest; 0, -1 and anything from V on: off
    top_p        of what top-k keeps, the fewest tokens, likeliest first, whose probabilities reach it; the one that
                 crosses it stays. In (0, 1], 1 is off
    min_p        drop what is less likely than this fraction of the likeliest. In [0, 1], 0 is off
    key          of the noise: see `noise.stream_key`
    """

    row: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    key: int


class Described(NamedTuple):
    """What is reported of a token, from raw logits: before bias, penalties and temperature.

    problem  as in `Greedy`; where it is not 0 the rest means nothing
    logprob  natural logarithm of its probability
    rank     its place among all tokens by (logprob, lower id first), from 1
    top      the likeliest tokens as (token, logprob), likeliest first, equal ones by lower id
    """

    problem: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


class Sampling(Protocol):
    """From rows of logits [N, V] float32, one after another in memory, to tokens.

    An answer depends on nothing but its row and what is asked of it.
    """

    def greedy(self, logits: Tensor) -> list[Greedy]:
        """The likeliest token of each row.

        Budget of the log-probability: V / 16 + 8 float32 units of the sum it is the logarithm of.
        """

    def draw(self, logits: Tensor, draws: Sequence[Draw]) -> list[int]:
        """A token for each draw; NO_TOKEN where all logits are -inf, and of a row with NaN it means nothing.

        Of equal scores the lowest id wins. Shares of probability are sums in float64: where two differ by rounding, a
        token at the very edge of top-p may fall on either side, in each implementation always on the same.
        """

    def describe(self, logits: Tensor, asked: Sequence[tuple[int, int, int]]) -> list[Described]:
        """What is reported of (row, token, number of the likeliest to name beside it). Budget: as `greedy`."""


class TorchSampling:
    """Plain torch, on any device."""

    def greedy(self, logits: Tensor) -> list[Greedy]:
        return [Greedy(*row) for row in reference.greedy(logits)]

    def draw(self, logits: Tensor, draws: Sequence[Draw]) -> list[int]:
        return [
            reference.draw(logits[one.row], one.temperature, one.top_k, one.top_p, one.min_p, one.key)
            for one in draws
        ]

    def describe(self, logits: Tensor, asked: Sequence[tuple[int, int, int]]) -> list[Described]:
        return [Described(*reference.describe(logits[row], *rest)) for row, *rest in asked]


TORCH = TorchSampling()


class Likeliest(NamedTuple):
    """Of each row, all [N] on the logits' device.

    tokens      int64, the lowest id among equals; 0 where there is a problem
    tops        float32, its logit; 0 where there is a problem
    log_masses  float32, log of the sum of exp(logit - top): less its negative is the token's log-probability
    problems    int64, 0 or an index of PROBLEMS
    """

    tokens: Tensor
    tops: Tensor
    log_masses: Tensor
    problems: Tensor


def likeliest(logits: Tensor) -> Likeliest:
    """What `greedy` says, and what log-probabilities are reckoned from, without waiting for the device.

    logits  [N, V] float32, V at most 2^31; rows may have gaps between them

    A row's answer depends on nothing but that row. Budget of `log_masses`: V / 16 + 8 float32 units of the sum.
    """
    return Likeliest(*reference.likeliest(logits))


def whole_shares(values: Tensor, tops: Tensor) -> Tensor:
    """exp(value - top) as whole multiples of a unit small enough, and not too small to be added up in 62 bits.

    values  [..., V] float32, none above its `tops` [..., 1]; -inf gives 0

    Returns fresh int64 of values' shape. Sums of them are the same in any order.
    """
    return reference.whole_shares(values, tops)


def ordered(values: Tensor) -> Tensor:
    """float32 without NaN as int64 between -2^31 and 2^31 - 1, greater where the value is greater.

    0.0 comes after -0.0. Returns fresh int64 of the same shape.
    """
    return reference.ordered(values)


def _likeliest(*args: Any) -> Likeliest:
    return Likeliest(*lazily("octavo.kernels.sampling.cuda", "likeliest")(*args))


def _refuses(need: Need) -> str | None:
    """Logits are float32 whatever the model computes in."""
    return refuses(replace(need, dtype=torch.bfloat16))


IMPLS: tuple[Impl, ...] = (
    Impl("likeliest", "triton", _likeliest, _refuses),
    Impl("likeliest", "reference", likeliest, fits_all),
)
