"""Log-probabilities as they are reported: of the raw logits, before bias, penalties and temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from octavo.decode.truncate import highest


class BadLogits(ValueError):
    """A row of logits from which nothing can be drawn: NaN, +inf, or nothing but -inf."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One token and how likely the model held it.

    logprob  natural logarithm of its probability, from the raw logits
    rank     its place among all tokens by (logprob, lower id first), from 1
    top      the likeliest tokens as (token, logprob), likeliest first, equal ones by lower id
    """

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


def describe(row: Tensor, token: int, num_top: int) -> Choice:
    """What is reported of `token`, given its row [V] of raw float32 logits and nothing else."""
    logprobs = row.log_softmax(-1)
    own = logprobs[token]
    rank = 1 + int((logprobs > own).count_nonzero()) + int((logprobs[:token] == own).count_nonzero())
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        ids, values = highest(logprobs, min(num_top, logprobs.numel()))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Choice(token, float(own), rank, top)


def prompt_logprobs(logits: Tensor, next_tokens: Sequence[int], num_top: int) -> list[Choice]:
    """How likely each next token of a prompt was.

    logits       [N, V] float32, row i after the prompt's token i
    next_tokens  N token ids, the prompt's tokens i + 1
    Raises BadLogits.
    """
    if logits.shape[0] != len(next_tokens):
        raise ValueError(f"prompt_logprobs: {logits.shape[0]} rows of logits for {len(next_tokens)} tokens")
    choices = []
    for row, token in zip(logits, next_tokens, strict=True):
        check_row(row)
        choices.append(describe(row, token, num_top))
    return choices


def check_row(row: Tensor) -> None:
    """Raises BadLogits unless the row [V] has a finite maximum and no NaN."""
    top = float(row.amax(-1))  # NaN when any entry is
    if math.isnan(top):
        raise BadLogits(f"{int(row.isnan().count_nonzero())} of {row.numel()} logits are NaN")
    if top == float("inf"):
        raise BadLogits("a logit is +inf")
    if top == float("-inf"):
        raise BadLogits("every logit is -inf")
