"""From rows of logits to tokens, where no noise is needed."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from octavo.kernels.choose import Impl, fits_all
from octavo.kernels.sampling import reference

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


IMPLS: tuple[Impl, ...] = (Impl("greedy", "reference", greedy, fits_all),)
