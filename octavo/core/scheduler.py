"""The scheduler: what is waiting and what is free become a `Step`; its result becomes events.

    submit ──> waiting ──plan──> running ──commit──> Token ... Finished
                  ^                 │
                  └── preemption ───┘        beams:  running ──commit──> held ──advance──> running

One step may be in flight while the next is planned: `plan` works from counts and never needs the value of a token
that is still being computed. When a commit shows that a sequence of the already planned step has ended, or has
been preempted meanwhile, its output is ignored: the epoch has moved on.

The same calls in the same order make the same decisions. There is no clock, no randomness and no I/O in here.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

from octavo.core.admit import FreeBlocks, PrefixUnderWay, Rule, Seats, TokenBudget
from octavo.core.cache import Counters, PrefixCache
from octavo.core.draft import Draft
from octavo.core.invariants import check
from octavo.core.limits import Limits, check_request
from octavo.core.planning import Planner
from octavo.core.roster import Group, Roster
from octavo.core.sequence import Begun, Request, Sequence, State, Wait
from octavo.core.step import Event, Finished, Forked, Held, Output, Slice, Step, StepResult, Token
from octavo.core.tables import Tables
from octavo.errors import Bug, RequestError

__all__ = ["Limits", "Scheduler"]

HAS_ITS_SEATS = "its client has its share of the seats"
MAX_CLIENTS = 4096
"""Whose a realm of the cache is, is remembered of so many."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A step whose commit is awaited, with the generation of both blocks of each of its copies."""

    step: Step
    generations: tuple[tuple[int, int], ...]


