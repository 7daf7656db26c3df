"""Beam search over candidates that somebody else computes.

Follows what `transformers` 5 does in `generate(num_beams=B, do_sample=False)`, so that results compare:

- A beam's sum of log-probabilities is accumulated in float32.
- Each step ranks all candidates of all live beams and keeps (1 + number of end tokens) * B of them, at least
  2 * B, so that B can live on whatever ends. The best B that did not end are the next live beams.
- A candidate that ends counts only when it ranks among the best B of its step. Its score is
  sum / length ** length_penalty; length counts generated tokens, the end token too, the prompt not.
- The B best ended ones are kept. The search is over when B have ended and no live beam can do better, guessed
  from the best live sum at its present length ("never": at the longest length, when the penalty favours long
  ones); with early_stopping as soon as B have ended; at max_new_tokens, where everything ends.

Ties go to the earlier beam and then to the lower token id. Beams never repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from octavo.core.sequence import SamplingParams
from octavo.decode.logprobs import check_row
from octavo.decode.sampler import adjusted
from octavo.errors import Bug
from octavo.kernels.sampling.truncate import highest


@dataclass(frozen=True, slots=True)
class Beam:
    """One sequence found.

    tokens       generated tokens, the end token included
    sum_logprob  of the generated tokens, accumulated in float32
    score        sum_logprob / len(tokens) ** length_penalty
    has_ended    its last token is an end token; otherwise it was cut by max_new_tokens, or lives still
    """

    tokens: tuple[int, ...]
    sum_logprob: float
    score: float
    has_ended: bool


@dataclass(frozen=True, slots=True)
class _Live:
    seq_id: int | None
    tokens: tuple[int, ...]
    sum_logprob: float


def num_candidates(beam_width: int, num_end_ids: int) -> int:
    """How many candidates of each live beam a step needs."""
    return max(2, 1 + num_end_ids) * beam_width


def candidates(
    logits: Tensor,
    count: int,
    params: SamplingParams,
    prompt_tokens: Sequence[int] = (),
    output_tokens: Sequence[int] = (),
    suppressed: frozenset[int] = frozenset(),
    allowed: Tensor | None = None,
) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest next tokens of one beam as (token, log-probability), likeliest first.

    logits  [V] float32; bias, penalties, `suppressed` and `allowed` (see `sampler.Job`) act on the log-probabilities,
            as transformers has it
    Tokens of probability 0 are left out, so there may be fewer. Raises BadLogits.
    """
    check_row(logits)
    row = adjusted(logits.log_softmax(-1), params, prompt_tokens, output_tokens, suppressed, allowed)
    ids, values = highest(row, min(count, row.numel()))
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return tuple((token, logprob) for token, logprob in pairs if logprob > float("-inf"))


