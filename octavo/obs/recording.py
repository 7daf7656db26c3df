"""A recording as a file: what a server and its engines remembered when it was saved.

    "octavo recording 1\\n", then gzip of: length u32 | entry, again and again

The entries are those of `flight.py`: Saved, and then a Section and its entries for the front and for each engine.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from octavo.errors import LoadError, OctavoError
from octavo.obs import ring
from octavo.obs.flight import EngineEntry, FrontEntry, Opened, Saved, Section, encoded, file_entry

MAGIC = b"octavo recording 1\n"
MAX_BYTES = 1 << 32
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine's trail; `entries` begin with Opened, and are empty where it had not got that far."""

    number: int
    epoch: int
    entries: Sequence[EngineEntry]

    @property
    def opened(self) -> Opened | None:
        first = self.entries[0] if self.entries else None
        return first if isinstance(first, Opened) else None


@dataclass(slots=True)
class Recording:
    """A file that has been read."""

    saved: Saved
    front: list[FrontEntry] = field(default_factory=list)
    engines: list[Engine] = field(default_factory=list)


def write(path: Path, saved: Saved, sections: Iterable[tuple[Section, Iterable[bytes]]]) -> int:
    """Write a file that only its owner may read; it is whole or not there. Returns its bytes. Raises OSError."""
    draft = path.with_name(path.name + ".part")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(handle, "wb") as file:
            file.write(MAGIC)
            with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
                _put(packed, encoded(saved))
                for section, records in sections:
                    _put(packed, encoded(section))
                    for record in records:
                        _put(packed, record)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path.stat().st_size


def sections_of(
    engines: Iterable[tuple[int, int, bytes]], front: bytes
) -> list[tuple[Section, Iterable[bytes]]]:
    """From copies of rings: number, epoch and ring of each engine; that of the front begins with a Section."""
    found: list[tuple[Section, Iterable[bytes]]] = [(Section("front"), list(ring.records(front))[1:])]
    found += [(Section("engine", number, epoch), ring.records(memory)) for number, epoch, memory in engines]
    return found


def _put(file: gzip.GzipFile, record: bytes) -> None:
    file.write(_LENGTH.pack(len(record)))
    file.write(record)


def read(path: Path) -> Recording:
    """Raises LoadError for what is no recording, and for one that is damaged."""
    entries = iter(_entries(path))
    saved = next(entries, None)
    if not isinstance(saved, Saved):
        raise LoadError(f"{path} does not begin as a recording does")
    recording = Recording(saved)
    section: Section | None = None
    trail: list[EngineEntry] = []
    for entry in entries:
        match entry:
            case Section():
                section, trail = entry, []
                if entry.kind == "engine":
                    recording.engines.append(Engine(entry.number, entry.epoch, trail))
            case Saved():
                raise LoadError(f"{path} begins twice")
            case _ if section is None:
                raise LoadError(f"{path}: {type(entry).__name__} belongs to no section")
            case _ if section.kind == "front" and isinstance(entry, FrontEntry):
                recording.front.append(entry)
            case _ if section.kind == "engine" and not isinstance(entry, FrontEntry):
                trail.append(entry)
            case _:
                raise LoadError(
                    f"{path}: {type(entry).__name__} does not belong in a section of {section.kind!r}"
                )
    return recording


def _entries(path: Path) -> Iterable[EngineEntry | FrontEntry | Saved | Section]:
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise LoadError(
                    f"{path} is no recording; `octavo serve` saves one on SIGUSR2 and after a crash"
                )
            with gzip.GzipFile(fileobj=file, mode="rb") as packed:
                number = 0
                while head := packed.read(_LENGTH.size):
                    number += 1
                    record = packed.read(*_LENGTH.unpack(head)) if len(head) == _LENGTH.size else b""
                    try:
                        yield file_entry(record)
                    except (msgspec.MsgspecError, OctavoError) as error:
                        raise LoadError(f"{path}: entry {number} cannot be read: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise LoadError(f"{path} cannot be read: {error}") from error
