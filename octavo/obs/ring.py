"""The latest records in memory of a fixed size, to be read whenever somebody wants to know what happened.

    segment   serial u64 | used u32 | 0 u32 | record | record | ... | unused
    record    length u32 | bytes

Segments are filled one after the other, and the oldest is emptied for the next. Each begins with a record that says
what it is of, so that what is left can be understood by itself. Memory that two processes share can be read while the
other writes, and after it has died in the middle of a record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Protocol

from octavo.errors import ConfigError

NUM_SEGMENTS = 16
LEAST_BYTES = 1 << 16
_HEAD, _LENGTH = struct.Struct("<QII"), struct.Struct("<I")


class Sink(Protocol):
    """Where records go."""

    def write(self, record: bytes, /) -> object: ...


class Ring:
    """Writes records into `memory`, whose earlier contents are lost.

    memory      a bytearray or a writable map, at least LEAST_BYTES long
    opening     the first record; `reopening` begins all segments but the first
    num_lost    records left out because no segment holds them
    """

    def __init__(self, memory: bytearray | memoryview, opening: bytes, reopening: bytes) -> None:
        self._memory = memoryview(memory)
        if len(self._memory) < LEAST_BYTES:
            raise ConfigError(f"a ring of {len(self._memory)} bytes is too small; give it {LEAST_BYTES}")
        self._size = len(self._memory) // NUM_SEGMENTS
        self._opening, self._reopening = opening, reopening
        self._serial = 0
        self._base = 0
        self._used = 0
        self.num_lost = 0
        for segment in range(NUM_SEGMENTS):
            _HEAD.pack_into(self._memory, segment * self._size, 0, 0, 0)
        self._turn_over()

    def write(self, record: bytes) -> None:
        """Append it; the oldest segment goes when there is no room."""
        num_bytes = _LENGTH.size + len(record)
        if self._used + num_bytes > self._size - _HEAD.size:
            if num_bytes + _LENGTH.size + len(self._reopening) > self._size - _HEAD.size:
                self.num_lost += 1
                return
            self._turn_over()
        self._put(record)

    def _turn_over(self) -> None:
        self._base = self._serial % NUM_SEGMENTS * self._size
        self._serial += 1
        self._used = 0
        _HEAD.pack_into(self._memory, self._base, self._serial, 0, 0)
        self._put(self._opening if self._serial == 1 else self._reopening)

    def _put(self, record: bytes) -> None:
        """The bytes first, then the mark up to which they count."""
        at = self._base + _HEAD.size + self._used
        _LENGTH.pack_into(self._memory, at, len(record))
        self._memory[at + _LENGTH.size : at + _LENGTH.size + len(record)] = record
        self._used += _LENGTH.size + len(record)
        _HEAD.pack_into(self._memory, self._base, self._serial, self._used, 0)


def records(memory: bytes | bytearray | memoryview) -> Iterator[bytes]:
    """What a ring holds, oldest first, beginning with what the records are of.

    memory  a copy; whoever writes meanwhile may have begun to overwrite its oldest segment, which is then left out
    """
    view = memoryview(memory)
    size = len(view) // NUM_SEGMENTS
    found: list[tuple[int, list[bytes]]] = []
    for segment in range(NUM_SEGMENTS):
        part = view[segment * size : (segment + 1) * size]
        serial, used, _ = _HEAD.unpack_from(part)
        if serial:
            found.append((serial, list(_split(part[_HEAD.size : _HEAD.size + used]))))
    found.sort(key=lambda one: one[0])
    for place, (_, kept) in enumerate(found):
        yield from kept if place == 0 else kept[1:]


def _split(part: memoryview) -> Iterator[bytes]:
    at = 0
    while at + _LENGTH.size <= len(part):
        (length,) = _LENGTH.unpack_from(part, at)
        at += _LENGTH.size
        if at + length > len(part):
            return
        yield bytes(part[at : at + length])
        at += length
