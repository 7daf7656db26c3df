"""Frames to bytes and back, without I/O.

    +--------+--------+----------+------------------------+
    | length | epoch  | number   | MessagePack, one frame |
    | u32    | u32    | u64      | `length` bytes         |
    +--------+--------+----------+------------------------+

All big-endian. Numbers count from 0 in each direction without gaps; the epoch fences off an earlier engine
whose frames might still arrive. Anything else than the next frame of this epoch is a `LinkError`, and a link
that has raised one is dead: there is no resynchronising inside a byte stream.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from octavo.errors import OctavoError
from octavo.link.frames import Frame
from octavo.units import MIB

MAX_FRAME_BYTES = 64 * MIB
"""Far above the largest real frame: a prompt of a million ids is 5 MiB."""

_HEADER = struct.Struct("!IIQ")
_F = TypeVar("_F")


class LinkError(OctavoError):
    """The other end of a link broke the protocol, or the link itself broke."""

    code = "engine_error"


class FrameTooLarge(LinkError):
    """A frame exceeds the length limit."""


class Truncated(LinkError):
    """The stream ended inside a frame."""


class BadFrame(LinkError):
    """The bytes are not a frame that may travel in this direction."""


class OutOfOrder(LinkError):
    """A frame is missing, repeated or swapped."""


class WrongEpoch(LinkError):
    """The frame belongs to an earlier or later engine."""


class LinkClosed(LinkError):
    """The other end closed the link between two frames."""


class Packer:
    """Numbers and encodes the frames of one direction."""

    def __init__(self, epoch: int, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._epoch = epoch
        self._max_frame_bytes = max_frame_bytes
        self._number = 0
        self._encoder = msgspec.msgpack.Encoder()

    def pack(self, frame: Frame) -> bytes:
        """Raises FrameTooLarge, after which the direction is as it was: the frame has no number."""
        payload = self._encoder.encode(frame)
        if len(payload) > self._max_frame_bytes:
            raise FrameTooLarge(
                f"{type(frame).__name__} of {len(payload)} bytes exceeds the limit of {self._max_frame_bytes}"
            )
        header = _HEADER.pack(len(payload), self._epoch, self._number)
        self._number += 1
        return header + payload


class Unpacker(Generic[_F]):
    """Collects bytes and gives back frames.

    frames  the union of frame types that may arrive
    """

    def __init__(self, frames: Any, epoch: int, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._epoch = epoch
        self._max_frame_bytes = max_frame_bytes
        self._number = 0
        self._decoder: msgspec.msgpack.Decoder[_F] = msgspec.msgpack.Decoder(frames)
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[_F]:
        """Frames completed by `data`. Take all of them before feeding more."""
        self._pending += data
        while len(self._pending) >= _HEADER.size:
            length, epoch, number = _HEADER.unpack_from(self._pending)
            self._check(length, epoch, number)
            end = _HEADER.size + length
            if len(self._pending) < end:
                return
            payload = bytes(self._pending[_HEADER.size : end])
            del self._pending[:end]
            self._number += 1
            yield self._decode(payload)

    def end(self) -> None:
        """The stream is over. Raises Truncated when a frame was under way."""
        if self._pending:
            raise Truncated(f"the link ended {len(self._pending)} bytes into frame {self._number}")

    def _check(self, length: int, epoch: int, number: int) -> None:
        if length > self._max_frame_bytes:
            raise FrameTooLarge(f"frame of {length} bytes announced; the limit is {self._max_frame_bytes}")
        if epoch != self._epoch:
            raise WrongEpoch(f"frame of epoch {epoch} on a link of epoch {self._epoch}")
        if number != self._number:
            raise OutOfOrder(f"frame {number} arrived where {self._number} was due")

    def _decode(self, payload: bytes) -> _F:
        try:
            return self._decoder.decode(payload)
        except (msgspec.MsgspecError, OctavoError, UnicodeError, RecursionError) as error:
            raise BadFrame(f"frame {self._number - 1} cannot be read: {error}") from error
