"""What an executor is: something that carries out steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from octavo.core.sequence import SamplingParams
from octavo.core.step import Step, StepResult
from octavo.decode.grammar import Compiled


@dataclass(frozen=True, slots=True)
class Start:
    """A sequence, or a new epoch of one, as a worker first hears of it.

    tokens         all tokens known when the step was planned: prompt, then output so far
    num_prompt     how many of them are the prompt
    index          which of the request's parallel choices this is; keys its random numbers
    seed           keys its random numbers
    end_token_ids  the model's end tokens, forbidden until `params.min_tokens` unless ignored anyway
    grammar        `params.grammar`, compiled
    bad_words      `params.bad_words` as token ids, each at least one
    """

    seq_id: int
    epoch: int
    tokens: tuple[int, ...]
    num_prompt: int
    params: SamplingParams
    index: int
    seed: int
    end_token_ids: frozenset[int]
    grammar: Compiled | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()


class Launched(Protocol):
    """A step that has been ordered."""

    def result(self) -> StepResult:
        """Waits until it has been carried out; the same answer every time."""


class Executor(Protocol):
    """Carries steps out, one at a time, in order.

    `run` first forgets `ended`, adds `appended` tokens (seq_id, token) that were chosen outside (beam search),
    and learns `starts`; then computes. It keeps the state of sequences between steps, so that a step holds
    differences only. It never raises for what one sequence did: that becomes `Output.error`.
    """

    def run(
        self,
        step: Step,
        starts: Sequence[Start] = (),
        appended: Sequence[tuple[int, int]] = (),
        ended: Sequence[int] = (),
    ) -> StepResult: ...


@runtime_checkable
class LaunchingExecutor(Executor, Protocol):
    """One whose computing goes on by itself: a step can be ordered while the one before is still running.

    `launch` takes what `run` takes and returns as soon as the work has been ordered. Results are asked for in
    order, each before the next step but one is launched: two steps are under way at most. A step's tokens need not have
    been read for the next step, which was planned without them, to be launched.
    """

    def launch(
        self,
        step: Step,
        starts: Sequence[Start] = (),
        appended: Sequence[tuple[int, int]] = (),
        ended: Sequence[int] = (),
    ) -> Launched: ...
