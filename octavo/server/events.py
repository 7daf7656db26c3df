"""Answers that watch their client: an event stream, and waiting for a whole answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.api import sse
from octavo.server.running import Running

STALL_S = 0.1
"""A client that takes longer than this to make room has stalled."""


class EventStream(Response):
    """Sends events as they come and leaves as soon as the client does.

    events   whole events as bytes; ends on its own or raises Gone
    running  abandoned when the client goes, which makes `events` raise
    finish   called once, whatever happens
    stalled  is told how long the client took to make room, when that was long
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        running: Running,
        finish: Callable[[Running], None],
        stalled: Callable[[float], None],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(None, 200, {**sse.HEADERS, **headers})
        del self.headers["content-length"]
        self._events = events
        self._running = running
        self._finish = finish
        self._stalled = stalled

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with watching(receive, self._running.abandon), contextlib.aclosing(self._events) as events:
                async for event in events:
                    begin_s = time.monotonic()
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                    if (took_s := time.monotonic() - begin_s) >= STALL_S:
                        self._stalled(took_s)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._finish(self._running)


@contextlib.asynccontextmanager
async def watching(receive: Receive, on_gone: Callable[[], None]) -> AsyncIterator[None]:
    """Call `on_gone` when the client closes its connection inside the block."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        on_gone()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
