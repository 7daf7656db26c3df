"""The events of a response while it grows, numbered without gaps, and the items they add up to."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET

from octavo.api import sse
from octavo.api.responses import OutputItem, OutputText
from octavo.codec.parts import CallArguments, CallStart, Content, Part, Reasoning
from octavo.server.reply import Call


@dataclass(slots=True)
class _Growing:
    """The item that is open: `text` of a message or of reasoning, `call` of a function call."""

    item_id: str
    kind: str
    text: str = ""
    logprobs: list[Any] | None = None
    call: Call | None = None


class Items:
    """Turns parts into items, and into the events that tell of them."""

    def __init__(self) -> None:
        self.done: list[OutputItem] = []
        self._open: _Growing | None = None
        self._number = 0

    def event(self, kind: str, **fields: Any) -> bytes:
        """The next event."""
        value: Mapping[str, Any] = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: " + kind.encode() + b"\n" + sse.event(value)

    def grow(self, parts: Sequence[Part], calls: Sequence[Call], logprobs: list[Any]) -> Iterator[bytes]:
        """More of the output. `logprobs` of the tokens that came with it go to the text, where there is any."""
        for part in parts:
            match part:
                case Content():
                    yield from self._in_text("message")
                    yield self._delta("response.output_text.delta", part.text, logprobs=logprobs)
                    assert self._open is not None
                    self._open.text += part.text
                    self._open.logprobs = [*(self._open.logprobs or ()), *logprobs]
                    logprobs = []
                case Reasoning():
                    yield from self._in_text("reasoning")
                    yield self._delta("response.reasoning_text.delta", part.text)
                    assert self._open is not None
                    self._open.text += part.text
                case CallStart():
                    yield from self.close("completed")
                    self._open = _Growing(_new("fc"), "function_call", call=calls[part.number])
                    yield self._added(_called(self._open, "", "in_progress"))
                case CallArguments():
                    yield self._delta("response.function_call_arguments.delta", part.text)

    def close(self, status: str) -> Iterator[bytes]:
        """End the open item, if there is one."""
        growing, self._open = self._open, None
        if growing is None:
            return
        place: dict[str, Any] = {"item_id": growing.item_id, "output_index": len(self.done)}
        if growing.call is not None:
            item = _called(growing, growing.call.arguments, status)
            arguments = growing.call.arguments
            yield self.event(
                "response.function_call_arguments.done", **place, name=growing.call.name, arguments=arguments
            )
        else:
            part = _part(growing)
            item = _said(growing, [part], status)
            place["content_index"] = 0
            name = "output_text" if growing.kind == "message" else "reasoning_text"
            more = {"logprobs": growing.logprobs or []} if growing.kind == "message" else {}
            yield self.event(f"response.{name}.done", **place, text=growing.text, **more)
            yield self.event("response.content_part.done", **place, part=part)
        yield self.event("response.output_item.done", output_index=len(self.done), item=item)
        self.done.append(item)

    def _in_text(self, kind: str) -> Iterator[bytes]:
        """See to it that an item of this kind is open."""
        if self._open is not None and self._open.kind == kind:
            return
        yield from self.close("completed")
        self._open = _Growing(_new("msg" if kind == "message" else "rs"), kind)
        yield self._added(_said(self._open, [], "in_progress"))
        place: dict[str, Any] = {"item_id": self._open.item_id, "output_index": len(self.done)}
        yield self.event("response.content_part.added", **place, content_index=0, part=_part(self._open))

    def _added(self, item: OutputItem) -> bytes:
        return self.event("response.output_item.added", output_index=len(self.done), item=item)

    def _delta(self, kind: str, text: str, **more: Any) -> bytes:
        assert self._open is not None
        place: dict[str, Any] = {"item_id": self._open.item_id, "output_index": len(self.done)}
        if self._open.call is None:
            place["content_index"] = 0
        return self.event(kind, **place, delta=text, **more)


def _part(growing: _Growing) -> OutputText:
    if growing.kind == "reasoning":
        return OutputText(type="reasoning_text", text=growing.text)
    return OutputText(type="output_text", text=growing.text, annotations=[], logprobs=growing.logprobs or [])


def _said(growing: _Growing, content: list[OutputText], status: str) -> OutputItem:
    if growing.kind == "reasoning":
        return OutputItem(id=growing.item_id, type="reasoning", status=status, summary=[], content=content)
    return OutputItem(id=growing.item_id, type="message", status=status, role="assistant", content=content)


def _called(growing: _Growing, arguments: str, status: str) -> OutputItem:
    assert growing.call is not None
    return OutputItem(
        id=growing.item_id,
        type="function_call",
        status=status,
        call_id=growing.call.id,
        name=growing.call.name,
        arguments=arguments,
    )


def _new(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"


def as_input(item: OutputItem) -> OutputItem:
    """An item of an answer as a later request would send it: without numbers nobody reads."""
    if item.content is UNSET or item.type != "message":
        return item
    content = [msgspec.structs.replace(part, logprobs=[]) for part in item.content]
    return msgspec.structs.replace(item, content=content)
