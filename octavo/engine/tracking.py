"""One request on its way: its choices, their text so far, and what the caller is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from octavo.codec.detokenize import Detokenizer
from octavo.codec.stop import StopMatcher
from octavo.codec.tokenizer import Tokenizer
from octavo.core.sequence import Request, SamplingParams
from octavo.decode.beam import BeamSearch
from octavo.decode.grammar import Compiled
from octavo.decode.logprobs import Choice
from octavo.engine.outputs import (
    ChoiceEnded,
    CompletionOutput,
    Delta,
    Logprob,
    RequestEnded,
    RequestMetrics,
    RequestOutput,
    Update,
)


@dataclass(slots=True)
class Growing:
    """One choice while its tokens arrive. `is_complete` by its grammar: nothing can follow."""

    output: CompletionOutput
    detokenizer: Detokenizer
    stops: StopMatcher
    ended: bool = False
    is_complete: bool = False


@dataclass(slots=True)
class Tracked:
    """A request the engine has accepted and not yet answered in full."""

    request: Request
    prompt_text: str | None
    tokenizer: Tokenizer
    metrics: RequestMetrics
    grammar: Compiled | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    choices: dict[int, Growing] = field(default_factory=dict)
    beams: BeamSearch | None = None
    waiting_beams: dict[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    live_beams: set[int] = field(default_factory=set)
    prompt_logprobs: dict[int, Choice] = field(default_factory=dict)
    num_drawn_tokens: int = 0
    embedding: bytes | None = None

    @property
    def params(self) -> SamplingParams:
        return self.request.params

    @property
    def is_streamed(self) -> bool:
        """Whether tokens may be shown as they come."""
        return not self.params.is_told_at_once

    def choice(self, index: int) -> Growing:
        if index not in self.choices:
            wants = self.params.logprobs is not None
            output = CompletionOutput(index, logprobs=[] if wants else None)
            detokenizer = Detokenizer(
                self.tokenizer,
                self.params.skip_special_tokens,
                continues=self.params.grammar is not None,  # which is about the tokens' bytes as they are
            )
            self.choices[index] = Growing(output, detokenizer, StopMatcher(self.params.stop))
        return self.choices[index]

    def push(
        self, index: int, token: int, choice: Choice | None, *, is_stop: bool, is_complete: bool = False
    ) -> tuple[Delta, str | None]:
        """Add a drawn token; returns what became visible and the stop text that was hit, if any.

        is_stop      the token ends the output by its id, so its own text is left out unless it is asked for
        is_complete  the grammar lets nothing follow
        """
        growing = self.choice(index)
        growing.is_complete = is_complete
        output = growing.output
        output.token_ids.append(token)
        keeps_stop = self.params.include_stop_str_in_output
        text = "" if is_stop and not keeps_stop else growing.detokenizer.push(token)
        text, hit = growing.stops.push(text, may_hit=len(output.token_ids) >= self.params.min_tokens)
        if hit is not None and keeps_stop:
            text += hit
        output.text += text
        entry = None
        if choice is not None:
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + choice.logprob
            if output.logprobs is not None:
                entry = describe(choice, self.tokenizer)
                output.logprobs.append(entry)
        return Delta(self.request.request_id, index, text, (token,), None if entry is None else (entry,)), hit

    def end(self, index: int, reason: str, stop_reason: str | int | None, error: str | None) -> str:
        """Close a choice; returns the text that was held back until now.

        A stop text hit by the last token that max_tokens allowed is the reason all the same, and so is a grammar
        completed by it. Text held back can itself complete a stop text (its last character was cut); then that is the
        reason.
        """
        growing = self.choice(index)
        growing.ended = True
        output = growing.output
        rest = ""
        if growing.stops.hit is None:
            rest, hit = growing.stops.push(growing.detokenizer.flush())
            if hit is None:
                rest += growing.stops.flush()
            elif self.params.include_stop_str_in_output:
                rest += hit
        if growing.is_complete and reason == "length":
            reason = "stop"
        if growing.stops.hit is not None and reason == "length":
            reason, stop_reason = "stop", growing.stops.hit
        output.text += rest
        output.finish_reason, output.stop_reason, output.error = reason, stop_reason, error
        return rest

    def closed(
        self, index: int, reason: str, stop_token: int | None, error: str | None = None
    ) -> list[Update]:
        """Close a choice as the core has it end; returns what callers are told of it.

        stop_token  the token id that ended it, if one did
        """
        hit = self.choice(index).stops.hit
        is_end = stop_token in self.request.end_token_ids
        rest = self.end(index, reason, hit if hit is not None else None if is_end else stop_token, error)
        if not self.is_streamed:
            return []
        output = self.choice(index).output
        told: list[Update] = [Delta(self.request.request_id, index, rest, ())] if rest else []
        reason = output.finish_reason or reason
        return [*told, ChoiceEnded(self.request.request_id, index, reason, output.stop_reason, output.error)]

    @property
    def has_ended(self) -> bool:
        """Whether every choice has ended. A request that ends before its prompt is done has only the first."""
        if not all(growing.ended for growing in self.choices.values()):
            return False
        if self.beams is not None or len(self.choices) == self.params.num_choices:
            return bool(self.choices)
        return len(self.choices) == 1 and self.choices[0].output.finish_reason in ("cancelled", "error")

    def close_beams(self, reason: str | None, error: str | None) -> None:
        """Turn the search's candidates into choices, best first.

        reason  why the search was cut short, or None when it came to its end
        """
        assert self.beams is not None
        found = self.beams.results(self.params.n)
        for index, beam in enumerate(found):
            growing = self.choice(index)
            tokens = list(beam.tokens)
            growing.output.token_ids = tokens
            growing.output.cumulative_logprob = beam.sum_logprob
            hides_last = beam.has_ended and not self.params.include_stop_str_in_output
            shown = tokens[:-1] if hides_last else tokens
            growing.output.text = self.tokenizer.decode(shown, self.params.skip_special_tokens)
            last = tokens[-1] if beam.has_ended and tokens[-1] not in self.request.end_token_ids else None
            self._close_beam(growing, reason or ("stop" if beam.has_ended else "length"), last, error)
        if not found:
            self._close_beam(self.choice(0), reason or "length", None, error)

    def _close_beam(self, growing: Growing, reason: str, stop: int | None, error: str | None) -> None:
        growing.ended = True
        output = growing.output
        output.finish_reason, output.stop_reason, output.error = reason, stop, error

    def ended(self) -> RequestEnded:
        """The last word on this request."""
        return RequestEnded(
            request_id=self.request.request_id,
            output=self.result(),
            was_streamed=self.is_streamed,
            num_prompt_logprobs=self.params.prompt_logprobs or 0,
            num_drawn_tokens=self.num_drawn_tokens,
        )

    def result(self) -> RequestOutput:
        outputs = [self.choices[index].output for index in sorted(self.choices)]
        if self.params.num_choices > self.params.n and len(outputs) > self.params.n:
            outputs = _best(outputs, self.params.n)
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self.prompt_text,
            prompt_token_ids=list(self.request.prompt),
            outputs=outputs,
            metrics=self.metrics,
            finished=True,
            prompt_logprobs=self._prompt_logprobs(),
            embedding=self.embedding,
        )

    def _prompt_logprobs(self) -> list[dict[int, Logprob] | None] | None:
        if self.params.prompt_logprobs is None:
            return None
        entries: list[dict[int, Logprob] | None] = [None]
        for position in range(1, len(self.request.prompt)):
            choice = self.prompt_logprobs.get(position)
            entries.append(None if choice is None else describe(choice, self.tokenizer))
        return entries


def describe(choice: Choice, tokenizer: Tokenizer) -> dict[int, Logprob]:
    """The chosen token first, then the highest ones, as callers know them."""
    entries = {choice.token: Logprob(choice.logprob, choice.rank, tokenizer.decode([choice.token], False))}
    for rank, (token, logprob) in enumerate(choice.top, start=1):
        entries.setdefault(token, Logprob(logprob, rank, tokenizer.decode([token], False)))
    return entries


def _best(outputs: Iterable[CompletionOutput], n: int) -> list[CompletionOutput]:
    """The n highest by mean log-probability per token, renumbered; ties go to the lower index."""

    def mean(output: CompletionOutput) -> float:
        if output.cumulative_logprob is None or not output.token_ids:
            return float("-inf")
        return output.cumulative_logprob / len(output.token_ids)

    ranked = sorted(outputs, key=lambda output: (-mean(output), output.index))[:n]
    for index, output in enumerate(ranked):
        output.index = index
    return ranked
