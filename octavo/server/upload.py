"""A multipart form with one file in it, written to disk as it arrives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from python_multipart import multipart
from python_multipart.exceptions import FormParserError
from starlette.requests import Request

from octavo.api.faults import HttpError
from octavo.errors import RequestError
from octavo.server.shelf import Draft

MAX_PARTS = 16
MAX_FIELD_BYTES = 1024
WRITE_BYTES = 1 << 20
SILENCE_S = 60.0
"""A sender who is silent for so long has gone."""
SLOWEST_BYTES_PER_S = 16 * 1024
"""After the first minute a slower upload is being dripped."""


class Form:
    """Takes a form apart.

    fields    the small ones, by name
    filename  of the file; None until its part has begun
    """

    def __init__(self, boundary: bytes, on_file: Callable[[bytes], None]) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.is_over = False
        self._on_file = on_file
        self._num_parts = 0
        self._headers: dict[str, bytes] = {}
        self._header_name = self._header_value = b""
        self._name = ""
        self._value = b""
        callbacks: multipart.MultipartCallbacks = {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_part,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }
        self._parser = multipart.MultipartParser(boundary, callbacks)

    def feed(self, part: bytes) -> None:
        """Raises HttpError for what is no such form."""
        try:
            self._parser.write(part)
        except FormParserError as error:
            raise HttpError("invalid_value", f"the form cannot be read: {error}") from None

    def _part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise HttpError("invalid_value", f"the form has more than {MAX_PARTS} parts")
        self._headers = {}

    def _header_field(self, raw: bytes, start: int, end: int) -> None:
        self._header_name += raw[start:end]

    def _header_part(self, raw: bytes, start: int, end: int) -> None:
        self._header_value += raw[start:end]

    def _header_end(self) -> None:
        self._headers[self._header_name.decode("latin-1").lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _headers_finished(self) -> None:
        _, options = multipart.parse_options_header(self._headers.get("content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._value = b""
        if self._name == "file":
            if self.filename is not None:
                raise HttpError("invalid_value", "the form holds two files; send one", param="file")
            self.filename = options.get(b"filename", b"").decode("utf-8", "replace")

    def _part_data(self, raw: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self._on_file(raw[start:end])
            return
        self._value += raw[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            text = f"the form field {self._name[:64]!r} has more than {MAX_FIELD_BYTES} bytes"
            raise HttpError("invalid_value", text, param=self._name[:64])

    def _part_end(self) -> None:
        if self._name != "file":
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self.is_over = True


def boundary(content_type: str) -> bytes:
    """Of a form. Raises HttpError for any other body."""
    kind, options = multipart.parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise HttpError(
            "unsupported_media_type", "send the file as a form, with `content-type: multipart/form-data`"
        )
    return options[b"boundary"]


async def receive(request: Request, draft: Draft, check_room: Callable[[int], None]) -> Form:
    """Write the file of a form to `draft` and return the rest of the form.

    check_room  called with the bytes of the file so far; raises to refuse more
    Raises HttpError, ClientDisconnect, and OSError from the disk.
    """
    waiting: list[bytes] = []
    num_waiting = 0

    def take(part: bytes) -> None:
        nonlocal num_waiting
        num_waiting += len(part)
        check_room(draft.num_bytes + num_waiting)
        waiting.append(part)

    async def write() -> None:
        nonlocal num_waiting
        whole = b"".join(waiting)
        waiting.clear()
        num_waiting = 0
        await asyncio.to_thread(draft.write, whole)

    form = Form(boundary(request.headers.get("content-type", "")), take)
    started_s, received = time.monotonic(), 0
    chunks = request.stream()
    while not form.is_over:
        try:
            async with asyncio.timeout(SILENCE_S):
                chunk = await anext(chunks, b"")
        except TimeoutError:
            raise HttpError("request_timeout", f"nothing arrived for {SILENCE_S:g} s") from None
        if not chunk:
            break
        received += len(chunk)
        if time.monotonic() - started_s > SILENCE_S + received / SLOWEST_BYTES_PER_S:
            raise HttpError("request_timeout", f"the upload is slower than {SLOWEST_BYTES_PER_S} bytes/s")
        form.feed(chunk)
        if num_waiting >= WRITE_BYTES:
            await write()
    if not form.is_over:
        raise HttpError("invalid_value", "the form ends before its last boundary")
    await write()
    if form.filename is None:
        raise RequestError("the form has no file; send it as the part `file`", param="file")
    return form


def expires_after(fields: Mapping[str, str]) -> tuple[str, str] | None:
    """(anchor, seconds) of a form, as the clients spell them."""
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    return anchor or "", seconds or ""
