"""The results of one batch while it runs: an append-only file in which every record carries its checksum.

A line of the file is `CRC RECORD`: eight hexadecimal digits of CRC-32, a blank, and a JSON array. The first line
says whose results these are. What a crash or a bad disk leaves half written fails its checksum and counts as
never written; its request runs again. So for each request there is at most one good record, and the file alone
says which requests are done.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from octavo.errors import OctavoError

_CRC_CHARS = 9


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One request's result.

    number  counts the requests of the batch from 0
    is_ok   it goes to the output file, not to the error file
    tokens  input, of these cached, output, of these spent on reasoning
    line    the line of the output or error file
    """

    number: int
    is_ok: bool
    tokens: tuple[int, int, int, int]
    line: msgspec.Raw


class Header(msgspec.Struct, frozen=True, array_like=True):
    """Whose results a file holds: a name, and the SHA-256 of the input in hexadecimal."""

    name: str
    digest: str


class LedgerError(OctavoError):
    """The file holds another batch's results, or somebody else writes to it."""

    code = "ledger_error"


_RECORD = msgspec.json.Decoder(Record)
_HEADER = msgspec.json.Decoder(Header)


def frame(payload: bytes) -> bytes:
    """A line of the file. JSON holds no raw newline, so none can be inside."""
    return b"%08x " % zlib.crc32(payload) + payload + b"\n"


def unframe(line: bytes) -> bytes | None:
    """The payload of a whole and undamaged line, else None."""
    payload = line[_CRC_CHARS:-1]
    return payload if line.endswith(b"\n") and frame(payload) == line else None


class Ledger:
    """One open file. Used by one thread at a time.

    offsets      where the record of each finished request starts, by its number
    num_damaged  lines that failed their checksum when the file was opened, a torn last one included
    write, sync  the calls that reach the disk, for those who want them to fail

    Raises LedgerError when the file belongs to something else or is open elsewhere, OSError from the disk.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        num_requests: int,
        *,
        write: Callable[[int, memoryview], int] = os.write,
        sync: Callable[[int], None] = os.fsync,
    ) -> None:
        self._write, self._sync = write, sync
        self._num_requests = num_requests
        self.offsets: dict[int, int] = {}
        self.num_damaged = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._lock(path)
            self.size = self._read(path, header)
            if self.size == 0:
                self._append(frame(msgspec.json.encode(header)))
                sync_folder(path.parent)
        except BaseException:
            os.close(self._fd)
            raise

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LedgerError(f"another process is writing to {path}; wait for it, or end it") from None

    def _read(self, path: Path, header: Header) -> int:
        """Note what is there; returns where the last whole line ends."""
        end = 0
        with open(self._fd, "rb", closefd=False) as file:
            first = file.readline()
            if not first.endswith(b"\n"):
                return 0
            payload = unframe(first)
            if payload is None:
                raise LedgerError(f"the first line of {path} is damaged; move or delete the file")
            if _HEADER.decode(payload) != header:
                raise LedgerError(f"{path} holds the results of another input or model; move or delete it")
            end = len(first)
            for offset, line in _offsets(file, end):
                payload = unframe(line)
                if payload is None:
                    self.num_damaged += 1
                else:
                    self.offsets.setdefault(_RECORD.decode(payload).number, offset)
                if line.endswith(b"\n"):
                    end = offset + len(line)
        return end

    def append(self, records: Iterable[Record]) -> None:
        """Put records on the disk; they last once this returns. Those of finished requests are passed over.

        After an OSError none of them counts, after a crash of the process a part of them may.
        """
        lines: list[bytes] = []
        offsets: dict[int, int] = {}
        end = self.size
        for record in records:
            if record.number in self.offsets or record.number in offsets:
                continue
            if not 0 <= record.number < self._num_requests:
                raise LedgerError(f"there is no request {record.number}, only {self._num_requests}")
            line = frame(msgspec.json.encode(record))
            offsets[record.number] = end
            lines.append(line)
            end += len(line)
        if lines:
            self._append(b"".join(lines))
            self.offsets |= offsets

    def _append(self, whole: bytes) -> None:
        os.ftruncate(self._fd, self.size)  # what a failed call before this one may have left
        os.lseek(self._fd, self.size, os.SEEK_SET)
        view = memoryview(whole)
        while view:
            view = view[self._write(self._fd, view) :]
        self._sync(self._fd)
        self.size += len(whole)

    def records(self, after: int = 0) -> Iterator[Record]:
        """The good records in order of writing, those that start at offset `after` or later."""
        wanted = sorted(offset for offset in self.offsets.values() if offset >= after)
        with open(os.dup(self._fd), "rb") as file:
            for offset in wanted:
                yield self._at(file, offset)

    def in_order(self) -> Iterator[Record]:
        """The good records by number."""
        with open(os.dup(self._fd), "rb") as file:
            for _, offset in sorted(self.offsets.items()):
                yield self._at(file, offset)

    def _at(self, file: BinaryIO, offset: int) -> Record:
        file.seek(offset)
        payload = unframe(file.readline())
        if payload is None:
            raise LedgerError(f"the record at byte {offset} has been damaged since it was read")
        return _RECORD.decode(payload)

    def close(self) -> None:
        """Also lets go of the lock."""
        os.close(self._fd)


def _offsets(file: BinaryIO, offset: int) -> Iterator[tuple[int, bytes]]:
    for line in file:
        yield offset, line
        offset += len(line)


def sync_folder(folder: Path) -> None:
    """Make names in a folder last: those created, renamed or removed before."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
