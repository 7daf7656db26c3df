"""A model's text as what it means: content, reasoning, and calls of tools, piece by piece as it comes.

    [<think> reasoning </think>] content [<tool_call> {"name": ..., "arguments": {...}} </tool_call> ...] content

Nothing is ever lost: what looks like a call and is none comes out as content. What was told does not depend on how
the text was cut into pieces, except in how many pieces it comes out.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

THINK, THOUGHT = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Markers:
    """How a family of models writes calls.

    opening    what a call, or a list of them, begins with; "" where the whole output is calls or is not
    closing    what ends it; "" where nothing does
    arguments  the key the arguments stand under
    """

    name: str
    opening: str
    closing: str
    arguments: str


HERMES = Markers("hermes", "<tool_call>", "</tool_call>", "arguments")
MISTRAL = Markers("mistral", "[TOOL_CALLS]", "", "arguments")
LLAMA = Markers("llama3_json", "", "", "parameters")
FORMATS = {markers.name: markers for markers in (HERMES, MISTRAL, LLAMA)}
PYTHON_TAG = "<|python_tag|>"
"""What Llama 3 may put before a call."""


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """Call `number` of the output, from 0."""

    number: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of a call's arguments."""

    number: int
    text: str


Part = Content | Reasoning | CallStart | CallArguments

_STRING = r'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(
    rf'\{{\s*"name"\s*:\s*({_STRING})\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=[{{])', re.DOTALL
)
_SEPARATORS = " \t\r\n,;"


