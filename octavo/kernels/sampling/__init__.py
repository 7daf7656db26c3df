"""From rows of logits to tokens, where no noise is needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from octavo.kernels.choose import Impl, Need, fits_all
from octavo.kernels.sampling import reference
from octavo.kernels.triton import lazily, refuses

PROBLEMS = ("", "is NaN", "is +inf", "every logit is -inf")


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


def greedy(logits: Tensor) -> list[Greedy]:
    """The likeliest token of each row.

    logits  [N, V] float32

    A row's answer depends on nothing but that row. Budget of the log-probability: V / 16 + 8 float32 units of the
    sum it is the logarithm of.
    """
    return [Greedy(*row) for row in reference.greedy(logits)]


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
