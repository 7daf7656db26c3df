"""How many lines of batches run at once: as many as the engines can take without anybody waiting for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

FIRST = 8
"""Lines that start before anything is known of the engines."""


def next_limit(limit: int, most: int, *, running: int, waiting: int, online: int) -> int:
    """How many lines may run from now on; at least 1.

    limit    what held until now
    most     never more
    running  lines under way
    waiting  requests and lines in the engines' queues, which means that the engines are full
    online   requests under way that are no lines

    Nobody waits and every place is taken: twice as many when the machine is ours, a quarter more beside others.
    Somebody waits: half as many when it may be somebody else, else as many fewer as wait.
    """
    if waiting == 0:
        grown = limit + max(1, limit // 4) if online else 2 * limit
        return min(most, grown if running >= limit else limit)
    return max(1, limit // 2 if online else min(limit, running) - waiting)


class Pace:
    """Places for lines, on one event loop.

    most       there are never more
    first      how many there are at the start
    limit      how many there are; `look` moves it
    running    how many are taken
    is_paused  somebody else waits, and no line starts
    """

    def __init__(self, most: int, first: int = FIRST) -> None:
        self._most = most
        self._queue: deque[asyncio.Future[None]] = deque()
        self._loners: deque[asyncio.Future[None]] = deque()
        self._has_loner = False
        self.limit = min(first, most)
        self.running = 0
        self.is_paused = False

    def look(self, *, waiting: int, online: int) -> None:
        """Take note of the engines' queues. Waiting lines alone do not pause: others go ahead of them anyway."""
        self.limit = next_limit(self.limit, self._most, running=self.running, waiting=waiting, online=online)
        self.is_paused = waiting > 0 and online > 0
        self._serve()

    async def enter(self) -> None:
        """Wait for a place, in turn; `leave` must follow."""
        await self._wait(self._queue)

    def leave(self) -> None:
        self.running -= 1
        self._serve()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Give one's place back and take it again when nobody else has one: what fails now has failed by itself."""
        self.leave()
        try:
            await self._wait(self._loners)
        except BaseException:
            self.running += 1  # the caller leaves a place
            raise
        try:
            yield
        finally:
            self._has_loner = False
            self._serve()

    async def _wait(self, queue: deque[asyncio.Future[None]]) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(place)
        self._serve()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # given and not taken
                self._has_loner = self._has_loner and queue is not self._loners
                self.leave()
            raise

    def _serve(self) -> None:
        """Give out what places there are. Who wants to be alone goes first, and keeps others from starting."""
        _drop_cancelled(self._loners)
        if self._loners and self.running == 0:
            self._has_loner = True
            self.running = 1
            self._loners.popleft().set_result(None)
        if self._loners or self._has_loner or self.is_paused:
            return
        _drop_cancelled(self._queue)
        while self._queue and self.running < self.limit:
            self.running += 1
            self._queue.popleft().set_result(None)
            _drop_cancelled(self._queue)


def _drop_cancelled(queue: deque[asyncio.Future[None]]) -> None:
    while queue and queue[0].done():
        queue.popleft()
