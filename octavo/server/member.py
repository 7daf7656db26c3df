"""One place of a fleet: the engine in it, a watch over that engine, and the next engine when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from octavo.api.faults import HttpError
from octavo.config import EngineConfig
from octavo.core.route import Load
from octavo.errors import LoadError, OctavoError
from octavo.link import frames
from octavo.link.wire import LinkError
from octavo.obs.log import Log
from octavo.server.forecast import Forecast
from octavo.server.journal import Entry, FromEngine
from octavo.server.replica import Replica

Answer = frames.CacheWasReset | frames.Pages
LOOK_S = 0.5
PULSE_S = 8.0
"""An engine says something about once a second. Silence for so long, and it is taken for dead."""
FIRST_STEP_S = 120.0
STEP_FACTOR = 10.0
"""Requests aboard may stand still for so many times the longest step ever made here, and for PULSE_S; before the first
step, for FIRST_STEP_S."""
SHORT_LIFE_S = 30.0
FIRST_PAUSE_S, MAX_PAUSE_S = 0.25, 30.0
LEAVE_POLL_S = 0.02


class Phase(enum.Enum):
    """Where an engine, or the fleet as a whole, is in its life, as `/health` names it."""

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    SLEEPING = "sleeping"
    STOPPED = "stopped"


class Departure(enum.Enum):
    """Why an engine has gone: by its own doing, by somebody's who killed it, or as it was told to."""

    CRASHED = "crashed"
    KILLED = "killed"
    REPLACED = "replaced"
    ASLEEP = "asleep"


class Home(Protocol):
    """What a member tells its fleet."""

    def on_loading(self, member: Member, progress: frames.Loading) -> None: ...
    def on_ready(self, member: Member, ready: frames.Ready) -> None:
        """Raises LoadError for an engine that does not belong here."""

    def on_stats(self, member: Member, stats: frames.Stats) -> None: ...
    def on_end(self, member: Member, entry: Entry) -> None: ...
    def on_departure(self, member: Member, aboard: list[Entry], how: Departure) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """How engines are started. `next_epoch` counts them, all places together; `trail_key` is as in `Configure`."""

    config: EngineConfig
    command: Sequence[str]
    num_engines: int
    next_epoch: Callable[[], int]
    trail_key: bytes


