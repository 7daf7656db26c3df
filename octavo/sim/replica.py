"""One engine under a virtual clock: the real scheduler and the real order of turns; only the computing is a number.

Time is in whole nanoseconds. What arrives while a step runs waits in `inbox` until the turn is over, as an engine's
thread takes its commands between turns.
"""

from __future__ import annotations

import enum
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from octavo.core.cache import Counters
from octavo.core.limits import Limits
from octavo.core.scheduler import Scheduler
from octavo.core.sequence import Begun, Request, SamplingParams, Sequence
from octavo.core.step import Event, Finished, Output, Preempted, Step, StepResult, Token
from octavo.core.stretch import Stretch, measure, skip
from octavo.core.turns import TurnTaker
from octavo.errors import Bug, RequestError
from octavo.sim.served import Served, Tally
from octavo.sim.timing import NS_PER_S, Affine, Timing, fixed_tokens, step_ns, stretch_ns, work_of

if TYPE_CHECKING:
    from octavo.sim.lockstep import Lockstep

MAX_TURNS = 4096
"""Turns skipped at once; more only means another stretch."""


class Phase(enum.Enum):
    """What a replica does when it is due."""

    IDLE = "idle"
    BEGIN = "begin"
    GONE = "gone"
    END = "end"
    SKIP = "skip"
    WAIT = "wait"


@dataclass(slots=True)
class Skipping:
    """Turns that are skipped, and when each ends; the step launched at the end of one lasts `durations_ns` of it."""

    stretch: Stretch
    ends_ns: list[int]
    durations_ns: list[int]

    def cut(self, now_ns: int) -> int:
        """Something has come: stop after the turn that is under way. Returns when that ends."""
        index = bisect_left(self.ends_ns, now_ns)
        del self.ends_ns[index + 1 :]
        return self.ends_ns[-1]


@dataclass(frozen=True, slots=True)
class Submit:
    """Take this request in, from the token on that its client has last."""

    served: Served


@dataclass(frozen=True, slots=True)
class Land:
    """Go on with this request: the keys and values of its prompt have arrived from where that was computed."""

    served: Served


@dataclass(frozen=True, slots=True)
class Cancel:
    """End this request; its client has left."""

    served: Served


Command = Submit | Land | Cancel


def ends_of(stretches: Iterable[Stretch], durations_ns: list[int], first_ns: int, turn_ns: int) -> list[int]:
    """When turns end that begin with a step under way until `first_ns`, as long as all stretches reach.

    durations_ns  of the step launched at the end of each; `turn_ns` pass before that begins
    """
    steps_ns = [one + turn_ns for one in durations_ns] if turn_ns else durations_ns
    ends_ns = list(accumulate(steps_ns, initial=first_ns))[:-1]
    for stretch in stretches:
        while ends_ns and not stretch.reaches(ends_ns[-1] / NS_PER_S):
            ends_ns.pop()
    return ends_ns


@lru_cache(maxsize=65536)
def params_of(max_tokens: int) -> SamplingParams:
    """Draw exactly so many tokens, whatever they are."""
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def request_of(served: Served, max_tokens: int, *, is_shared: bool) -> Request:
    """A job as the scheduler sees it, with what it has begun elsewhere.

    max_tokens  of output, those begun counted
    is_shared  its tokens may be those of others; otherwise any tokens will do
    """
    job = served.job
    begun = (Begun(0, served.output_tokens()),) if served.num_tokens else ()
    return Request(
        request_id=served.request_id,
        prompt=served.tokens() if is_shared else served.any_tokens(),
        params=params_of(max_tokens),
        priority=job.priority,
        client=job.client,
        begun=begun,
    )


