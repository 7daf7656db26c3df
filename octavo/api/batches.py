"""`/v1/batches` on the wire: the batch object, a line of its input, a line of its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from octavo.api.files import ExpiresAfter
from octavo.errors import ConfigError, RequestError
from octavo.units import parse_seconds

MAX_METADATA, MAX_KEY_CHARS, MAX_VALUE_CHARS = 16, 64, 512
LONGEST_WINDOW_S = 24 * 3600
OPEN = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
"""States a batch leaves by itself; the others are its last."""


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """completion_window: "24h", or a shorter time such as "30min"."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None

    def window_s(self) -> float:
        """Raises RequestError for a window that is no time, or longer than a day."""
        try:
            window_s = parse_seconds(self.completion_window)
        except ConfigError as error:
            raise RequestError(f"completion_window: {error}", param="completion_window") from None
        if not 1 <= window_s <= LONGEST_WINDOW_S:
            raise RequestError(
                f"completion_window must be from 1s to 24h, got {self.completion_window!r}",
                param="completion_window",
            )
        return window_s

    def check(self) -> None:
        """Raises RequestError for metadata or an expiry out of bounds."""
        metadata: Mapping[str, str] = self.metadata or {}
        if len(metadata) > MAX_METADATA:
            raise RequestError(
                f"metadata has {len(metadata)} keys, at most {MAX_METADATA} are kept", param="metadata"
            )
        for key, value in metadata.items():
            if len(key) > MAX_KEY_CHARS or len(value) > MAX_VALUE_CHARS:
                raise RequestError(
                    f"metadata keys have at most {MAX_KEY_CHARS} characters and values {MAX_VALUE_CHARS};"
                    f" one has {len(key)} and {len(value)}",
                    param="metadata",
                )
        if self.output_expires_after is not None:
            self.output_expires_after.check("output_expires_after")


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with an input file. `line` counts from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[BatchError]


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    total: int = 0
    completed: int = 0
    failed: int = 0


class InputDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True, kw_only=True):
    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of all lines answered so far."""

    input_tokens: int = 0
    input_tokens_details: InputDetails = msgspec.field(default_factory=InputDetails)
    output_tokens: int = 0
    output_tokens_details: OutputDetails = msgspec.field(default_factory=OutputDetails)
    total_tokens: int = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One batch. Times are seconds since 1970, null for what has not happened."""

    id: str
    object: str = "batch"
    endpoint: str
    model: str | None = None
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: str = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = msgspec.field(default_factory=RequestCounts)
    usage: BatchUsage = msgspec.field(default_factory=BatchUsage)
    metadata: dict[str, str] | None = None


class BatchList(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputLine(msgspec.Struct, frozen=True, kw_only=True):
    """One request of an input file; `body` as it stands in the file."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class LineResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What the endpoint answered, whatever the status."""

    status_code: int
    request_id: str
    body: Any


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a line was never answered."""

    code: str
    message: str


class ResultLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an output or error file."""

    id: str
    custom_id: str
    response: LineResponse | None = None
    error: LineError | None = None