class Member:
    """Starts, watches and restarts one engine.

    aboard        what runs on it, by request id
    phase         READY is the only one in which it takes requests
    num_restarts  engines in this place so far, less one
    """

    def __init__(self, number: int, plan: Plan, home: Home, log: Log) -> None:
        self.number = number
        self.aboard: dict[str, Entry] = {}
        self.phase = Phase.LOADING
        self.stats: frames.Stats | None = None
        self.num_restarts = 0
        self.epoch = 0
        self.last_failure: str | None = None
        self._plan = plan
        self._home = home
        self._log = log
        self._replica: Replica | None = None
        self._memory_limit: int | None = None
        self._heard_s = self._stepped_s = 0.0
        self._longest_step_s = 0.0
        self.forecast = Forecast(plan.config.scheduler.max_num_seqs)
        self._condemned: str | None = None
        self._leaves: Departure | None = None
        self._awake = asyncio.Event()
        self._questions: deque[tuple[type[Answer], asyncio.Future[Answer]]] = deque()

    @property
    def pid(self) -> int | None:
        """The engine's process id."""
        return self._replica.pid if self._replica else None

    def trail(self) -> bytes:
        """What the engine's recorder has written; of one that has gone, until the next is started."""
        return self._replica.trail() if self._replica else b""

    @property
    def num_unsent_bytes(self) -> int:
        """What the engine has not taken yet."""
        return 0 if self._replica is None else self._replica.num_unsent_bytes

    @property
    def load(self) -> Load:
        return Load(self.number, self.forecast.num_pending_tokens, len(self.aboard))

    def answer_in_s(self, submit: frames.Submit) -> float:
        """About how long a request would wait here for the end of its answer; 0 where that is not known."""
        return self.forecast.wait_s(submit, self.stats) + self.forecast.own_s(submit)

    def take(self, entry: Entry) -> None:
        """Send a request to the engine. Raises LinkError, and then the engine is as good as gone."""
        assert self._replica is not None
        self._replica.post(entry.order())
        entry.held_since_s = None
        entry.has_output = False
        self.aboard[entry.request_id] = entry
        self.forecast.enter(entry)

    def cancel(self, request_id: str) -> bool:
        """Nobody waits for this any more; whether it was here."""
        entry = self.aboard.pop(request_id, None)
        if entry is None:
            return False
        self.forecast.leave(entry)
        assert self._replica is not None
        with contextlib.suppress(LinkError):
            self._replica.post(frames.Cancel(request_id=request_id))
        return True

    async def reset_prefix_cache(self) -> int:
        """Have the engine forget what nothing running uses. Returns how many blocks. Raises HttpError."""
        answer = await self._ask(frames.ResetCache(), frames.CacheWasReset)
        assert isinstance(answer, frames.CacheWasReset)
        return answer.num_blocks

    async def pages(self) -> frames.Pages:
        """What is in the engine's pool of blocks. Raises HttpError."""
        answer = await self._ask(frames.ShowPages(), frames.Pages)
        assert isinstance(answer, frames.Pages)
        return answer

    async def _ask(self, question: frames.Frame, kind: type[Answer]) -> Answer:
        """Questions are answered in the order in which they were asked."""
        assert self._replica is not None
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        asked = (kind, answered)
        self._questions.append(asked)
        try:
            self._replica.post(question)
        except LinkError as error:
            self._questions.remove(asked)
            raise HttpError("no_ready_replica", "the engine is being started again") from error
        return await answered

    async def start(self) -> None:
        """Start the first engine. Raises ConfigError or LoadError; nothing is left running then."""
        self.epoch = self._plan.next_epoch()
        if self._replica is not None:
            self._replica.forget()
        replica = self._replica = Replica(
            self._plan.config,
            self.epoch,
            self._plan.command,
            num_engines=self._plan.num_engines,
            memory_limit=self._memory_limit,
            trail_key=self._plan.trail_key,
        )
        ready = await replica.start(lambda progress: self._home.on_loading(self, progress))
        self._heard_s = self._stepped_s = time.monotonic()
        self._condemned, self.stats = None, None
        self._memory_limit = self._memory_limit or ready.memory_limit or None
        try:
            self._home.on_ready(self, ready)
        except LoadError:
            await replica.kill()
            raise
        self.phase = Phase.READY
        self._log.note(
            "engine_ready",
            engine=self.number,
            pid=self.pid,
            epoch=self.epoch,
            load_s=ready.load_s,
            blocks=ready.num_kv_blocks,
            batch_invariant=str(ready.batch_invariant).lower(),
        )

    async def live(self) -> None:
        """Follow the engine until it goes, then start the next one, for ever."""
        pause_s = 0.0
        while self._replica is not None:
            born_s = time.monotonic()
            how = await self._served(self._replica)
            left, self._leaves = self._leaves, None
            aboard = list(self.aboard.values())
            self.aboard.clear()
            self.forecast.clear()
            self._fail_questions(how)
            if left is None:
                self.phase = Phase.RESTARTING
                self.last_failure = f"the engine process {how}"
                left = Departure.KILLED if self._replica.was_killed else Departure.CRASHED
                self._log.error(
                    "engine_died", engine=self.number, how=how, epoch=self.epoch, requests=len(aboard)
                )
            is_short = left is Departure.CRASHED and time.monotonic() - born_s < SHORT_LIFE_S
            pause_s = _longer(pause_s) if is_short else 0.0
            self._home.on_departure(self, aboard, left)
            if left is Departure.ASLEEP:
                await self._awake.wait()
            self.num_restarts += 1
            await self._restart(pause_s)

    async def sleep(self, within_s: float) -> None:
        """End the engine, which gives back all its memory; what runs has `within_s` to end."""
        assert self._replica is not None
        self.phase = Phase.SLEEPING
        self._leaves = Departure.ASLEEP
        self._awake.clear()
        await self._replica.stop(within_s)

    def wake(self) -> None:
        """Start an engine again, once the one that falls asleep has ended."""
        if self.phase is Phase.SLEEPING:
            self.phase = Phase.RESTARTING
            self._awake.set()

    async def replace(self, within_s: float) -> None:
        """Put a new engine in the old one's place: what runs has `within_s` to end and then goes on elsewhere."""
        assert self._replica is not None
        self.phase = Phase.RESTARTING
        deadline_s = time.monotonic() + within_s
        while self.aboard and time.monotonic() < deadline_s:
            await asyncio.sleep(LEAVE_POLL_S)
        self._leaves = Departure.REPLACED
        await self._replica.kill()
        while self.phase is Phase.RESTARTING:
            await asyncio.sleep(LEAVE_POLL_S)

    async def stop(self, within_s: float) -> None:
        """End the engine for good. `live` has been cancelled."""
        self.phase = Phase.STOPPED
        if self._replica is not None:
            await self._replica.stop(within_s)

    async def _restart(self, pause_s: float) -> None:
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.start()
                return
            except OctavoError as error:
                self.last_failure = str(error)
                self.num_restarts += 1
                self._log.error("engine_not_started", engine=self.number, error=error)
                pause_s = _longer(pause_s)

    async def _served(self, replica: Replica) -> str:
        """How the engine ended, as part of a sentence."""
        guard = asyncio.create_task(self._guard(replica))
        try:
            how = await replica.serve(self._on_frame)
        finally:
            guard.cancel()
            await asyncio.wait({guard})
        return f"{self._condemned} and was killed" if self._condemned is not None else how

    async def _guard(self, replica: Replica) -> None:
        """End an engine that is silent or stands still: its frames then belong to nobody, and it holds no memory."""
        looked_s = time.monotonic()
        while self._condemned is None:
            await asyncio.sleep(LOOK_S)
            now_s = time.monotonic()
            if (
                now_s - looked_s > LOOK_S + 1.0
            ):  # this process stood still itself: what has come is yet to be read
                self._heard_s = self._stepped_s = now_s
            looked_s = now_s
            if now_s - self._heard_s > PULSE_S:
                self._condemned = f"said nothing for {PULSE_S:g} s"
            elif now_s - self._stepped_s > self.patience_s:
                self._condemned = f"made no step for {self.patience_s:g} s with requests aboard"
        await replica.kill()

    @property
    def patience_s(self) -> float:
        """How long requests aboard may stand still."""
        longest_s = self._longest_step_s
        return max(PULSE_S, STEP_FACTOR * longest_s) if longest_s else FIRST_STEP_S

    def _on_frame(self, frame: frames.ToFront) -> None:
        self._heard_s = time.monotonic()
        match frame:
            case frames.Stats():
                if not self.aboard or self.stats is None or frame.num_steps != self.stats.num_steps:
                    self._stepped_s = self._heard_s
                self._longest_step_s = max(self._longest_step_s, frame.longest_step_s)
                self.stats = frame
                self._home.on_stats(self, frame)
            case frames.CacheWasReset() | frames.Pages():
                if not self._questions or not isinstance(frame, self._questions[0][0]):
                    raise LinkError(f"it sent {type(frame).__name__} unasked")
                _, answered = self._questions.popleft()
                if not answered.done():  # cancelled
                    answered.set_result(frame)
            case (
                frames.Accepted() | frames.Refused() | frames.Delta() | frames.ChoiceEnded() | frames.Ended()
            ):
                self._deliver(frame)
            case _:
                raise LinkError(f"it sent {type(frame).__name__} while serving")

    def _deliver(self, frame: FromEngine) -> None:
        entry = self.aboard.get(frame.request_id)
        if entry is None:  # cancelled meanwhile
            return
        if isinstance(frame, frames.Refused | frames.Ended):
            del self.aboard[frame.request_id]
            self.forecast.leave(entry)
            self._home.on_end(self, entry)
        if isinstance(frame, frames.Ended) and frame.error is None:
            self.forecast.note(frame)
        had_output = entry.has_output
        entry.deliver(frame)
        if entry.has_output and not had_output:
            self.forecast.begun(entry)

    def _fail_questions(self, how: str) -> None:
        while self._questions:
            _, answered = self._questions.popleft()
            if not answered.done():
                answered.set_exception(HttpError("no_ready_replica", f"the engine process {how}"))


def _longer(pause_s: float) -> float:
    """The next pause before a start, after one more short life."""
    return min(max(2 * pause_s, FIRST_PAUSE_S), MAX_PAUSE_S)
