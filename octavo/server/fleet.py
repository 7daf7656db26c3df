"""Keeps an engine running and routes requests to it.

One replica today. When it dies, the requests on it fail with `engine_error`, a new one is started with the next
epoch, and until that is ready new requests are refused with a time to come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections import deque
from collections.abc import Sequence

from octavo.api.faults import HttpError
from octavo.config import EngineConfig
from octavo.errors import LoadError, OctavoError
from octavo.link import frames
from octavo.link.wire import LinkError
from octavo.obs.log import Log
from octavo.server.replica import COMMAND, EXIT_S, OnLoading, Replica
from octavo.server.running import Running

STALLED_AFTER_S = 120.0
"""No step for so long while sequences run means a hang; a large step on a slow machine takes seconds."""
SHORT_LIFE_S = 30.0
WAKE_POLL_S = 0.02
MAX_PAUSE_S = 30.0


class Phase(enum.Enum):
    """Where the engine is in its life, as `/health` names it."""

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    SLEEPING = "sleeping"
    STOPPED = "stopped"


class Fleet:
    """Starts, watches, restarts and stops the engine.

    watching  the task that does so after `start`; it ends before `stop` only by a defect of ours
    """

    def __init__(self, config: EngineConfig, log: Log, command: Sequence[str] = COMMAND) -> None:
        self._config = config
        self._log = log
        self._command = command
        self._replica: Replica | None = None
        self.watching: asyncio.Task[None] | None = None
        self._running: dict[str, Running] = {}
        self._stepped_at_s = 0.0
        self.phase = Phase.LOADING
        self.loading: frames.Loading | None = None
        self.ready: frames.Ready | None = None
        self.stats: frames.Stats | None = None
        self.num_restarts = 0
        self.last_failure: str | None = None
        self._resets: deque[asyncio.Future[int]] = deque()
        self._is_put_to_sleep = False
        self._awake = asyncio.Event()
        self._awake.set()

    async def start(self, on_loading: OnLoading) -> frames.Ready:
        """Start the first engine and watch over it from then on. Raises ConfigError or LoadError."""
        ready = await self._start_replica(on_loading)
        self.watching = asyncio.create_task(self._watch())
        return ready

    async def stop(self, within_s: float = EXIT_S) -> None:
        """End the engine for good; requests still running fail."""
        self.phase = Phase.STOPPED
        if self.watching is not None:
            self.watching.cancel()
            await asyncio.wait({self.watching})
        self._fail_all(HttpError("shutting_down", "the server is shutting down", retry_after_s=5))
        if self._replica is not None:
            await self._replica.stop(within_s)

    @property
    def pid(self) -> int | None:
        """The engine's process id."""
        return self._replica.pid if self._replica else None

    @property
    def epoch(self) -> int:
        """Counts engines started, from 0."""
        return self.num_restarts

    @property
    def num_running(self) -> int:
        """Prompts sent to the engine and not yet ended."""
        return len(self._running)

    @property
    def stalled_s(self) -> float | None:
        """How long running sequences have not moved, when that is too long; None when all is well."""
        still_s = time.monotonic() - self._stepped_at_s
        return still_s if self.phase is Phase.READY and still_s > STALLED_AFTER_S else None

    def submit(self, running: Running) -> None:
        """Send every prompt of a request. Raises HttpError when no engine can take it now."""
        if self.phase is not Phase.READY or self._replica is None:
            raise self._not_ready()
        for submit in running.submits:
            self._running[submit.request_id] = running
        try:
            self._replica.post(*running.submits)
        except LinkError as error:
            for submit in running.submits:
                self._running.pop(submit.request_id, None)
            raise self._not_ready() from error

    def cancel(self, running: Running) -> None:
        """Nobody waits for this request any more: tell the engine to end what of it still runs."""
        cancels = [frames.Cancel(request_id=request_id) for request_id in sorted(running.unfinished)]
        for cancel in cancels:
            self._running.pop(cancel.request_id, None)
        if cancels and self._replica is not None:
            with contextlib.suppress(LinkError):
                self._replica.post(*cancels)

    async def reset_prefix_cache(self) -> int:
        """Have the engine forget what nothing running uses. Returns how many blocks. Raises HttpError."""
        if self.phase is not Phase.READY or self._replica is None:
            raise self._not_ready()
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._resets.append(done)
        try:
            self._replica.post(frames.ResetCache())
        except LinkError as error:
            self._resets.remove(done)
            raise self._not_ready() from error
        return await done

    async def sleep(self, within_s: float) -> None:
        """End the engine process, which gives back all its memory; what runs has `within_s` to end.

        Raises HttpError when no engine runs.
        """
        if self.phase is not Phase.READY or self._replica is None:
            raise self._not_ready()
        self.phase = Phase.SLEEPING
        self._is_put_to_sleep = True
        self._awake.clear()
        self._log.note("engine_sleeps", requests=self.num_running)
        await self._replica.stop(within_s)

    async def wake(self) -> frames.Ready:
        """Start an engine again, once the one that falls asleep has ended, and wait until it serves.

        Raises HttpError when it does not sleep or cannot start.
        """
        if self.phase is not Phase.SLEEPING:
            raise HttpError("conflict", f"the engine is {self.phase.value}, not sleeping")
        self.phase = Phase.RESTARTING
        self._awake.set()
        restarts = self.num_restarts
        while self.phase is not Phase.READY:
            await asyncio.sleep(WAKE_POLL_S)
            if self.num_restarts > restarts + 1 or self.phase is Phase.STOPPED:
                raise HttpError("no_ready_replica", f"the engine does not start: {self.last_failure}")
        assert self.ready is not None
        return self.ready

    def _not_ready(self) -> HttpError:
        if self.phase is Phase.SLEEPING:
            return HttpError(
                "no_ready_replica", "the engine sleeps until the operator wakes it", retry_after_s=60
            )
        if self.phase is Phase.STOPPED:
            return HttpError("shutting_down", "the server is shutting down", retry_after_s=5)
        load_s = self.ready.load_s if self.ready else 5.0
        if self.phase is Phase.LOADING:
            return HttpError("model_loading", "the model is being loaded", retry_after_s=load_s)
        return HttpError("no_ready_replica", "the engine is being started again", retry_after_s=load_s)

    async def _start_replica(self, on_loading: OnLoading) -> frames.Ready:
        def note(progress: frames.Loading) -> None:
            self.loading = progress
            on_loading(progress)

        self._replica = Replica(self._config, self.epoch, self._command)
        ready = await self._replica.start(note)
        if self.ready is not None and ready.fingerprint != self.ready.fingerprint:
            await self._replica.kill()
            raise LoadError(
                f"the weights of {ready.model} on disk are not those this server was started with; start it anew"
            )
        self.ready = ready
        self._stepped_at_s = time.monotonic()
        self.stats = None
        self.phase = Phase.READY
        self._log.note(
            "engine_ready",
            pid=self.pid,
            epoch=self.epoch,
            load_s=self.ready.load_s,
            blocks=self.ready.num_kv_blocks,
        )
        return self.ready

    async def _watch(self) -> None:
        """Follow the engine until it dies, then start the next one, for ever."""
        pause_s = 0.0
        while self._replica is not None:
            born_s = time.monotonic()
            how = await self._replica.serve(self._on_frame)
            while self._resets:
                if not (done := self._resets.popleft()).done():
                    done.set_exception(HttpError("no_ready_replica", f"the engine process {how}"))
            if self._is_put_to_sleep:
                self._is_put_to_sleep = False
                self._fail_all(self._not_ready())
                await self._awake.wait()
                self.num_restarts += 1
                await self._restart(0.0)
                continue
            self.phase = Phase.RESTARTING
            self.num_restarts += 1
            self.last_failure = f"the engine process {how}"
            self._log.error("engine_died", how=how, epoch=self.epoch - 1, requests_lost=self.num_running)
            self._fail_all(
                HttpError("engine_error", f"the engine process {how} while it worked on this request")
            )
            pause_s = (
                min(max(2 * pause_s, 1.0), MAX_PAUSE_S) if time.monotonic() - born_s < SHORT_LIFE_S else 0.0
            )
            await self._restart(pause_s)

    async def _restart(self, pause_s: float) -> None:
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self._start_replica(lambda _: None)
                return
            except OctavoError as error:
                self.last_failure = str(error)
                self.num_restarts += 1
                self._log.error("engine_not_started", error=error)
                pause_s = min(max(2 * pause_s, 1.0), MAX_PAUSE_S)

    def _on_frame(self, frame: frames.ToFront) -> None:
        match frame:
            case frames.Stats():
                self._on_stats(frame)
            case frames.CacheWasReset():
                if not self._resets:
                    raise LinkError("it sent CacheWasReset unasked")
                if not (done := self._resets.popleft()).done():  # cancelled
                    done.set_result(frame.num_blocks)
            case (
                frames.Accepted() | frames.Refused() | frames.Delta() | frames.ChoiceEnded() | frames.Ended()
            ):
                running = self._running.get(frame.request_id)
                if running is None:
                    return
                if isinstance(frame, frames.Refused | frames.Ended):
                    del self._running[frame.request_id]
                running.deliver(frame)
            case _:
                raise LinkError(f"it sent {type(frame).__name__} while serving")

    def _on_stats(self, stats: frames.Stats) -> None:
        if self.stats is None or stats.num_steps != self.stats.num_steps or stats.num_running == 0:
            self._stepped_at_s = time.monotonic()
        self.stats = stats

    def _fail_all(self, error: OctavoError) -> None:
        for running in {id(running): running for running in self._running.values()}.values():
            running.fail(error)
        self._running.clear()
