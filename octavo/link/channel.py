"""A link over asyncio streams: send frames, receive frames, know for certain when it is over."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from pathlib import Path
from typing import Any, Generic, TypeVar

from octavo.link.frames import Frame
from octavo.link.wire import MAX_FRAME_BYTES, LinkClosed, LinkError, Packer, Unpacker

_F = TypeVar("_F")
READ_BYTES = 256 * 1024


class Channel(Generic[_F]):
    """One end of a link. One task receives; any task of the loop sends.

    receives  union of the frame types that may arrive here
    epoch     of the engine this link belongs to
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        receives: Any,
        *,
        epoch: int,
        max_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._packer = Packer(epoch, max_frame_bytes)
        self._unpacker: Unpacker[_F] = Unpacker(receives, epoch, max_frame_bytes)
        self._arrived: deque[_F] = deque()
        self._over: LinkError | None = None

    async def send(self, *frames: Frame) -> None:
        """Write frames in order, waiting while the other end is slow. Raises LinkError."""
        self.post(*frames)
        try:
            await self._writer.drain()
        except OSError as error:
            raise LinkClosed(f"the link broke while sending: {error}") from error

    def post(self, *frames: Frame) -> None:
        """Queue frames without waiting; for a few small ones. Raises LinkError."""
        packed = b"".join([self._packer.pack(frame) for frame in frames])
        if self._writer.is_closing():
            raise LinkClosed("the link is closed")
        self._writer.write(packed)

    @property
    def num_unsent_bytes(self) -> int:
        """What the other end has not taken yet."""
        return self._writer.transport.get_write_buffer_size()

    async def receive(self) -> _F:
        """The next frame; once the link has ended, LinkClosed or the LinkError that ended it, each time."""
        while not self._arrived:
            if self._over is not None:
                raise self._over
            await self._read()
        return self._arrived.popleft()

    async def _read(self) -> None:
        try:
            data = await self._reader.read(READ_BYTES)
        except OSError as error:
            self._over = LinkClosed(f"the link broke: {error}")
            return
        try:
            if data:
                self._arrived.extend(self._unpacker.feed(data))
            else:
                self._unpacker.end()
                self._over = LinkClosed("the other end closed the link")
        except LinkError as error:
            self._over = error

    async def close(self) -> None:
        """Close this end; harmless when it is closed already."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def connect(
    socket: Path, receives: Any, *, epoch: int, max_frame_bytes: int = MAX_FRAME_BYTES
) -> Channel[Any]:
    """Connect to a listening Unix socket, as an engine process does to its front. Raises LinkError."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError as error:
        raise LinkError(f"cannot connect to {socket}: {error}") from error
    return Channel(reader, writer, receives, epoch=epoch, max_frame_bytes=max_frame_bytes)
