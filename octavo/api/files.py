"""`/v1/files` on the wire."""

from __future__ import annotations

import msgspec

from octavo.errors import RequestError

PURPOSES = ("batch", "user_data")
BATCH_OUTPUT = "batch_output"
"""Purpose of the files a batch leaves; nobody can upload one."""
MIN_EXPIRES_S, MAX_EXPIRES_S = 3_600, 2_592_000


class ExpiresAfter(msgspec.Struct, frozen=True, kw_only=True):
    """When a file goes: so many seconds after it was made."""

    anchor: str
    seconds: int

    def check(self, name: str) -> None:
        """Raises RequestError that names the field; `name` is what the wire calls the whole."""
        if self.anchor != "created_at":
            raise RequestError(
                f"{name}.anchor must be 'created_at', got {self.anchor!r}", param=f"{name}.anchor"
            )
        if not MIN_EXPIRES_S <= self.seconds <= MAX_EXPIRES_S:
            raise RequestError(
                f"{name}.seconds must be from {MIN_EXPIRES_S} to {MAX_EXPIRES_S}, got {self.seconds}",
                param=f"{name}.seconds",
            )


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """One file. Times are seconds since 1970."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: str = "processed"
    status_details: str | None = None


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "file"
    deleted: bool = True