class Decider(Protocol):
    """What a replica asks of a scheduler: the real one, or a baseline."""

    limits: Limits

    @property
    def idle(self) -> bool: ...

    @property
    def counters(self) -> Counters: ...

    @property
    def sequences(self) -> Mapping[int, Any]: ...

    @property
    def asks_again_s(self) -> float | None:
        """When a step will be planned though nothing happens until then; None for never."""
        ...

    @property
    def num_used_blocks(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    def submit(self, request: Request, now_s: float) -> None: ...

    def cancel(self, request_id: str, now_s: float) -> list[Event]: ...

    def plan(self, now_s: float) -> Step | None: ...

    def commit(self, step: Step, result: StepResult, now_s: float) -> list[Event]: ...


class CacheMissed(Exception):
    """A sequence that was preempted would find its own blocks, and nobody looks."""


class Replica(TurnTaker[None]):
    """A scheduler, its device's timing, and what is on its way.

    on_first, on_end  told of a request's first token, and of its end
    on_move           set where only prompts are computed: a request goes on elsewhere after its first token here
    is_exact          every step is played
    is_blind          the scheduler's cache is off only because nothing would be found
    due_ns            when `fire` is to be called next; None while there is nothing to do
    """

    def __init__(
        self,
        number: int,
        scheduler: Decider,
        timing: Timing,
        *,
        on_first: Callable[[Served], None],
        on_end: Callable[[Served], None],
        is_exact: bool = False,
        on_move: Callable[[Served], None] | None = None,
        is_blind: bool = False,
    ) -> None:
        super().__init__(scheduler.limits.max_num_batched_tokens)
        self.number = number
        self.scheduler = scheduler
        self.timing = timing
        self._needs_slices = timing.model.needs_slices
        if isinstance(scheduler, Scheduler):
            scheduler.tell_costs(fixed_tokens(timing.model))
        self._is_exact = is_exact
        self._is_blind = is_blind
        self._on_move = on_move
        self._landing: list[Served] = []
        self._skipping: Skipping | None = None
        self.tally = Tally(replica=number, num_kv_blocks=scheduler.limits.num_blocks - 1)
        self.inbox: list[Command] = []
        self.live: dict[str, Served] = {}
        self.phase = Phase.IDLE
        self.due_ns: int | None = None
        self.now_ns = 0
        self._ends_ns = 0
        self._planned_ns = -1
        self._by_seq: dict[int, Served] = {}
        self._on_first, self._on_end = on_first, on_end
        host = timing.host
        self._turn_ns = round(host.turn_s * NS_PER_S)
        self._plan_ns = round(host.plan_s * NS_PER_S)

    @property
    def driver(self) -> Replica | Lockstep:
        """Whom the world is to fire when its turn comes."""
        return self

    def send(self, command: Command, now_ns: int) -> None:
        """Hand a command over; it is taken between turns, at once when nothing runs."""
        self.inbox.append(command)
        if self.phase in (Phase.IDLE, Phase.WAIT):
            self.phase, self.due_ns = Phase.BEGIN, now_ns
        elif self._skipping is not None:
            self.due_ns = self._skipping.cut(now_ns)

    def kill(self, now_ns: int) -> list[Served]:
        """It is gone, and all it holds; what it had told by now is known. Returns the requests that it had."""
        skipping = self._skipping
        if skipping is not None:
            del skipping.ends_ns[bisect_right(skipping.ends_ns, now_ns) :]
            if skipping.ends_ns:
                self._skip(skipping)
        left = [command.served for command in self.inbox if not isinstance(command, Cancel)]
        lost = [*self.live.values(), *self._landing, *(one for one in left if one.reason is None)]
        self.phase, self.due_ns, self._skipping = Phase.GONE, None, None
        self.live, self.inbox, self._landing, self._by_seq = {}, [], [], {}
        return lost

    def fire(self, now_ns: int) -> None:
        """Do what is due now."""
        self.now_ns = now_ns
        if self._skipping is not None:
            self._skip(self._skipping)
        elif self.phase is Phase.END:
            assert self.awaited is not None
            self.end_turn(self._result(self.awaited))
        self._take_commands()
        self._begin()

    def _begin(self) -> None:
        measured = self._measure()
        if measured is not None:
            stretch, durations_ns = measured
            ends_ns = ends_of((stretch,), durations_ns, self._ends_ns, self._turn_ns)
            if ends_ns:
                self._skipping = Skipping(stretch, ends_ns, durations_ns)
                self.phase, self.due_ns = Phase.SKIP, ends_ns[-1]
                return
        self._play()
        if self.awaited is not None:
            self.phase, self.due_ns = Phase.END, self._ends_ns
        elif self.scheduler.idle:
            self.phase, self.due_ns = Phase.IDLE, None
        elif (again_s := self.scheduler.asks_again_s) is not None:
            self.phase, self.due_ns = Phase.WAIT, max(math.ceil(again_s * NS_PER_S), self.now_ns + 1)
        else:
            raise Bug(f"{len(self.scheduler.sequences)} sequences wait, and the scheduler plans nothing")

    def _play(self) -> None:
        """Begin a turn as an engine does."""
        step = self.begin_turn()
        if step is None and self.awaited is not None:
            self.begin_turn()  # launched just now: the next turn begins at once

    def _measure(self, group_tokens: float | None = None) -> tuple[Stretch, list[int]] | None:
        """The turns that need not be played from here, and what the step launched at the end of each takes."""
        awaited, scheduler = self.awaited, self.scheduler
        if awaited is None or self._is_exact or self._landing or not isinstance(scheduler, Scheduler):
            return None
        if len(awaited.slices) > self._long_tokens:
            return None
        stretch = measure(scheduler, awaited)
        if stretch is None:
            return None
        work = work_of(awaited, with_slices=self._needs_slices)
        if group_tokens is not None:
            work = work._replace(group_tokens=group_tokens)
        return stretch, stretch_ns(self.timing.model, work, min(stretch.num_turns, MAX_TURNS))

    def _skip(self, skipping: Skipping) -> None:
        """Play a stretch up to now."""
        self._skipping = None
        awaited, scheduler = self.awaited, self.scheduler
        assert awaited is not None, "a stretch has a step under way"
        assert isinstance(scheduler, Scheduler), "no other can be skipped"
        ends_ns, by_seq = skipping.ends_ns, self._by_seq
        count, width = len(ends_ns), len(awaited.slices)
        durations = skipping.durations_ns[:count]

        def drawn(sequence: Sequence, num_tokens: int) -> range:
            first = by_seq[sequence.seq_id].first_output + len(sequence.tokens)
            return range(first, first + num_tokens)

        waiting = scheduler.num_waiting
        skipped = skip(scheduler, awaited, skipping.stretch, [one / NS_PER_S for one in ends_ns], drawn)
        self.awaited = skipped.step
        turn_ns = self._turn_ns
        self._ends_ns = ends_ns[-1] + turn_ns + durations[-1]
        starts_ns = [*ends_ns, self._ends_ns]
        self.tally.skipped(ends_ns[0] + turn_ns, starts_ns, turn_ns, width, skipped.used, waiting)
        del durations[-1]
        gaps = [one + turn_ns for one in durations] if turn_ns else durations
        longest = max(gaps, default=0)
        self.tally.gaps_of(gaps, width, is_sorted=isinstance(self.timing.model, Affine))
        for piece in awaited.slices:
            served = by_seq[piece.seq_id]
            served.num_tokens += count
            gap_ns = ends_ns[0] - served.last_ns
            served.longest_gap_ns = max(served.longest_gap_ns, gap_ns, longest)
            self.tally.gap(gap_ns, 1)
            served.last_ns = ends_ns[-1]

    def _take_commands(self) -> None:
        if not self.inbox and not self._landing:
            return
        commands, self.inbox = self.inbox, []
        now_s = self.now_ns / NS_PER_S
        for command in commands:
            served = command.served
            if isinstance(command, Land):
                self._landing.append(served)
            elif isinstance(command, Submit):
                self._submit(served, now_s)
            elif served.request_id in self.live:
                self._tell(self.scheduler.cancel(served.request_id, now_s))
            elif served in self._landing:
                self._landing.remove(served)
                served.end("cancelled", self.now_ns)
                self._on_end(served)
        while self._landing and self._has_room(self._landing[0]):
            self._land(self._landing.pop(0), now_s)

    def _has_room(self, served: Served) -> bool:
        """A seat, and blocks for what it has and one token more; those who came before it come first."""
        scheduler = self.scheduler
        assert isinstance(scheduler, Scheduler)
        limits = scheduler.limits
        needed = -(-(served.num_prompt_tokens + served.num_tokens + 1) // limits.block_tokens)
        has_seat = scheduler.roster.num_seats < limits.max_num_seqs and not scheduler.num_waiting
        return scheduler.idle or (has_seat and needed <= scheduler.cache.pool.num_available)

    def _land(self, served: Served, now_s: float) -> None:
        """What was computed is cached here, and it is submitted; the rest of a last block is computed again.

        Its latest token has been drawn, and not computed.
        """
        scheduler = self.scheduler
        assert isinstance(scheduler, Scheduler)
        scheduler.cache.install((*served.tokens(), *served.output_tokens()[:-1]))
        self._submit(served, now_s)

    def _submit(self, served: Served, now_s: float) -> None:
        try:
            self.scheduler.submit(self._request(served), now_s)
        except RequestError as error:
            served.refusal = str(error)
            served.end("refused", self.now_ns)
            self._on_end(served)
            return
        self.live[served.request_id] = served

    def _request(self, served: Served) -> Request:
        max_tokens = served.job.num_output_tokens
        if self._on_move is not None:
            max_tokens = min(served.num_tokens + 1, max_tokens)
        return request_of(served, max_tokens, is_shared=self.scheduler.limits.enable_prefix_caching)

    def _planned(self) -> Step | None:
        step = self.scheduler.plan(self.now_ns / NS_PER_S)
        if step is None:
            return None
        self._planned_ns = self.now_ns
        by_seq = self._by_seq
        for piece in step.slices:
            if piece.seq_id not in by_seq:
                sequence = self.scheduler.sequences[piece.seq_id]
                served = self.live.get(sequence.request.request_id)
                if served is None:
                    continue  # it has ended and is padding
                by_seq[piece.seq_id] = served
                if served.scheduled_ns is None:
                    served.scheduled_ns = self.now_ns
                    served.num_cached_tokens = min(sequence.num_cached_tokens, served.num_prompt_tokens)
        return step

    def _launch(self, step: Step) -> None:
        work = work_of(step, with_slices=self._needs_slices)
        duration_ns = step_ns(self.timing.model, work)
        gap_ns = self._gap_ns()
        self._ends_ns = self.now_ns + gap_ns + duration_ns
        used, waiting = self.scheduler.num_used_blocks, self.scheduler.num_waiting
        self.tally.launched(self.now_ns + gap_ns, duration_ns, work, used, waiting)

    def _gap_ns(self) -> int:
        """From now until the step planned last begins."""
        return self._turn_ns + (self._plan_ns if self._planned_ns == self.now_ns else 0)

    def _result(self, step: Step) -> StepResult:
        outputs = []
        for piece in step.slices:
            tokens: tuple[int, ...] = ()
            if piece.samples:
                served = self._by_seq.get(piece.seq_id)
                first = 0 if served is None else served.first_output + piece.start + piece.num_tokens
                tokens = (first,)
            outputs.append(Output(piece.seq_id, piece.epoch, tokens))
        return StepResult(step.number, tuple(outputs))

    def _committed(self, step: Step, result: StepResult) -> None:
        self._tell(self.scheduler.commit(step, result, self.now_ns / NS_PER_S))

    def _is_wanted(self) -> bool:
        return not self.scheduler.idle

    def _tell(self, events: list[Event]) -> None:
        now_ns, live = self.now_ns, self.live
        for event in events:
            served = live[event.request_id]
            if type(event) is Token:
                self._on_token(served, now_ns)
            elif isinstance(event, Finished):
                del live[event.request_id]
                self._by_seq.pop(event.seq_id, None)
                if self._on_move is not None and not served.is_complete and event.reason == "length":
                    self._on_move(served)
                    continue
                served.end(event.reason, now_ns)
                self._on_end(served)
            elif isinstance(event, Preempted):
                if self._is_blind:
                    raise CacheMissed
                served.preemptions += 1

    def _on_token(self, served: Served, now_ns: int) -> None:
        served.num_tokens += 1
        if served.is_pending:
            self._on_first(served)
        if served.first_ns is None:
            served.first_ns = served.last_ns = now_ns
            return
        gap_ns = now_ns - served.last_ns
        served.last_ns = now_ns
        if gap_ns > served.longest_gap_ns:
            served.longest_gap_ns = gap_ns
        self.tally.gap(gap_ns, 1)
