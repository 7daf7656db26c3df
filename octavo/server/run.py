"""From settings to a server that has come and gone."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TextIO

import uvicorn

from octavo.api.faults import HttpError
from octavo.config import EngineConfig, ServerConfig
from octavo.errors import Bug, ConfigError
from octavo.link import frames
from octavo.obs.log import Log
from octavo.server import admin, keyring
from octavo.server.app import build_app
from octavo.server.batches import keeping
from octavo.server.fleet import Fleet
from octavo.server.front import Front
from octavo.server.meters import watch_loop
from octavo.server.protocol import Http, http_settings
from octavo.server.replica import COMMAND
from octavo.server.supervisor import Supervisor

DRAIN_POLL_S = 0.05
LAST_WORDS_S = 2.0
"""For error events to reach the clients of requests that are cut short."""

OnReady = Callable[[str, frames.Ready], None]


async def serve(
    engine: EngineConfig,
    server: ServerConfig,
    *,
    on_loading: Callable[[frames.Loading], None],
    on_ready: OnReady,
    command: Sequence[str] = COMMAND,
    log_to: TextIO | None = None,
    manager_says: Mapping[str, str] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; running requests get `drain_s` to end, a second signal ends them at once.

    on_ready      is given the address, as a client would write it, and what the engine said
    manager_says  variables a service manager has set, see `supervisor`
    Raises ConfigError (the address is taken, a setting does not fit) and LoadError.
    """
    log = Log(log_to or sys.stderr, time.time, as_json=server.log_format == "json")
    keyring.read(server.keys, server.api_key)  # what is wrong there is better said before a model is loaded
    listening = bind(server.host, server.port)
    try:
        admin_sockets = admin.listening(server, bind)
    except BaseException:
        listening.close()
        raise
    fleet = Fleet(
        engine, log, command, num_engines=server.engines, hold_s=server.hold_s, routing=server.routing
    )
    stop, manager = _Signals(), Supervisor(manager_says or {})

    def show(progress: frames.Loading) -> None:
        percent = f" {100 * progress.done // progress.total} %" if progress.total else ""
        manager.busy(f"loading {progress.phase}{percent}")
        on_loading(progress)

    def announce(ready: frames.Ready) -> None:
        on_ready(address(listening), ready)
        manager.ready(f"serving {ready.model} on {address(listening)}")

    try:
        with stop.installed():
            starting = asyncio.create_task(fleet.start(show))
            await _first(starting, stop.once)
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting})
                return
            ready = await starting
            front = Front(server, fleet, ready, log)
            try:
                operator = admin.Operator(front, stop.once.set)
                async with keeping(front), admin.serving(operator, admin_sockets), _reloading(front):
                    await _serve_http(front, listening, stop, manager, lambda: announce(ready))
            finally:
                await front.recordings.close()
                front.close()
    finally:
        manager.tell("STOPPING=1")
        await fleet.stop()
        listening.close()
        admin.close(admin_sockets, server)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError that says what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, or asyncio does not see that it is, and leaves waiting for acknowledgements (40 ms each) on.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port, or 0 for any free one"
        ) from error
    listening.setblocking(False)
    return listening


def address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.asynccontextmanager
async def _reloading(front: Front) -> AsyncIterator[None]:
    """SIGHUP reads the file of keys again; one that is wrong is logged and changes nothing.

    SIGUSR2 saves a recording.
    """

    def reload() -> None:
        try:
            front.log.note("keys_read", keys=front.reload_keys())
        except ConfigError as error:
            front.log.error("keys_not_read", because=error)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGUSR2, front.recordings.save_soon, "a signal asked for it")
    try:
        yield
    finally:
        for number in (signal.SIGHUP, signal.SIGUSR2):
            loop.remove_signal_handler(number)


class _Signals:
    """SIGTERM and SIGINT, counted."""

    def __init__(self) -> None:
        self.once = asyncio.Event()
        self.twice = asyncio.Event()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _came(self) -> None:
        (self.twice if self.once.is_set() else self.once).set()


async def _serve_http(
    front: Front,
    listening: socket.socket,
    stop: _Signals,
    manager: Supervisor,
    announce: Callable[[], None],
) -> None:
    config = uvicorn.Config(
        build_app(front),
        **http_settings(),
        timeout_graceful_shutdown=int(LAST_WORDS_S),
    )
    http = Http(config)
    serving = asyncio.create_task(http.serve(sockets=[listening]))
    lag = asyncio.create_task(watch_loop(front.metrics))
    try:
        while not http.started and not serving.done():
            await asyncio.sleep(0.01)
        announce()
        watching = front.fleet.watching
        assert watching is not None
        async with manager.watched(lambda: not watching.done()):
            await _first(serving, watching, stop.once)
            if watching.done():
                raise Bug("nobody watches the engine any more") from watching.exception()
            manager.busy(f"draining {len(front.running)} requests")
            await _drain(front, stop)
    finally:
        http.should_exit = True
        lag.cancel()
        await serving


async def _drain(front: Front, stop: _Signals) -> None:
    """Refuse what is new, let what runs end, then tell the rest in so many words that it will not."""
    front.is_draining = True
    if front.batches is not None:
        await front.batches.stop()
    front.log.note("draining", requests=len(front.running), within_s=front.config.drain_s)
    deadline_s = time.monotonic() + front.config.drain_s
    while front.running and time.monotonic() < deadline_s and not stop.twice.is_set():
        await asyncio.sleep(DRAIN_POLL_S)
    if front.running:
        front.log.warn("cut_short", requests=len(front.running))
    for running in list(front.running):
        running.fail(HttpError("shutting_down", "the server is shutting down", retry_after_s=5))
    deadline_s = time.monotonic() + LAST_WORDS_S
    while front.running and time.monotonic() < deadline_s:
        await asyncio.sleep(DRAIN_POLL_S)


async def _first(*things: asyncio.Task[object] | asyncio.Event) -> None:
    """Wait until one of the tasks is done or one of the events is set."""
    waits = [thing for thing in things if isinstance(thing, asyncio.Task)]
    own = [asyncio.create_task(thing.wait()) for thing in things if isinstance(thing, asyncio.Event)]
    try:
        await asyncio.wait({*waits, *own}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in own:
            task.cancel()