class Splitter:
    """One output on its way.

    markers      how calls are written, None where none are looked for
    thinks       whether the model may begin with reasoning in <think> marks
    is_thinking  the prompt has opened the mark already
    num_calls    calls begun so far
    in_reasoning whether what comes next is reasoning, as far as can be told
    num_thought  characters up to the end of the mark that ended it; None before that
    """

    def __init__(self, markers: Markers | None, *, thinks: bool = False, is_thinking: bool = False) -> None:
        self._markers = markers
        self._held = ""
        self._state = self._thinking if is_thinking else self._opening if thinks else self._beginning
        self._parts: list[Part] = []
        self._scan: _Scan | None = None
        self._is_after_call = False  # and nothing has been said since
        self._is_empty = True  # no call has come since the last opening mark
        self._has_reasoned = False
        self.in_reasoning = is_thinking
        self.num_thought: int | None = None
        self._num_pushed = 0
        self.num_calls = 0

    def push(self, text: str) -> list[Part]:
        """The parts that more text completes."""
        self._held += text
        self._num_pushed += len(text)
        return self._run(is_last=False)

    def close(self) -> list[Part]:
        """The output is over: what was held back."""
        return self._run(is_last=True)

    def _run(self, *, is_last: bool) -> list[Part]:
        self._parts = []
        while self._state(is_last):
            pass
        return _joined(self._parts)

    # Each state takes what it can from the text held and says whether another one should go on.

    def _opening(self, is_last: bool) -> bool:
        """Before the first character that counts: does it think?"""
        text = self._held.lstrip()
        if text.startswith(THINK):
            self._held = text.removeprefix(THINK)
            self._state = self._thinking
            self.in_reasoning = True
            return True
        if THINK.startswith(text) and not is_last:
            return False
        self._state = self._beginning
        return True

    def _thinking(self, is_last: bool) -> bool:
        found = self._held.find(THOUGHT)
        if found >= 0:
            self._reason(self._held[:found].rstrip())
            self._held = self._held[found + len(THOUGHT) :]
            self._state = self._after_thought
            self.in_reasoning = False
            self.num_thought = self._num_pushed - len(self._held)
            return True
        keep = 0 if is_last else _partial(self._held, THOUGHT)
        text = self._held[: len(self._held) - keep]
        solid = text if is_last else text.rstrip()
        self._reason(solid)
        self._held = self._held[len(solid) :]
        return False

    def _reason(self, text: str) -> None:
        if not self._parts and text and not self._has_reasoned:
            text = text.lstrip("\n")
        if text:
            self._has_reasoned = True
            self._parts.append(Reasoning(text))

    def _after_thought(self, is_last: bool) -> bool:
        """Line ends between reasoning and content belong to neither."""
        self._held = self._held.lstrip()
        if not self._held and not is_last:
            return False
        self._state = self._beginning
        return True

    def _beginning(self, is_last: bool) -> bool:
        """Is all of it a call? Only asked where calls have no mark of their own."""
        if self._markers is None or self._markers.opening:
            self._state = self._content
            return True
        text = self._held.lstrip()
        if text.startswith(("{", PYTHON_TAG)):
            self._held = text.removeprefix(PYTHON_TAG)
            self._state, self._is_empty = self._calls, True
            return True
        if PYTHON_TAG.startswith(text) and not is_last:
            return False
        self._state = self._content
        return True

    def _content(self, is_last: bool) -> bool:
        """Blanks before a call, and between and after calls, belong to nothing."""
        opening = self._markers.opening if self._markers is not None else ""
        if self._is_after_call:
            self._held = self._held.lstrip()
        found = self._held.find(opening) if opening else -1
        if found >= 0:
            self._say(self._held[:found].rstrip())
            self._held = self._held[found + len(opening) :]
            self._state, self._is_empty = self._calls, True
            return True
        text = self._held
        if opening and not is_last:
            text = text[: len(text) - _partial(text, opening)].rstrip()
        self._say(text)
        self._held = self._held[len(text) :]
        return False

    def _say(self, text: str) -> None:
        if text:
            self._is_after_call = False
            self._parts.append(Content(text))

    def _calls(self, is_last: bool) -> bool:
        """Behind an opening mark, between calls."""
        assert self._markers is not None
        text = self._held.lstrip(_SEPARATORS + "[]" if self._markers is MISTRAL else _SEPARATORS)
        closing = self._markers.closing
        if text.startswith("{"):
            self._held, self._scan, self._state = text, _Scan(), self._call
            return True
        is_open = not text or (closing.startswith(text) and text != closing)
        if is_open and not (is_last and self._is_empty):
            self._held = "" if is_last else self._held
            return False
        if closing and text.startswith(closing) and not self._is_empty:
            self._held = text.removeprefix(closing)
            self._state = self._content
        elif self._is_empty:
            self._say(self._markers.opening)
            self._state = self._content
        else:
            self._held = text
            self._state = self._content
        return True

    def _call(self, is_last: bool) -> bool:
        """In an object of which nothing has been told."""
        assert self._scan is not None
        assert self._markers is not None
        end = self._scan.feed(self._held)
        if end is not None:
            call, text = _read(self._held[:end]), self._held[:end]
            self._held = self._held[end:]
            if call is None:
                self._say((self._markers.opening if self._is_empty else "") + text)
                self._state = self._content
                return True
            self._start(call[0])
            self._parts.append(CallArguments(self.num_calls - 1, call[1]))
            self._state = self._calls
            return True
        head = _HEAD.match(self._held)
        if head is not None:
            self._start(json.loads(head[1]))
            self._held = self._held[head.end() :]
            self._scan = _Scan()
            self._state = self._arguments
            return True
        if is_last:
            self._say((self._markers.opening if self._is_empty else "") + self._held)
            self._held = ""
        return False

    def _start(self, name: str) -> None:
        self._parts.append(CallStart(self.num_calls, name))
        self.num_calls += 1
        self._is_empty, self._is_after_call = False, True

    def _arguments(self, is_last: bool) -> bool:
        """In the arguments of a call that has been told of."""
        assert self._scan is not None
        end = self._scan.feed(self._held)
        text = self._held if end is None else self._held[:end]
        if text:
            self._parts.append(CallArguments(self.num_calls - 1, text))
        self._held = self._held[len(text) :]
        self._scan.forget(len(text))
        if end is None:
            return False
        self._scan = _Scan(depth=1)
        self._state = self._rest
        return bool(self._held) or is_last

    def _rest(self, is_last: bool) -> bool:
        """The end of a call's object; other keys in it mean nothing."""
        assert self._scan is not None
        end = self._scan.feed(self._held)
        self._held = "" if end is None else self._held[end:]
        self._scan.forget(len(self._held) if end is None else 0)
        if end is None:
            self._scan.start_over()
            return False
        self._state = self._calls
        return bool(self._held) or is_last


class _Scan:
    """Finds the end of a JSON object or list in a text that grows."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._at = 0
        self._in_string = False
        self._is_escaped = False

    def feed(self, text: str) -> int | None:
        """One past the end, or None while it is not there. `text` is all of it since the last `forget`."""
        for place in range(self._at, len(text)):
            char = text[place]
            if self._in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif char == "\\":
                    self._is_escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._at = place + 1
                    return place + 1
        self._at = len(text)
        return None

    def forget(self, num_chars: int) -> None:
        """The first characters of the text are gone."""
        self._at = max(0, self._at - num_chars)

    def start_over(self) -> None:
        """All of the text is gone."""
        self._at = 0


def _read(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call, or None when the object is none."""
    try:
        call: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        return call["name"], arguments
    if arguments is None:
        arguments = {}
    return call["name"], json.dumps(arguments, ensure_ascii=False)


def _partial(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0


def _joined(parts: list[Part]) -> list[Part]:
    """Neighbours of one kind as one."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, Content) and isinstance(last, Content):
            found[-1] = Content(last.text + part.text)
        elif isinstance(part, Reasoning) and isinstance(last, Reasoning):
            found[-1] = Reasoning(last.text + part.text)
        elif (
            isinstance(part, CallArguments) and isinstance(last, CallArguments) and last.number == part.number
        ):
            found[-1] = CallArguments(part.number, last.text + part.text)
        else:
            found.append(part)
    return found
