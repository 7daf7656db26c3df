"""Putting an answer together from the frames of its choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from octavo.api.common import PromptLogprob, Usage
from octavo.api.faults import HttpError
from octavo.codec.tokenizer import Tokenizer
from octavo.link import frames
from octavo.server.logprobs import token_text
from octavo.server.reply import Listening, Reply
from octavo.server.running import Running

PromptLogprobs = Sequence[frames.TokenLogprob | None]


@dataclass(slots=True)
class Choice:
    """One choice, complete. `reply` is its text, sorted, where it may be more than content."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[frames.TokenLogprob] = field(default_factory=list)
    finish_reason: str = "error"
    stop_reason: str | int | None = None
    reply: Reply | None = None


@dataclass(slots=True)
class Answer:
    """All choices of one prompt, in order."""

    choices: dict[int, Choice] = field(default_factory=dict)
    cached_tokens: int = 0
    prompt_logprobs: PromptLogprobs | None = None
    embedding: bytes | None = None


async def collect(running: Running, listening: Listening | None = None) -> list[Answer]:
    """The whole answers, one per prompt. Raises what ends the request early, or Gone.

    listening  how texts are to be read, where they may be more than content
    """
    answers = [Answer() for _ in running.submits]
    unfinished = len(answers)
    while unfinished:
        update = await running.next()
        assert update is not None
        answer = answers[running.place(update)]
        if isinstance(update, frames.Ended):
            check_ended(update)
            unfinished -= 1
            answer.cached_tokens = update.usage.cached_prompt_tokens
            answer.prompt_logprobs = update.prompt_logprobs
            answer.embedding = update.embedding
            continue
        choice = answer.choices.get(update.index)
        if choice is None:
            choice = answer.choices[update.index] = Choice(reply=listening.reply() if listening else None)
        if isinstance(update, frames.ChoiceEnded):
            check_choice(update)
            choice.finish_reason, choice.stop_reason = update.finish_reason, update.stop_reason
            if choice.reply is not None:
                choice.reply.close()
        else:
            if choice.reply is not None:
                choice.reply.push(update.text, update.token_ids)
            choice.text += update.text
            choice.token_ids.extend(update.token_ids)
            choice.logprobs.extend(update.logprobs or ())
    return answers


def check_choice(ended: frames.ChoiceEnded) -> None:
    """Raises HttpError for a choice that did not end by itself."""
    if ended.finish_reason not in ("stop", "length"):
        raise HttpError("engine_error", ended.error or f"the answer ended early: {ended.finish_reason}")


def check_ended(ended: frames.Ended) -> None:
    """Raises HttpError when the request as a whole has failed."""
    if ended.error is not None:
        raise HttpError("engine_error", ended.error)


def usage_of(running: Running, answers: Sequence[Answer]) -> Usage:
    """Each prompt counts once, each returned choice counts its tokens."""
    choices = [choice for answer in answers for choice in answer.choices.values()]
    replies = [choice.reply for choice in choices if choice.reply is not None]
    return Usage.of(
        running.num_prompt_tokens,
        sum(len(choice.token_ids) for choice in choices),
        sum(answer.cached_tokens for answer in answers),
        sum(reply.num_reasoning_tokens for reply in replies) if replies else None,
    )


class RunningUsage:
    """Usage of a stream while it grows."""

    def __init__(self, running: Running) -> None:
        self.reasoning_tokens: int | None = None
        self._prompt_tokens = running.num_prompt_tokens
        self._completion_tokens = 0
        self._cached_tokens = 0

    def add(self, update: frames.Delta | frames.Ended) -> None:
        """Count an update in."""
        if isinstance(update, frames.Delta):
            self._completion_tokens += len(update.token_ids)
        else:
            self._cached_tokens += update.usage.cached_prompt_tokens

    def now(self) -> Usage:
        return Usage.of(
            self._prompt_tokens, self._completion_tokens, self._cached_tokens, self.reasoning_tokens
        )


def wire_prompt_logprobs(
    entries: PromptLogprobs, tokenizer: Tokenizer
) -> list[dict[str, PromptLogprob] | None]:
    """Per prompt token: token ids (the prompt's own first) to log-probabilities; None for the first token."""
    wire: list[dict[str, PromptLogprob] | None] = []
    for entry in entries:
        if entry is None:
            wire.append(None)
            continue
        pairs = [(entry.token_id, entry.logprob), *entry.top]
        wire.append(
            {
                str(token): PromptLogprob(logprob=logprob, decoded_token=token_text(tokenizer, token))
                for token, logprob in pairs
            }
        )
    return wire
