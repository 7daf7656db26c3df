"""What a choice says, sorted: content, reasoning, calls. The chat, messages and responses routes share it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from octavo.codec.parts import CallArguments, CallStart, Content, Part, Reasoning, Splitter
from octavo.codec.tools import Choice, Dialect


@dataclass(frozen=True, slots=True)
class Listening:
    """How the outputs of a request are to be read.

    dialect      of the model
    choice       which calls may come
    is_thinking  the prompt ends in an open <think> mark
    """

    dialect: Dialect
    choice: Choice
    is_thinking: bool

    @property
    def is_plain(self) -> bool:
        """Everything is content, whatever it looks like."""
        return not (self.choice.tools or self.dialect.thinks or self.is_thinking)

    def reply(self) -> Reply:
        markers = self.dialect.markers if self.choice.tools else None
        splitter = Splitter(markers, thinks=self.dialect.thinks, is_thinking=self.is_thinking)
        return Reply(splitter, self.dialect, 1 if not self.choice.is_parallel else None)


@dataclass(slots=True)
class Call:
    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Reply:
    """One choice, growing.

    max_calls             calls after that many are left out; None keeps all
    num_reasoning_tokens  up to and with the mark that ended the reasoning
    """

    splitter: Splitter
    dialect: Dialect
    max_calls: int | None = None
    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    num_reasoning_tokens: int = 0
    _thought: str | None = ""
    _tokens: list[int] = field(default_factory=list)

    def push(self, text: str, token_ids: Sequence[int]) -> list[Part]:
        """What more text makes visible."""
        parts = self._kept(self.splitter.push(text))
        if self._thought is not None:
            self._count(text, token_ids)
        return parts

    def _count(self, text: str, token_ids: Sequence[int]) -> None:
        """Which tokens were reasoning: those whose bytes reach up to its end. Exact however deltas were joined."""
        assert self._thought is not None
        self._thought += text
        self._tokens += token_ids
        end = self.splitter.num_thought
        if end is None:
            self.num_reasoning_tokens = len(self._tokens) if self.splitter.in_reasoning else 0
            return
        left = len(self._thought[:end].encode())
        self.num_reasoning_tokens = 0
        for token in self._tokens:
            if left <= 0:
                break
            left -= self.dialect.num_bytes(token)
            self.num_reasoning_tokens += 1
        self._thought = None
        self._tokens.clear()

    def close(self) -> list[Part]:
        """What was held back until the end."""
        return self._kept(self.splitter.close())

    def parts(self) -> list[Part]:
        """All of it, in the order reasoning, content, calls."""
        found: list[Part] = []
        if self.reasoning:
            found.append(Reasoning(self.reasoning))
        if self.content:
            found.append(Content(self.content))
        for number, call in enumerate(self.calls):
            found += [CallStart(number, call.name), CallArguments(number, call.arguments)]
        return found

    def finish_reason(self, reason: str) -> str:
        """With a call, an output that ended by itself ended for that."""
        return "tool_calls" if self.calls and reason == "stop" else reason

    def _kept(self, parts: list[Part]) -> list[Part]:
        kept: list[Part] = []
        for part in parts:
            match part:
                case Content():
                    self.content += part.text
                case Reasoning():
                    self.reasoning += part.text
                case CallStart() | CallArguments():
                    if self.max_calls is not None and part.number >= self.max_calls:
                        continue
                    if isinstance(part, CallStart):
                        self.calls.append(Call(f"call_{secrets.token_hex(16)}", part.name))
                    else:
                        self.calls[part.number].arguments += part.text
            kept.append(part)
        return kept
