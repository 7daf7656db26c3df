"""Log-probabilities as they are reported: of the raw logits, before bias, penalties and temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from octavo.kernels.sampling import TORCH, Sampling
from octavo.kernels.sampling.reference import problem_of


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


def prompt_logprobs(
    logits: Tensor, next_tokens: Sequence[int], num_top: int, sampling: Sampling = TORCH
) -> list[Choice]:
    """How likely each next token of a prompt was.

    logits       [N, V] float32, row i after the prompt's token i
    next_tokens  N token ids, the prompt's tokens i + 1
    Raises BadLogits.
    """
    if logits.shape[0] != len(next_tokens):
        raise ValueError(f"prompt_logprobs: {logits.shape[0]} rows of logits for {len(next_tokens)} tokens")
    asked = [(row, token, num_top) for row, token in enumerate(next_tokens)]
    choices = []
    for (row, token, _), found in zip(asked, sampling.describe(logits, asked), strict=True):
        if found.problem:
            raise bad_logits(logits[row], found.problem)
        choices.append(Choice(token, found.logprob, found.rank, found.top))
    return choices


def check_row(row: Tensor) -> None:
    """Raises BadLogits unless the row [V] has a finite maximum and no NaN."""
    problem = problem_of(row)
    if problem:
        raise bad_logits(row, problem)


def bad_logits(row: Tensor, problem: int) -> BadLogits:
    """What to say of a row with a problem: an index of `octavo.kernels.sampling.PROBLEMS`."""
    if problem == 1:
        return BadLogits(f"{int(row.isnan().count_nonzero())} of {row.numel()} logits are NaN")
    return BadLogits("a logit is +inf" if problem == 2 else "every logit is -inf")
