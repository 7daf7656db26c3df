"""Server-sent events as the OpenAI clients read them: `data:` lines of JSON, comments, `[DONE]` last."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.api.faults import fault
from octavo.errors import OctavoError

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: keeps proxies and read timeouts quiet and means nothing."""

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
_ENCODER = msgspec.json.Encoder()


def event(value: Any) -> bytes:
    """One event. JSON escapes every line break, so one line is always enough."""
    return b"data: " + _ENCODER.encode(value) + b"\n\n"


def error_event(error: OctavoError) -> bytes:
    """The last event of a stream that failed. No `[DONE]` follows: a clean end would read as success."""
    return event(fault(error).body)
