"""Keeps engines running, sends each request to one, and to another when that one dies.

    submit ──> placed on a member ──frames──> Running        journal: what the client has, per choice
                  ^      │
                  │      └─ the engine dies, is replaced, hangs and is killed
                  └─ held until an engine is ready, at most `hold_s`

What a client has been told is never told again and never left out: the next engine takes up where the last frame
ended, and its results are the same to the last bit. A request under which engines crash is put in quarantine.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Sequence

from octavo.api.faults import HttpError
from octavo.config import EngineConfig
from octavo.core.route import Router
from octavo.errors import LoadError, OctavoError
from octavo.link import frames
from octavo.link.wire import LinkError
from octavo.obs.log import Log
from octavo.server.journal import Entry
from octavo.server.member import Departure, Member, Phase, Plan
from octavo.server.replica import COMMAND, EXIT_S, OnLoading
from octavo.server.running import Running

MAX_CRASHES = 2
"""Engines that may die by their own doing with a request aboard before it is suspected."""
MAX_KILLS = 20
"""The same of engines that were killed, which says little about what ran on them."""
WAKE_POLL_S = 0.02
EXPIRE_S = 0.1
HOLD_S = 60.0
PAGES_S = 1.0


class Fleet:
    """Starts, watches, restarts and stops engines, and routes requests to them.

    num_engines  replicas on this machine
    hold_s       how long a request waits while no engine is ready
    routing      a policy of `octavo.core.route`
    watching     the task that does so after `start`; it ends before `stop` only by a defect of ours
    stats        of all ready engines together, anew with each pulse
    """

    def __init__(
        self,
        config: EngineConfig,
        log: Log,
        command: Sequence[str] = COMMAND,
        *,
        num_engines: int = 1,
        hold_s: float = HOLD_S,
        routing: str = "prefix",
    ) -> None:
        self.config = config
        self._log = log
        self._hold_s = hold_s
        self._router = Router(routing)
        epochs = itertools.count()
        plan = Plan(config, command, num_engines, lambda: next(epochs), secrets.token_bytes(16))
        self.members = [Member(number, plan, self, log) for number in range(num_engines)]
        self._entries: dict[str, Entry] = {}
        self._held: dict[str, Entry] = {}
        self._is_stopped = False
        self._shown: asyncio.Future[list[tuple[int, frames.Pages]]] | None = None
        self._shown_s = 0.0
        self._show: OnLoading = lambda _: None
        self.watching: asyncio.Task[None] | None = None
        self.loading: frames.Loading | None = None
        self.ready: frames.Ready | None = None
        self.stats: frames.Stats | None = None
        self.num_resumed = 0
        self.on_crash: Callable[[int, int, str, int], None] = lambda *_: None

    async def start(self, on_loading: OnLoading) -> frames.Ready:
        """Start every engine and watch over them from then on. Raises ConfigError or LoadError."""
        self._show = on_loading
        try:
            async with asyncio.TaskGroup() as starting:
                for member in self.members:
                    starting.create_task(member.start())
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        self.watching = asyncio.create_task(self._watch())
        assert self.ready is not None
        return self.ready

    def trails(self) -> list[tuple[int, int, bytes]]:
        """What engines have written down of themselves: number, epoch, the memory of their recorder."""
        return [(member.number, member.epoch, member.trail()) for member in self.members]

    async def stop(self, within_s: float = EXIT_S) -> None:
        """End the engines for good; requests still running fail."""
        self._is_stopped = True
        if self.watching is not None:
            self.watching.cancel()
            await asyncio.wait({self.watching})
        self._fail(list(self._entries.values()), self._not_ready())
        async with asyncio.TaskGroup() as stopping:
            for member in self.members:
                stopping.create_task(member.stop(within_s))

    @property
    def phase(self) -> Phase:
        """READY while any engine is."""
        if self._is_stopped:
            return Phase.STOPPED
        phases = {member.phase for member in self.members}
        for phase in (Phase.READY, Phase.SLEEPING, Phase.RESTARTING):
            if phase in phases:
                return phase
        return Phase.LOADING

    @property
    def num_running(self) -> int:
        """Prompts taken in and not yet ended."""
        return len(self._entries)

    @property
    def num_held(self) -> int:
        """Those that wait for an engine."""
        return len(self._held)

    @property
    def num_restarts(self) -> int:
        return sum(member.num_restarts for member in self.members)

    @property
    def last_failure(self) -> str | None:
        """What the engine with the highest epoch among those that followed a failure followed."""
        failed = [member for member in self.members if member.last_failure is not None]
        return max(failed, key=lambda member: member.epoch).last_failure if failed else None

    def answer_in_s(self, running: Running) -> float:
        """About how long a request will wait for the end of its answer on the best engine; 0 where nothing is known."""
        return min((one.answer_in_s(running.submits[0]) for one in self._ready_members()), default=0.0)

    def own_s(self, running: Running) -> float:
        """About how long it takes once it has begun."""
        return min((one.forecast.own_s(running.submits[0]) for one in self._ready_members()), default=0.0)

    def submit(self, running: Running) -> None:
        """Take in every prompt of a request. Raises HttpError when no engine is there and none will be in time."""
        phase = self.phase
        is_coming = phase is Phase.RESTARTING and self._load_s <= self._hold_s
        if phase is not Phase.READY and not is_coming:
            raise self._not_ready()
        for submit in running.submits:
            entry = self._entries[submit.request_id] = Entry(submit, running)
            self._place(entry)

    def cancel(self, running: Running) -> None:
        """Nobody waits for this request any more: whatever of it still runs ends."""
        for request_id in sorted(running.unfinished):
            if self._entries.pop(request_id, None) is None:
                continue
            self._held.pop(request_id, None)
            any(member.cancel(request_id) for member in self.members)
        self._serve_held()

    async def reset_prefix_cache(self) -> int:
        """Have every engine forget what nothing running uses. Returns how many blocks. Raises HttpError."""
        ready = self._ready_members()
        if not ready:
            raise self._not_ready()
        for member in ready:
            self._router.forget(member.number)
        return sum(await asyncio.gather(*[member.reset_prefix_cache() for member in ready]))

    async def pages(self) -> list[tuple[int, frames.Pages]]:
        """What is in the pool of each engine that serves, by its number. Raises HttpError when none does.

        Looking takes an engine's time between two steps, so all who look within PAGES_S see the same.
        """
        now_s = time.monotonic()
        if self._shown is None or now_s - self._shown_s >= PAGES_S:
            self._shown, self._shown_s = asyncio.ensure_future(self._pages()), now_s
        return await asyncio.shield(self._shown)

    async def _pages(self) -> list[tuple[int, frames.Pages]]:
        ready = self._ready_members()
        if not ready:
            raise self._not_ready()
        shown = await asyncio.gather(*[member.pages() for member in ready])
        return [(member.number, pages) for member, pages in zip(ready, shown, strict=True)]

    async def sleep(self, within_s: float) -> None:
        """End every engine process, which gives back their memory; what runs has `within_s` to end.

        Raises HttpError unless all are ready.
        """
        if len(self._ready_members()) < len(self.members):
            raise self._not_ready()
        self._log.note("engine_sleeps", requests=self.num_running)
        await asyncio.gather(*[member.sleep(within_s) for member in self.members])

    async def wake(self) -> frames.Ready:
        """Start engines again and wait until they serve. Raises HttpError when they do not sleep or cannot start."""
        if self.phase is not Phase.SLEEPING:
            raise HttpError("conflict", f"the engine is {self.phase.value}, not sleeping")
        restarts = {member.number: member.num_restarts for member in self.members}
        for member in self.members:
            member.wake()
        while len(self._ready_members()) < len(self.members):
            await asyncio.sleep(WAKE_POLL_S)
            for member in self.members:
                if member.num_restarts > restarts[member.number] + 1 or self._is_stopped:
                    raise HttpError("no_ready_replica", f"the engine does not start: {member.last_failure}")
        assert self.ready is not None
        return self.ready

    async def replace(self, within_s: float) -> int:
        """Put a new engine in each place, one after the other; nothing that runs is lost. Returns how many.

        within_s  what runs on an engine may end there for so long, before another takes it up
        Raises HttpError unless one is ready.
        """
        if not self._ready_members():
            raise self._not_ready()
        for member in self.members:
            if member.phase is Phase.READY:
                self._log.note("engine_replaced", engine=member.number, requests=len(member.aboard))
                await member.replace(within_s)
        return len(self.members)

    # What members tell.

    def on_loading(self, member: Member, progress: frames.Loading) -> None:
        self.loading = progress
        if member.number == 0 and self.ready is None:
            self._show(progress)

    def on_ready(self, member: Member, ready: frames.Ready) -> None:
        del member
        first = self.ready
        if first is not None and ready.fingerprint != first.fingerprint:
            raise LoadError(
                f"the weights of {ready.model} on disk are not those this server was started with; start it anew"
            )
        self.ready = ready
        asyncio.get_running_loop().call_soon(self._serve_held)  # once the member says that it is ready

    def on_stats(self, member: Member, stats: frames.Stats) -> None:
        del member, stats
        known = [one.stats for one in self._ready_members() if one.stats is not None]
        self.stats = frames.Stats(
            num_steps=sum(one.num_steps for one in known),
            num_running=sum(one.num_running for one in known),
            num_waiting=sum(one.num_waiting for one in known),
            used_kv_blocks=sum(one.used_kv_blocks for one in known),
            num_kv_blocks=sum(one.num_kv_blocks for one in known),
            drained_per_s=sum(one.drained_per_s for one in known),
            longest_step_s=max((one.longest_step_s for one in known), default=0.0),
        )

    def on_end(self, member: Member, entry: Entry) -> None:
        del member
        self._entries.pop(entry.request_id, None)
        if entry.num_crashes >= MAX_CRASHES:
            self._serve_held()

    def on_departure(self, member: Member, aboard: list[Entry], how: Departure) -> None:
        """An engine has gone, with these requests aboard: they go on elsewhere."""
        self._router.forget(member.number)
        if how in (Departure.CRASHED, Departure.KILLED):
            self.on_crash(member.number, member.epoch, member.last_failure or "", len(aboard))
        if how is Departure.ASLEEP:
            self._fail(aboard, self._not_ready())
            return
        for entry in aboard:
            entry.num_crashes += how is Departure.CRASHED
            entry.num_kills += how is Departure.KILLED
        if how is Departure.CRASHED:
            aboard = self._without_culprit(aboard, member)
        for entry in aboard:
            if entry.num_kills > MAX_KILLS:
                text = f"{entry.num_kills} engines were killed while they worked on this request"
                self._fail([entry], HttpError("engine_error", text))
            else:
                self.num_resumed += 1
                entry.running.interrupted()
                self._place(entry)

    def _without_culprit(self, aboard: list[Entry], member: Member) -> list[Entry]:
        """Put the one request in quarantine that has seen more crashes than any other there, if that is too many."""
        most = max((entry.num_crashes for entry in aboard), default=0)
        suspects = [entry for entry in aboard if entry.num_crashes == most]
        if most < MAX_CRASHES or len(suspects) > 1:
            return aboard
        (culprit,) = suspects
        self._log.error("request_quarantined", request=culprit.request_id, crashes=most)
        text = f"{most} engines died while they worked on this request ({member.last_failure}); it is not tried again"
        self._fail([culprit], HttpError("request_quarantined", text))
        return [entry for entry in aboard if entry is not culprit]

    # Placing.

    def _ready_members(self) -> list[Member]:
        return [member for member in self.members if member.phase is Phase.READY]

    def _place(self, entry: Entry) -> None:
        """Send a request to the best engine, or hold it while there is none.

        Of requests that have seen too many crashes only one runs at a time, so that the next crash names the culprit.
        """
        ready = [] if self._must_wait_alone(entry) else self._ready_members()
        while ready:
            member, because = ready[0], "it is the only engine"
            if len(self.members) > 1:
                submit = entry.submit
                route = self._router.choose(
                    submit.prompt_token_ids,
                    submit.namespace,
                    [one.load for one in ready],
                    submit.num_public_tokens,
                )
                member, because = self.members[route.replica], route.because
                entry.num_matched = route.num_matched
            try:
                member.take(entry)
            except LinkError:
                ready.remove(member)
            else:
                entry.running.marks.placed.append((member.number, time.monotonic(), because))
                return
        if entry.held_since_s is None:
            entry.held_since_s = time.monotonic()
        self._held[entry.request_id] = entry

    def _must_wait_alone(self, entry: Entry) -> bool:
        if entry.num_crashes < MAX_CRASHES:
            return False
        aboard = (one for member in self.members for one in member.aboard.values())
        return any(one.num_crashes >= MAX_CRASHES for one in aboard)

    def _serve_held(self) -> None:
        if not self._held or not self._ready_members():
            return
        held, self._held = self._held, {}
        for entry in held.values():
            self._place(entry)

    async def _watch(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for member in self.members:
                tasks.create_task(member.live())
            tasks.create_task(self._expire())

    async def _expire(self) -> None:
        """Give up what has been held for too long."""
        while True:
            await asyncio.sleep(EXPIRE_S)
            limit_s = time.monotonic() - self._hold_s
            late = [one for one in self._held.values() if (one.held_since_s or 0.0) < limit_s]
            if late:
                self._log.warn("held_too_long", requests=len(late), hold_s=self._hold_s)
                self._fail(late, self._not_ready())

    def _fail(self, entries: Sequence[Entry], error: OctavoError) -> None:
        for entry in entries:
            self._entries.pop(entry.request_id, None)
            self._held.pop(entry.request_id, None)
            any(member.cancel(entry.request_id) for member in self.members)
            entry.running.fail(error)

    @property
    def _load_s(self) -> float:
        return self.ready.load_s if self.ready else 5.0

    def _not_ready(self) -> HttpError:
        match self.phase:
            case Phase.SLEEPING:
                return HttpError(
                    "no_ready_replica", "the engine sleeps until the operator wakes it", retry_after_s=60
                )
            case Phase.STOPPED:
                return HttpError("shutting_down", "the server is shutting down", retry_after_s=5)
            case Phase.LOADING:
                return HttpError("model_loading", "the model is being loaded", retry_after_s=self._load_s)
        return HttpError("no_ready_replica", "the engine is being started again", retry_after_s=self._load_s)
