"""Two ends over a real Unix socket: order, ends, slowness, and a hostile other end."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from octavo.link import frames, wire
from octavo.link.channel import Channel, connect


@contextlib.asynccontextmanager
async def joined(
    folder: Path, limit: int = wire.MAX_FRAME_BYTES
) -> AsyncIterator[tuple[Channel[Any], Channel[Any]]]:
    """(front, engine): two ends of one link of epoch 3."""
    arrived: asyncio.Queue[Channel[Any]] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await arrived.put(Channel(reader, writer, frames.TO_FRONT, epoch=3, max_frame_bytes=limit))

    server = await asyncio.start_unix_server(accept, str(folder / "s"))
    engine = await connect(folder / "s", frames.TO_ENGINE, epoch=3, max_frame_bytes=limit)
    front = await arrived.get()
    try:
        yield front, engine
    finally:
        await engine.close()
        await front.close()
        server.close()


async def send_until_refused(end: Channel[Any]) -> None:
    for _ in range(1000):
        await end.send(frames.Cancel(request_id="x" * 10_000))


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def test_frames_go_both_ways_in_order(tmp_path):
    async def scene() -> None:
        async with joined(tmp_path) as (front, engine):
            await front.send(frames.Cancel(request_id="a"), frames.Cancel(request_id="b"))
            await front.send(frames.Drain())
            got = [await engine.receive() for _ in range(3)]
            assert got == [frames.Cancel(request_id="a"), frames.Cancel(request_id="b"), frames.Drain()]
            await engine.send(frames.Accepted(request_id="a"))
            assert await front.receive() == frames.Accepted(request_id="a")

    run(scene())


def test_the_end_comes_after_every_frame_and_comes_again(tmp_path):
    async def scene() -> None:
        async with joined(tmp_path) as (front, engine):
            await engine.send(*[frames.Accepted(request_id=str(i)) for i in range(1000)])
            await engine.close()
            for i in range(1000):
                assert await front.receive() == frames.Accepted(request_id=str(i))
            for _ in range(2):
                with pytest.raises(wire.LinkClosed):
                    await front.receive()
            with pytest.raises(wire.LinkClosed):
                await send_until_refused(front)

    run(scene())


def test_frames_before_a_broken_one_are_delivered_first(tmp_path):
    async def scene() -> None:
        async with joined(tmp_path) as (front, engine):
            packer = wire.Packer(3)
            good = packer.pack(frames.Accepted(request_id="a"))
            engine._writer.write(good + b"\xff" * 64)
            assert await front.receive() == frames.Accepted(request_id="a")
            for _ in range(2):
                with pytest.raises(wire.FrameTooLarge):
                    await front.receive()

    run(scene())


@pytest.mark.parametrize(
    ("junk", "error"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", wire.FrameTooLarge),
        (b"\x00" * 15, wire.Truncated),
        (struct.pack("!IIQ", 10, 3, 0) + b"12345", wire.Truncated),
        (struct.pack("!IIQ", 10, 4, 0), wire.WrongEpoch),
        (struct.pack("!IIQ", 10, 3, 1), wire.OutOfOrder),
        (struct.pack("!IIQ", 4, 3, 0) + b"cpos", wire.BadFrame),
        (b"", wire.LinkClosed),
    ],
)
def test_a_stranger_at_the_socket_is_a_typed_error_and_not_a_hang(tmp_path, junk, error):
    async def scene() -> None:
        async with joined(tmp_path) as (front, engine):
            engine._writer.write(junk)
            await engine.close()
            with pytest.raises(error):
                await front.receive()

    run(scene())


def test_a_sender_waits_for_a_slow_reader_and_memory_stays_bounded(tmp_path):
    async def scene() -> None:
        async with joined(tmp_path) as (front, engine):
            sent = 0

            async def flood() -> None:
                nonlocal sent
                for i in range(400):
                    await engine.send(frames.Accepted(request_id=f"{i}" + "x" * 50_000))
                    sent += 1

            flooding = asyncio.create_task(flood())
            while not flooding.done() and engine._writer.transport.get_write_buffer_size() < 64 * 1024:  # type: ignore[attr-defined]
                await asyncio.sleep(0)
            assert sent < 400, "20 MB fit into no socket buffer, so the sender must have paused"
            for i in range(400):
                frame = await front.receive()
                assert frame.request_id.startswith(f"{i}x")
            await flooding

    run(scene())


def test_connecting_to_nothing_is_a_link_error(tmp_path):
    async def scene() -> None:
        with pytest.raises(wire.LinkError, match="cannot connect"):
            await connect(tmp_path / "none", frames.TO_ENGINE, epoch=0)

    run(scene())
