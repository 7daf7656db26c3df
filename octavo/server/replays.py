"""`Idempotency-Key`: a request that is sent again gets the answer of the first, whole, or as far as it is.

    first request ──> Replay ──task──> engine        runs on while its client is away, up to `GRACE_S`
    same key again ──────┘                           reads from the beginning, then along with the first

An answer is kept for a day once it has ended well, the oldest given up when all of them take too much memory. One that
failed is forgotten, and the next request of its key runs anew: with the same seeds, so that a server that was started
again draws what the last one drew.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from dataclasses import replace

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.api import sse
from octavo.api.faults import HttpError
from octavo.server.events import watching
from octavo.server.front import Front
from octavo.server.running import Gone, Running
from octavo.server.tenants import Caller
from octavo.server.writer import StreamWriter, Writer, whole_answer

HEADER = "idempotency-key"
REPLAYED = "idempotent-replayed"
GRACE_S = 30.0
"""An answer that nobody reads is made on for so long."""
KEEP_S = 86_400.0
MAX_BYTES = 64 * 1024 * 1024
"""Of kept answers together."""
_GOOD_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class Replay:
    """One answer, growing.

    digest      of path and body
    chunks      its body so far
    headers     None until it is known that there will be one
    is_stream   its chunks are events
    is_over     nothing more will come
    error       what refused or ended it before the first byte
    """

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.chunks: list[bytes] = []
        self.headers: Mapping[str, str] | None = None
        self.is_stream = False
        self.is_over = False
        self.error: BaseException | None = None
        self.keep_alive: Callable[[], bytes] = lambda: sse.KEEP_ALIVE
        self.ended_s = 0.0
        self.num_bytes = 0
        self._num_clients = 0
        self._running: Running | None = None
        self._changed = asyncio.Event()

    def tell(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def begin(self, headers: Mapping[str, str], *, is_stream: bool) -> None:
        self.headers, self.is_stream = headers, is_stream
        self.tell()

    def add(self, chunk: bytes) -> None:
        self.chunks.append(chunk)
        self.num_bytes += len(chunk)
        self.tell()

    def end(self, error: BaseException | None = None) -> None:
        self.error, self.is_over, self.ended_s = error, True, time.monotonic()
        self._running = None
        self.tell()

    def runs_as(self, running: Running) -> None:
        """What to abandon when nobody has read for too long."""
        self._running = running

    async def changed(self, within_s: float | None = None) -> bool:
        """Wait for something to happen; False when nothing did in time."""
        try:
            async with asyncio.timeout(within_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    @contextlib.contextmanager
    def client(self) -> Iterator[None]:
        """Somebody reads inside the block."""
        self._num_clients += 1
        try:
            yield
        finally:
            self._num_clients -= 1
            if not self._num_clients and not self.is_over:
                asyncio.get_running_loop().call_later(GRACE_S, self._give_up)

    def _give_up(self) -> None:
        if not self._num_clients and self._running is not None:
            self._running.abandon()


class Replays:
    """Answers by tenant and key."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Replay] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, caller: Caller, key: str, digest: bytes) -> Replay | None:
        """The answer of this key, None where there is none. Raises HttpError when it belongs to another request."""
        self._tidy()
        known = self._known.get((caller.tenant.tenant_id, key))
        if known is not None and known.digest != digest:
            raise HttpError(
                "conflict",
                f"this {HEADER} has been used for another request within a day; choose a new one for each request",
                param=HEADER,
            )
        return known

    def begin(
        self, front: Front, caller: Caller, key: str, digest: bytes, begin: Callable[[], Awaitable[Writer]]
    ) -> Replay:
        """Answer a request under this key, whoever reads."""
        place = (caller.tenant.tenant_id, key)
        made = self._known[place] = Replay(digest)

        async def run() -> None:
            error: BaseException | None = None
            is_good = False
            try:
                is_good = await _answer(front, made, await begin())
            except Exception as raised:
                error = raised
            if not is_good:
                del self._known[place]
            made.end(error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return made

    def _tidy(self) -> None:
        """Forget what is too old, and of what has ended the oldest while all is too much."""
        oldest_s = time.monotonic() - KEEP_S
        num_bytes = sum(one.num_bytes for one in self._known.values())
        for place, one in list(self._known.items()):
            if one.is_over and (one.ended_s < oldest_s or num_bytes > MAX_BYTES):
                del self._known[place]
                num_bytes -= one.num_bytes


async def _answer(front: Front, made: Replay, writer: Writer) -> bool:
    """Run what a writer asks for; whether it ended well. Raises what refuses it, or Gone."""
    running = writer.running
    made.runs_as(running)
    if not (isinstance(writer, StreamWriter) and writer.is_stream):
        whole = msgspec.json.encode(await whole_answer(writer))
        made.begin({"content-type": "application/json", **writer.headers}, is_stream=False)
        made.add(whole)
        return True
    await front.admit(running)
    try:
        made.keep_alive = writer.keep_alive
        made.begin({**sse.HEADERS, **writer.headers}, is_stream=True)
        silence = writer.keep_alive()
        async with contextlib.aclosing(writer.events()) as events:
            async for event in events:
                if event != silence:
                    made.add(event)
        return running.marks.failure is None
    finally:
        front.finish(running)


def read_key(request: Request) -> str | None:
    """The request's key, None where it brings none. Raises HttpError."""
    key = request.headers.get(HEADER)
    if key is not None and not _GOOD_KEY.fullmatch(key):
        raise HttpError(
            "invalid_value",
            f"{HEADER} must be 1 to 255 visible ASCII characters, got {len(key)}",
            param=HEADER,
        )
    return key


async def respond_once(
    request: Request, key: str, body: bytes, begin: Callable[[Caller], Awaitable[Writer]]
) -> Response:
    """The answer to a request with a key: a new one, or the one there is.

    Raises what refuses or ends the request before its first byte, and Gone when the client leaves.
    """
    front: Front = request.state.front
    caller: Caller = request.state.caller
    digest = hashlib.sha256(request.url.path.encode() + b"\0" + body).digest()
    replays: Replays = request.state.replays
    replay = replays.find(caller, key, digest)
    is_old = replay is not None
    if replay is None:
        keyed = replace(caller, idempotency_key=key)

        async def begun() -> Writer:
            writer = await begin(keyed)
            request.state.running = writer.running
            return writer

        replay = replays.begin(front, caller, key, digest, begun)
    gone = asyncio.Event()

    def left() -> None:
        gone.set()
        replay.tell()

    with replay.client():
        async with watching(request.receive, left):
            while not (replay.is_over or (replay.headers is not None and replay.is_stream)):
                await replay.changed()
                if gone.is_set():
                    raise Gone
    if replay.headers is None:
        assert replay.error is not None
        raise replay.error
    headers = {**replay.headers, **({REPLAYED: "true"} if is_old else {})}
    if not replay.is_stream:
        return Response(b"".join(replay.chunks), headers=headers)
    return _ReplayStream(replay, headers, front.config.keep_alive_s)


class _ReplayStream(Response):
    """The events of a replay from its first on."""

    def __init__(self, replay: Replay, headers: Mapping[str, str], keep_alive_s: float) -> None:
        super().__init__(None, 200, headers)
        del self.headers["content-length"]
        self._replay = replay
        self._keep_alive_s = keep_alive_s

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.Event()

        def left() -> None:
            gone.set()
            self._replay.tell()

        with self._replay.client():
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with watching(receive, left), contextlib.aclosing(self._events(gone)) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            if self._replay.error is not None:
                raise self._replay.error  # without its end the client does not take it for whole
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, gone: asyncio.Event) -> AsyncGenerator[bytes]:
        replay, place = self._replay, 0
        while True:
            while place < len(replay.chunks):
                yield replay.chunks[place]
                place += 1
            if replay.is_over:
                return
            has_changed = await replay.changed(self._keep_alive_s)
            if gone.is_set():
                raise Gone
            if not has_changed:
                yield replay.keep_alive()
