"""From an error to what HTTP says: the only such map.

The body is always `{"error": {"message", "type", "param", "code"}}` with all four keys and a code in text,
the shape the official clients read. They repeat 408, 409, 429 and every 5xx on their own, so what a second
try cannot mend says `x-should-retry: false`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from octavo.errors import Busy, OctavoError, RequestError

INVALID = "invalid_request_error"
MAX_RETRY_AFTER_S = 120
"""Clients give up at once when asked to wait longer."""


@dataclass(frozen=True, slots=True)
class Row:
    """How one error code looks from outside. `retry` None leaves it to the client whether to repeat."""

    status: int
    type: str
    retry: bool | None = None


ROWS: Mapping[str, Row] = {
    "invalid_json": Row(400, INVALID),
    "invalid_value": Row(400, INVALID),
    "unsupported_parameter": Row(400, INVALID),
    "invalid_http": Row(400, INVALID),
    "context_length_exceeded": Row(400, INVALID),
    "invalid_grammar": Row(400, INVALID),
    "schema_too_complex": Row(400, INVALID),
    "invalid_api_key": Row(401, INVALID),
    "cross_origin": Row(403, INVALID),
    "permission_denied": Row(403, INVALID),
    "model_not_found": Row(404, INVALID),
    "not_found": Row(404, INVALID),
    "method_not_allowed": Row(405, INVALID),
    "conflict": Row(409, INVALID, retry=False),
    "file_in_use": Row(409, INVALID, retry=False),
    "request_timeout": Row(408, INVALID, retry=False),
    "request_too_large": Row(413, INVALID, retry=False),
    "headers_too_large": Row(431, INVALID, retry=False),
    "unsupported_media_type": Row(415, INVALID),
    "overloaded": Row(429, "overloaded_error"),
    "rate_limit_exceeded": Row(429, "rate_limit_error"),
    "insufficient_quota": Row(429, "insufficient_quota", retry=False),
    "model_loading": Row(503, "server_error"),
    "no_ready_replica": Row(503, "server_error"),
    "shutting_down": Row(503, "server_error"),
    "storage_unavailable": Row(503, "server_error", retry=False),
    "storage_damaged": Row(500, "server_error", retry=False),
    "storage_quota_exceeded": Row(507, INVALID, retry=False),
    "storage_full": Row(507, "server_error", retry=False),
    "engine_error": Row(500, "server_error", retry=False),
    "request_quarantined": Row(500, "server_error", retry=False),
    "deadline_unattainable": Row(504, "timeout_error", retry=False),
    "deadline_exceeded": Row(504, "timeout_error", retry=False),
    "internal_error": Row(500, "server_error", retry=False),
}
UNKNOWN = ROWS["internal_error"]


class Error(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    error: Error


@dataclass(frozen=True, slots=True)
class Fault:
    """An error, ready to send."""

    status: int
    body: ErrorBody | MessagesErrorBody
    headers: Mapping[str, str]


MESSAGES_PATH = "/v1/messages"
_MESSAGES_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Types of Anthropic's errors by status; the rest is invalid_request_error or api_error."""


class MessagesError(msgspec.Struct, frozen=True, kw_only=True):
    """`code` and `param` are what the other routes say; Anthropic's clients pass over them."""

    type: str
    message: str
    code: str
    param: str | None


class MessagesErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "error"
    error: MessagesError
    request_id: str


class HttpError(OctavoError):
    """A refusal by its code: what only HTTP knows (a route, a key, a body), or what an engine has answered.

    code           one of `ROWS`
    param          the request field at fault, if one is
    retry_after_s  when the same request may succeed
    """

    def __init__(
        self, code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


def messages_fault(error: OctavoError, request_id: str) -> Fault:
    """How this error is answered below `MESSAGES_PATH`: in the shape Anthropic's clients read."""
    known = fault(error)
    assert isinstance(known.body, ErrorBody)
    said = known.body.error
    status = 529 if said.code == "overloaded" else known.status
    kind = _MESSAGES_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    inner = MessagesError(type=kind, message=said.message, code=said.code, param=said.param)
    return Fault(status, MessagesErrorBody(error=inner, request_id=request_id), known.headers)


def fault(error: OctavoError) -> Fault:
    """How this error is answered. A code without a row is a defect of ours and reads as one."""
    row = ROWS.get(error.code, UNKNOWN)
    code = error.code if error.code in ROWS else "internal_error"
    headers: dict[str, str] = {}
    retry_after_s = error.retry_after_s if isinstance(error, Busy | HttpError) else None
    if retry_after_s is not None:
        headers["retry-after"] = str(min(max(math.ceil(retry_after_s), 1), MAX_RETRY_AFTER_S))
    if row.retry is not None:
        headers["x-should-retry"] = "true" if row.retry else "false"
    if code == "overloaded":
        headers["x-dropped-reason"] = "queue_full"
    if row.status == 401:
        headers["www-authenticate"] = "Bearer"
    param = error.param if isinstance(error, RequestError | HttpError) else None
    body = ErrorBody(error=Error(message=str(error), type=row.type, param=param, code=code))
    return Fault(row.status, body, headers)
