"""From a request body to a typed request, with nothing dropped in silence.

Each top-level field is one of: part of the request type; understood but not built, which is refused unless
its value asks for nothing; one that never changes an answer; or unknown. Those are named in a warning header.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from octavo.api.faults import HttpError
from octavo.errors import RequestError, Unsupported

WARNING_HEADER = "x-octavo-warning"
MAX_NAMED = 16

NOT_BUILT: Mapping[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
    "store": (None, False),
    "continue_final_message": (None, False),
    "chat_template": (None,),
    "use_beam_search": (None, False),
    "spaces_between_special_tokens": (None, True),
    "truncate_prompt_tokens": (None,),
    "add_special_tokens": (None,),
    "logits_processors": (None, []),
}
"""Fields this build cannot honour, with the values that ask for nothing."""

FOR_THE_RECORD = frozenset(
    {"user", "safety_identifier", "metadata", "prompt_cache_key", "parallel_tool_calls"}
)
"""Fields that never change an answer: they are accepted as they are."""

_T = TypeVar("_T", bound=msgspec.Struct)
_S = TypeVar("_S", bound=msgspec.Struct)
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_MARKS = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:)?|[{}]', re.DOTALL)
"""Texts (group 1), keys among them (group 2 too), and where objects begin and end."""
_DECODERS: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {}
_BUILDING = threading.Lock()
_JSON = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse(body: bytes, kind: type[_T]) -> tuple[_T, list[str]]:
    """The request and the names of fields that have no effect.

    A key that stands twice in an object is refused: parsers differ in which of the two they take.
    Raises HttpError (invalid_json), RequestError (with the field as `param`) and Unsupported.
    """
    try:
        fields = _JSON.decode(str(body, "utf-8"))  # fields that are passed over are checked by nobody else
    except msgspec.ValidationError:
        raise HttpError("invalid_json", "the body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError("invalid_json", f"the body is not valid JSON: {_reason(error)}") from None
    known = _names(kind)
    idle: list[str] = []
    for name, raw in fields.items():
        if name in NOT_BUILT and name not in known:
            _refuse_unless_idle(name, raw)
        elif name not in known and name not in FOR_THE_RECORD:
            idle.append(name)
    check_keys(body)
    return decode(body, kind), idle


def decode(body: bytes, kind: type[_S]) -> _S:
    """The body as a `kind`. Raises HttpError (invalid_json) and RequestError (with the field as `param`)."""
    try:
        decoded: _S = _decoder(kind).decode(body)
        return decoded
    except msgspec.ValidationError as error:
        message, param = _place(str(error))
        raise RequestError(message, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError("invalid_json", f"the body is not valid JSON: {_reason(error)}") from None


def check_keys(body: bytes) -> None:
    """Raises RequestError for a key that stands twice in one object of `body`, which is valid JSON."""
    objects: list[set[str]] = []
    for found in _MARKS.finditer(body):
        mark = found[0]
        if mark == b"{":
            objects.append(set())
        elif mark == b"}":
            objects.pop()
        elif found[2] is not None:
            key = _unescaped(found[1])
            if key in objects[-1]:
                name = key[:64]
                raise RequestError(f"the key {name!r} stands twice in one object", param=name)
            objects[-1].add(key)


def _unescaped(key: bytes) -> str:
    """A key as a text. One whose escapes mean nothing is refused elsewhere or passed over."""
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(b'"' + key + b'"', type=str)
    return key.decode()


@functools.cache
def _names(kind: type[msgspec.Struct]) -> frozenset[str]:
    """What its fields are called on the wire."""
    return frozenset(kind.__struct_encode_fields__)


def _decoder(kind: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    """Built by one thread and whole before another sees it: msgspec 0.22 crashes when two threads meet a type that is
    new to both.
    """
    if (built := _DECODERS.get(kind)) is None:
        with _BUILDING:
            built = _DECODERS.setdefault(kind, msgspec.json.Decoder(kind))
    return built


def warning(idle: list[str]) -> dict[str, str]:
    """The header that names fields without effect, made printable; no header when there are none."""
    if not idle:
        return {}
    shown = [re.sub(r"[^\w.-]", "?", name, flags=re.ASCII)[:64] or '""' for name in idle[:MAX_NAMED]]
    more = f" and {len(idle) - MAX_NAMED} more" if len(idle) > MAX_NAMED else ""
    return {WARNING_HEADER: f"without effect: {', '.join(shown)}{more}"}


def _refuse_unless_idle(name: str, raw: msgspec.Raw) -> None:
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise HttpError("invalid_json", f"the body is not valid JSON: {_reason(error)}") from None
    if not any(value == idle and type(value) is type(idle) for idle in NOT_BUILT[name]):
        raise Unsupported(f"{name} is not supported by this build; leave it out", param=name)


def _place(message: str) -> tuple[str, str | None]:
    """msgspec's message with its path in front, and the path as the field's name."""
    found = _PATH.search(message)
    missing = re.search(r"missing required field `([^`]+)`", message)
    inner = found[1] if found else ""
    if missing:
        inner = f"{inner}.{missing[1]}" if inner else missing[1]
        return f"{inner} is missing", inner
    text = message[: found.start()] if found else message
    return (f"{inner}: {text}" if inner else text), inner or None


def _reason(error: Exception) -> str:
    return "too deeply nested" if isinstance(error, RecursionError) else str(error)
