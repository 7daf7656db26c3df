"""Beginnings of prompts that the operator has declared to belong to everybody, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from octavo.codec.chat import chat_prompt
from octavo.codec.tokenizer import Tokenizer
from octavo.errors import ConfigError
from octavo.server.keyring import PublicPrefix

_AFTER = ("a", " a", "\n", "1", "é", "日")
"""What may follow. Tokens that depend on it are not part of a prefix."""


class PublicPrefixes:
    """Counts the tokens at a prompt's front that are public.

    Raises ConfigError for system messages where the model has no chat template.
    """

    def __init__(
        self, declared: Sequence[PublicPrefix], tokenizer: Tokenizer, chat_problem: str | None
    ) -> None:
        if chat_problem is not None and any(one.system is not None for one in declared):
            raise ConfigError(f"a [[public_prefix]] has a system message, and {chat_problem}")
        self._declared = declared
        self._tokenizer = tokenizer
        self._day: date | None = None
        self._known: list[tuple[int, ...]] = []

    def num_tokens(self, prompt: Sequence[int]) -> int:
        """How many leading tokens of `prompt` belong to everybody. Templates may name the day: asked anew on each."""
        if not self._declared:
            return 0
        now = datetime.now()
        if now.date() != self._day:
            self._known = [self._tokens(one, now) for one in self._declared]
            self._day = now.date()
        return max(num_common(prompt, known) for known in self._known)

    def _tokens(self, declared: PublicPrefix, now: datetime) -> tuple[int, ...]:
        texts = [self._text(declared, after, now) for after in _AFTER]
        first, *others = [self._tokenizer.encode(text, declared.text is not None) for text in texts]
        return tuple(first[: min(num_common(first, other) for other in others)])

    def _text(self, declared: PublicPrefix, after: str, now: datetime) -> str:
        if declared.text is not None:
            return declared.text + after
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": declared.system},
            {"role": "user", "content": after},
        ]
        return chat_prompt(self._tokenizer, messages, True, now=now)


def num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Leading tokens that both have."""
    if tuple(one[: len(other)]) == tuple(other):
        return len(other)
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
