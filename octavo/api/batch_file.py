"""An input file of a batch: read once in full before anything runs, line by line afterwards."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import msgspec

from octavo.api.batches import BatchError, InputLine
from octavo.errors import OctavoError

MAX_ERRORS = 100
"""Errors named of one file; the rest would say the same."""
MAX_ID_CHARS = 512
_CHUNK_BYTES = 1 << 20

_LINE = msgspec.json.Decoder(InputLine)


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """What of a body matters before it runs."""

    model: str | None = None
    stream: bool | None = None


_HEAD = msgspec.json.Decoder(_Head)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a file may hold. `max_line_bytes` is what the endpoint would take as a body, and room around it."""

    max_lines: int
    max_bytes: int
    max_line_bytes: int


@dataclass(frozen=True, slots=True)
class Index:
    """A file that may run.

    offsets, lengths  of each request's line in bytes; blank lines are left out
    lines             number of each request's line in the file, from 1
    endpoint          the url of every line
    model             the model of every line, None where no line names one
    digest            SHA-256 of the whole file
    """

    offsets: array[int]
    lengths: array[int]
    lines: array[int]
    endpoint: str
    model: str | None
    digest: bytes

    def __len__(self) -> int:
        return len(self.offsets)

    def read(self, file: BinaryIO, number: int) -> InputLine:
        """Request `number`, counted from 0. Raises OSError, and DecodeError for bytes that have changed."""
        return _LINE.decode(os.pread(file.fileno(), self.lengths[number], self.offsets[number]))


class Invalid(Exception):
    """A file that may not run, with what is wrong in it."""

    def __init__(self, errors: list[BatchError]) -> None:
        super().__init__(f"{len(errors)} lines are wrong")
        self.errors = errors


class _Checks:
    """What holds between lines, and inside one."""

    def __init__(self, endpoint: str | None, urls: Iterable[str], check_model: Callable[[str], None]) -> None:
        self.endpoint = endpoint
        self._urls = frozenset(urls)
        self._check_model = check_model
        self._ids: dict[bytes, int] = {}
        self.model: str | None = None
        self._has_model = False

    def line(self, raw: bytes, number: int) -> BatchError | None:
        """The first thing wrong with a line."""
        try:
            line = _LINE.decode(str(raw, "utf-8"))
            if not bytes(line.body).startswith(b"{"):
                return _error("invalid_json", "body must be a JSON object", number, "body")
            head = _HEAD.decode(line.body)
        except msgspec.ValidationError as error:
            return _error("invalid_request", f"the line does not fit: {error}", number)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            why = "too deeply nested" if isinstance(error, RecursionError) else str(error)
            return _error("invalid_json", f"the line is not valid JSON: {why}", number)
        return self._custom_id(line, number) or self._request(line, head, number)

    def _custom_id(self, line: InputLine, number: int) -> BatchError | None:
        if not 0 < len(line.custom_id) <= MAX_ID_CHARS:
            text = f"custom_id must have from 1 to {MAX_ID_CHARS} characters, it has {len(line.custom_id)}"
            return _error("invalid_custom_id", text, number, "custom_id")
        key = hashlib.sha256(line.custom_id.encode("utf-8", "surrogatepass")).digest()[:16]
        first = self._ids.setdefault(key, number)
        if first != number:
            text = f"custom_id is the same as in line {first}; each line needs its own"
            return _error("duplicate_custom_id", text, number, "custom_id")
        return None

    def _request(self, line: InputLine, head: _Head, number: int) -> BatchError | None:
        if line.method != "POST":
            return _error("invalid_method", "method must be POST", number, "method")
        if self.endpoint is None and line.url in self._urls:
            self.endpoint = line.url
        if line.url != self.endpoint:
            wanted = self.endpoint or f"one of {', '.join(sorted(self._urls))}"
            return _error("invalid_url", f"url must be {wanted}, as for the whole batch", number, "url")
        if head.stream:
            text = "stream must be false: nobody reads a stream in a batch"
            return _error("unsupported_parameter", text, number, "body.stream")
        if not self._has_model:
            self._has_model, self.model = True, head.model
            try:
                if head.model is not None:
                    self._check_model(head.model)
            except OctavoError as error:
                return _error(error.code, str(error), number, "body.model")
        if head.model != self.model:
            text = f"model is not that of the lines before, {self.model!r}; a batch runs one model"
            return _error("mismatched_model", text, number, "body.model")
        return None


def _error(code: str, message: str, line: int | None, param: str | None = None) -> BatchError:
    return BatchError(code=code, message=message, param=param, line=line)


def scan(
    file: BinaryIO,
    limits: Limits,
    *,
    endpoint: str | None,
    urls: Iterable[str],
    check_model: Callable[[str], None],
) -> Index:
    """Read and check a whole file. At most one line of it is in memory at any time.

    endpoint     the url every line must have; None takes the first line's, if it is one of `urls`
    check_model  raises OctavoError for a model that is not served
    Raises Invalid with at most MAX_ERRORS errors.
    """
    checks = _Checks(endpoint, urls, check_model)
    offsets, lengths, lines = array("Q"), array("Q"), array("Q")
    errors: list[BatchError] = []
    digest = hashlib.sha256()
    for number, (offset, length, raw) in enumerate(_lines(file, limits, digest.update), start=1):
        if raw is not None and not raw.strip():
            continue
        if len(offsets) >= limits.max_lines:
            text = f"the file has more than {limits.max_lines} requests (batch_max_lines); split it"
            errors.append(_error("too_many_lines", text, number))
            break
        if raw is None:
            text = f"the line has {length} bytes, at most {limits.max_line_bytes} are read"
            found: BatchError | None = _error("line_too_long", text, number)
        else:
            found = checks.line(raw, number)
        offsets.append(offset)
        lengths.append(length)
        lines.append(number)
        if found is not None:
            errors.append(found)
            if len(errors) >= MAX_ERRORS:
                break
        if offset + length > limits.max_bytes:
            text = f"the file has more than {limits.max_bytes} bytes (batch_max_bytes); split it"
            errors.append(_error("file_too_large", text, number))
            break
    if not offsets:
        errors.append(_error("empty_file", "the file holds no request", None))
    if errors:
        raise Invalid(errors)
    assert checks.endpoint is not None
    return Index(offsets, lengths, lines, checks.endpoint, checks.model, digest.digest())


def _lines(
    file: BinaryIO, limits: Limits, seen: Callable[[bytes], None]
) -> Iterator[tuple[int, int, bytes | None]]:
    """(offset, length, bytes) of each line without its newline; no bytes for one that is too long."""
    offset = 0
    while raw := file.readline(limits.max_line_bytes + 1):
        seen(raw)
        length, is_whole = len(raw), raw.endswith(b"\n")
        if not is_whole and length > limits.max_line_bytes:
            while not is_whole and (more := file.readline(_CHUNK_BYTES)):
                seen(more)
                length += len(more)
                is_whole = more.endswith(b"\n")
            yield offset, length, None
        else:
            yield offset, length - is_whole, raw[:-1] if is_whole else raw
        offset += length