class Scheduler:
    """Decides; never computes, waits or asks the time. Not safe for use by several threads."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.cache = PrefixCache(
            limits.num_blocks,
            limits.block_tokens,
            enabled=limits.enable_prefix_caching,
            window_tokens=limits.window_tokens,
            max_pinned_blocks=limits.pin_cap_blocks,
            fingerprint=limits.fingerprint,
        )
        self.tables = Tables(self.cache, limits.block_tokens, limits.span_blocks)
        self.roster = Roster(limits.max_num_seqs)
        self.flights: deque[Flight] = deque()
        rules: list[Rule] = [
            TokenBudget(),
            Seats(self.roster),
            PrefixUnderWay(self.cache, limits.block_tokens),
            FreeBlocks(self.tables),
        ]
        self._planner = Planner(
            self.roster,
            self.tables,
            rules,
            limits,
        )
        self._next_step = 0
        self._clients: OrderedDict[bytes, str] = OrderedDict()

    @property
    def sequences(self) -> Mapping[int, Sequence]:
        """All live sequences by id."""
        return self.roster.sequences

    @property
    def idle(self) -> bool:
        """Nobody waits or runs. A step may still be in flight, all its outputs to be ignored."""
        return not self.roster.sequences

    @property
    def counters(self) -> Counters:
        return self.cache.counters

    @property
    def asks_again_s(self) -> float | None:
        """When a step will be planned though nothing happens until then: never, nobody waits for the clock."""
        return None

    @property
    def num_used_blocks(self) -> int:
        """Blocks of live sequences; cached ones nobody runs on are free."""
        return self.limits.num_blocks - 1 - self.cache.pool.num_available

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for memory."""
        return self.roster.num_waiting

    def live(self, request_id: str) -> list[Sequence]:
        """The live sequences of a request, in order of their making; empty when there is none."""
        group = self.roster.groups.get(request_id)
        return list(group.members.values()) if group else []

    def submit(self, request: Request, now_s: float) -> None:
        """Queue a request.

        Raises PromptTooLong when it can never fit the window or the pool, RequestError when its id is in use, its
        prompt is empty or holds no token ids, it asks for more sequences than there are seats, or what it has begun
        could not go on.
        """
        self._at(now_s)
        if request.request_id in self.roster.groups:
            raise RequestError(
                f"request id {request.request_id!r} is in use; choose another", param="request_id"
            )
        width, total = check_request(self.limits, request)
        group = self.roster.enter(request, width)
        lineage = self.cache.lineage(request.namespace, request.num_public_tokens)
        self._clients[lineage.seed] = request.client
        self._clients.move_to_end(lineage.seed)
        if len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)
        num_draws = 0 if request.params.embed else 1 if group.is_beam or request.begun else width
        if request.begun:
            self.roster.branched(group)
        for begun in request.begun or (Begun(0, ()),):
            self.roster.join(
                group,
                Sequence(
                    self.roster.next_id(),
                    request,
                    begun.index,
                    None,
                    total,
                    [*request.prompt, *begun.tokens],
                    lineage,
                    num_draws=num_draws,
                    is_beam=group.is_beam,
                ),
            )
        self.roster.await_turn(group)

    def cancel(self, request_id: str, now_s: float) -> list[Event]:
        """End every live sequence of the request. No events when it is unknown or has ended."""
        self._at(now_s)
        events = self._waiting_events()
        for sequence in self.live(request_id):
            events.append(self._end(sequence, "cancelled"))
        return events

    def finish(self, seq_id: int, reason: str, now_s: float) -> list[Event]:
        """End one sequence for a reason seen outside (a stop text, say). No events when it has ended."""
        self._at(now_s)
        events = self._waiting_events()
        sequence = self.roster.sequences.get(seq_id)
        if sequence is not None:
            events.append(self._end(sequence, reason))
        return events

    @property
    def knows_costs(self) -> bool:
        """Whether it has been told what steps cost."""
        return self._planner.fixed_tokens is not None

    def tell_costs(self, fixed_tokens: int) -> None:
        """What steps have been measured to cost: without any tokens as much as so many more tokens."""
        self._planner.fixed_tokens = fixed_tokens

    def pin(self, tokens: Iterable[int], namespace: bytes = b"") -> int:
        """Keep the cached full blocks of this prefix from eviction. Returns how many are kept now.

        Pin again to renew it when more of the prefix has been computed. All pins together hold at most
        `limits.pin_cap_blocks`.
        """
        return self.cache.pin(tuple(tokens), namespace)

    def unpin(self, tokens: Iterable[int], namespace: bytes = b"") -> int:
        """Take a pin back. Returns how many blocks it kept, 0 when there was none."""
        return self.cache.unpin(tuple(tokens), namespace)

    def client_of(self, realm: bytes) -> str | None:
        """Who was the last to compute in that realm of the cache; None for everybody's, and where that is forgotten."""
        return self._clients.get(realm)

    def reset_cache(self) -> int:
        """Forget every cached block that nothing running uses. Returns how many."""
        return self.cache.pool.drop_idle()

    def plan(self, now_s: float) -> Step | None:
        """The next step, or None when nothing can be computed before a commit, an `advance` or a `submit`.

        At most one step may be in flight.
        """
        self._at(now_s)
        if len(self.flights) > 1:
            raise Bug(
                f"plan: steps {self.flights[0].step.number} and {self.flights[1].step.number} are in flight"
            )
        self.cache.step_number = self._next_step
        draft = self._planner.draft(is_in_flight=bool(self.flights))
        if draft.is_empty:
            return None
        slices = (*draft.decodes.values(), *draft.prefills.values())
        copies = tuple(copy for _, copy in draft.copies)
        step = Step(self._next_step, slices, copies, (), tuple(self._planner.preempted))
        self._planner.preempted.clear()
        self._next_step += 1
        generations = self.cache.pool.generations
        self.flights.append(
            Flight(step, tuple((generations[c.source], generations[c.target]) for c in copies))
        )
        self.cache.pool.defer_until(step.number)
        self.cache.counters.computed_tokens += draft.num_tokens
        return step

    @property
    def has_news(self) -> bool:
        """Whether preemptions are still to be told of."""
        return bool(self._planner.preempted or self._planner.events)

    def refused(self, draft: Draft, decodes: Ordered[Sequence]) -> tuple[Sequence | None, str | None]:
        """Who is asked first in a step in which all others decode, and why it may not begin; see `stretch.py`."""
        return self._planner.refused(draft, decodes)

    def jump(self, step: Step) -> None:
        """Its turns have been skipped: `step`, of decodes, is under way, and is the last planned."""
        num_skipped = step.number + 1 - self._next_step
        self._next_step = step.number + 1
        self.flights[0] = Flight(step, ())
        self.cache.step_number = step.number
        self.cache.pool.defer_until(step.number)
        self.cache.counters.computed_tokens += num_skipped * len(step.slices)

    def commit(self, step: Step, result: StepResult, now_s: float) -> list[Event]:
        """Take in what the oldest step in flight has produced."""
        self._at(now_s)
        events = self._waiting_events()
        self._land(step, result)
        for piece, output in zip(step.slices, result.outputs, strict=True):
            sequence = self.roster.sequences.get(piece.seq_id)
            if sequence is not None and piece.epoch == output.epoch == sequence.epoch:
                self._take_in(sequence, piece, output, events)
        return events

    def _land(self, step: Step, result: StepResult) -> None:
        """The step is over: its copies are made, and blocks that waited for it are free."""
        if not self.flights or (self.flights[0].step is not step and self.flights[0].step != step):
            raise Bug(f"commit: step {step.number} is not the oldest in flight")
        ids = [piece.seq_id for piece in step.slices]
        if result.number != step.number or [output.seq_id for output in result.outputs] != ids:
            raise Bug(f"commit: the result is not that of step {step.number}: it must answer slice by slice")
        flight = self.flights.popleft()
        pool = self.cache.pool
        pool.defer_until(self.flights[-1].step.number if self.flights else None)
        pool.settle(step.number)
        for copy, generation in zip(step.copies, flight.generations, strict=True):
            if generation != (pool.generations[copy.source], pool.generations[copy.target]):
                raise Bug(f"I20: a block of {copy} was handed out again before the copy was made")
            pool.end_copy(copy.source, copy.target)

    def _take_in(self, sequence: Sequence, piece: Slice, output: Output, events: list[Event]) -> None:
        if output.error is not None:
            events.append(self._end(sequence, "error", error=output.error))
            return
        expected = 0 if sequence.is_beam else piece.samples
        if len(output.tokens) != expected:
            raise Bug(
                f"commit: sequence {sequence.seq_id} was to draw {expected} tokens and got {len(output.tokens)}"
            )
        sequence.num_computed = piece.end
        self.cache.publish(sequence)
        if self.cache.has_window:
            self.tables.drop_passed(sequence)
        if not sequence.num_draws and piece.end == len(sequence.tokens):
            events.append(self._end(sequence, "stop"))
        elif not piece.samples:
            return
        elif sequence.is_beam:
            sequence.state = State.HELD
            sequence.waits_since_s = self.roster.now_s
            events.append(Held(sequence.request.request_id, sequence.seq_id, output.payload))
        elif piece.samples == 1:
            sequence.pending -= 1
            self._append(sequence, output.tokens[0], output.payload, events)
        else:
            self._branch(sequence, output, events)

    def _branch(self, sequence: Sequence, output: Output, events: list[Event]) -> None:
        """The prompt is computed: its choices part, one token each."""
        group = self.roster.group_of(sequence)
        sequence.num_draws = 1
        choices = [sequence, *(self._fork(sequence, group, events) for _ in output.tokens[1:])]
        self.roster.branched(group)
        for choice, token in zip(choices, output.tokens, strict=True):
            self._append(choice, token, output.payload, events)

    def _append(self, sequence: Sequence, token: int, payload: object, events: list[Event]) -> None:
        request = sequence.request
        position = len(sequence.tokens)
        sequence.tokens.append(token)
        self.roster.served_output(sequence)
        events.append(Token(request.request_id, sequence.seq_id, sequence.index, position, token, payload))
        params = request.params
        is_end = token in request.end_token_ids and not params.ignore_eos
        is_stop = is_end or token in params.stop_token_ids
        if is_stop and sequence.num_output_tokens >= params.min_tokens:
            events.append(self._end(sequence, "stop", stop_token=token))
        elif len(sequence.tokens) >= sequence.max_total_tokens:
            events.append(self._end(sequence, "length"))

    def _fork(self, parent: Sequence, group: Group, events: list[Event]) -> Sequence:
        """A new sequence with the parent's tokens and a share in its blocks."""
        child = self.roster.join(
            group,
            Sequence(
                self.roster.next_id(),
                parent.request,
                group.next_index,
                parent.turn,
                parent.max_total_tokens,
                list(parent.tokens),
                parent.lineage,
                is_beam=parent.is_beam,
                num_cached_tokens=parent.num_cached_tokens,
                cache_report=parent.cache_report,
            ),
        )
        if self.roster.is_resident(parent):
            child.state = State.RUNNING
            self.tables.fork(parent, child)
            self.roster.seat(child)
        else:
            self.roster.queue(child)
        events.append(
            Forked(parent.request.request_id, parent.seq_id, child.seq_id, child.index, len(parent.tokens))
        )
        return child

    def _end(
        self, sequence: Sequence, reason: str, *, stop_token: int | None = None, error: str | None = None
    ) -> Finished:
        self.roster.leave(sequence)
        self.tables.release(sequence)
        return Finished(
            sequence.request.request_id, sequence.seq_id, sequence.index, reason, stop_token, error
        )

    def why_waiting(self, seq_id: int) -> Wait | None:
        """Why a sequence is not being computed, and since when; None when it runs or has ended.

        The head of the queue has a reason of its own; the others wait behind it.
        """
        sequence = self.roster.sequences.get(seq_id)
        if sequence is None or sequence.state is State.RUNNING:
            return None
        if sequence.state is State.HELD:
            return Wait("a beam waits for its siblings", sequence.waits_since_s)
        head = self.roster.head
        if sequence.turn is None and not self.roster.turns.may_begin(sequence.request):
            because = HAS_ITS_SEATS
        elif head is None or sequence is head:
            because = sequence.wait_reason or "nothing has been planned since it came"
        else:
            name = head.request.request_id
            because = f"request {name!r} is before it in the queue: {head.wait_reason or 'not yet planned'}"
        return Wait(because, sequence.waits_since_s)

    def _at(self, now_s: float) -> None:
        """Time is told, never asked, and only goes forward."""
        if now_s < self.roster.now_s:
            raise Bug(f"time went back from {self.roster.now_s} s to {now_s} s")
        self.roster.tell(now_s)

    def _waiting_events(self) -> list[Event]:
        events: list[Event] = list(self._planner.events)
        self._planner.events.clear()
        return events

    def advance(self, request_id: str, beams: Ordered[tuple[int, int]], now_s: float) -> list[Event]:
        """Go on with these beams: (parent sequence id, token) each. Every live beam of the request must be held.

        The first child of a parent continues it in place, further ones fork from it, and a parent without a child
        ends with reason "beam". No beams end the request. Events: all Forked, then a Token per beam in the given
        order, then the Finished.
        """
        self._at(now_s)
        events = self._waiting_events()
        group = self.roster.groups.get(request_id)
        if group is None:
            return events
        self._check_beams(group, beams)
        parents = list(group.members.values())
        continued: set[int] = set()
        children: list[tuple[Sequence, int]] = []
        for parent_id, token in beams:
            parent = group.members[parent_id]
            if parent_id in continued:
                children.append((self._fork(parent, group, events), token))
            else:
                continued.add(parent_id)
                children.append((parent, token))
        group.has_branched = True
        for parent in parents:
            if parent.seq_id in continued:
                self._resume(parent)
        for child, token in children:
            self._append_beam(child, token, events)
        for parent in parents:
            if parent.seq_id not in continued:
                events.append(self._end(parent, "beam"))
        return events

    def _check_beams(self, group: Group, beams: Ordered[tuple[int, int]]) -> None:
        busy = [s.seq_id for s in group.members.values() if s.state is not State.HELD]
        if busy or not group.is_beam:
            raise Bug(
                f"advance: {group.request.request_id!r} is no beam search, or its beams {busy} are not held"
            )
        if len(beams) > group.width:
            raise Bug(f"advance: {len(beams)} beams where beam_width is {group.width}")
        for parent_id, _ in beams:
            if parent_id not in group.members:
                raise Bug(f"advance: sequence {parent_id} is not a live beam of {group.request.request_id!r}")

    def _resume(self, parent: Sequence) -> None:
        if self.roster.is_resident(parent):
            parent.state = State.RUNNING
        else:
            self.roster.queue(parent)

    def _append_beam(self, sequence: Sequence, token: int, events: list[Event]) -> None:
        request = sequence.request
        events.append(Token(request.request_id, sequence.seq_id, sequence.index, len(sequence.tokens), token))
        sequence.tokens.append(token)
        self.roster.served_output(sequence)
        if len(sequence.tokens) >= sequence.max_total_tokens:
            events.append(self._end(sequence, "length"))

    def check(self) -> None:
        """Verify every invariant that applies here. Raises Bug that names the broken one."""
        check(self.roster, self.cache, [flight.step for flight in self.flights], self.limits.block_tokens)