class BeamSearch:
    """The search for one prompt; starts with a single live beam without tokens.

    Call `step` with the candidates of every live beam, keyed by sequence id; it answers with the next live
    beams as (parent sequence id, token). Then say with `named` which sequence carries each of them on.
    """

    def __init__(
        self,
        beam_width: int,
        length_penalty: float,
        early_stopping: bool | Literal["never"],
        max_new_tokens: int,
        end_ids: frozenset[int],
    ) -> None:
        self.beam_width = beam_width
        self.length_penalty = length_penalty
        self.early_stopping = early_stopping
        self.max_new_tokens = max_new_tokens
        self.end_ids = end_ids
        self._live = [_Live(None, (), 0.0)]
        self._done: list[Beam] = []
        self._num_steps = 0
        self.is_over = False

    @property
    def num_candidates(self) -> int:
        """How many candidates `step` wants of each live beam; the whole vocabulary when it is smaller."""
        return num_candidates(self.beam_width, len(self.end_ids))

    def step(self, found: Mapping[int, Sequence[tuple[int, float]]]) -> list[tuple[int, int]]:
        """Advance by one token; returns the next live beams, best first, [] when the search is over.

        found  for each live beam its likeliest tokens, as `candidates` gives them
        """
        self._check_names(found)
        self._num_steps += 1
        parents, ranked = self._ranked(found)
        at_limit = self._num_steps >= self.max_new_tokens
        next_live: list[tuple[int, _Live]] = []
        for rank, child in enumerate(ranked):
            if at_limit or child.tokens[-1] in self.end_ids:
                if rank < self.beam_width:
                    self._done.append(self._ended(child))
            elif len(next_live) < self.beam_width:
                next_live.append((parents[rank], child))
        self._done = sorted(self._done, key=lambda beam: -beam.score)[: self.beam_width]
        self._live = [child for _, child in next_live]
        self.is_over = not self._live or self._is_settled()
        if self.is_over:
            return []
        return [(parent, child.tokens[-1]) for parent, child in next_live]

    def named(self, seq_ids: Sequence[int]) -> None:
        """Sequence ids of the live beams, in the order in which `step` returned them."""
        if self.is_over and not seq_ids:
            return
        if len(seq_ids) != len(self._live) or len(set(seq_ids)) != len(seq_ids):
            raise Bug(f"{len(self._live)} live beams were given the sequence ids {list(seq_ids)}")
        pairs = zip(self._live, seq_ids, strict=True)
        self._live = [_Live(seq_id, beam.tokens, beam.sum_logprob) for beam, seq_id in pairs]

    def results(self, n: int) -> list[Beam]:
        """The n best ended beams, best score first; before the search is over, filled up with live ones."""
        found = list(self._done)
        if not self.is_over:
            found += [self._ended(beam) for beam in self._live if beam.tokens]
        return found[:n]

    def _check_names(self, found: Mapping[int, Sequence[tuple[int, float]]]) -> None:
        if self.is_over:
            raise Bug("a beam search that is over was stepped again")
        if self._num_steps == 0 and len(found) == 1:
            self.named(list(found))
        names = [beam.seq_id for beam in self._live]
        if set(names) != set(found):
            raise Bug(f"live beams are the sequences {names}, candidates came for {sorted(found)}")

    def _ranked(self, found: Mapping[int, Sequence[tuple[int, float]]]) -> tuple[list[int], list[_Live]]:
        """The best candidates of all beams, best first, and their parents' sequence ids."""
        flat = [
            (beam, beam.seq_id, token, logprob)
            for beam in self._live
            if beam.seq_id is not None
            for token, logprob in sorted(found[beam.seq_id])
        ]
        own = torch.tensor([logprob for *_, logprob in flat], dtype=torch.float32)
        before = torch.tensor([beam.sum_logprob for beam, *_ in flat], dtype=torch.float32)
        sums = (own + before).tolist()
        order = sorted(range(len(flat)), key=lambda i: -sums[i])[: self.num_candidates]
        children = [_Live(None, (*flat[i][0].tokens, flat[i][2]), sums[i]) for i in order]
        return [flat[i][1] for i in order], children

    def _ended(self, beam: _Live) -> Beam:
        score = self._score(beam.sum_logprob, len(beam.tokens))
        return Beam(beam.tokens, beam.sum_logprob, score, beam.tokens[-1] in self.end_ids)

    def _score(self, sum_logprob: float, length: int) -> float:
        """float32 throughout, so that comparisons fall as they do on tensors."""
        return float(torch.tensor(sum_logprob, dtype=torch.float32) / (length**self.length_penalty))

    def _is_settled(self) -> bool:
        """Whether B have ended and, as far as is looked for, no live beam can beat the worst of them."""
        if len(self._done) < self.beam_width:
            return False
        if self.early_stopping is True:
            return True
        longest = self.early_stopping == "never" and self.length_penalty > 0.0
        length = self.max_new_tokens if longest else self._num_steps
        return self._score(self._live[0].sum_logprob, length) <= self._done[-1].score
