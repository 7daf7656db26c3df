"""Choose the next step: who computes how many tokens, in which blocks, and who has to make room.

There is no prefill phase and no decode phase. Each plan gives one token budget away:

    1  every running sequence with exactly one known token to compute gets it (decodes are never starved)
    2  running prefills share what is left, at most `max_chunk_tokens` each, best placed first; where several clients
       have some, each client may have an equal part of it, and what one does not need is the others'
    3  waiting sequences begin, best placed first, as the rules of `admit.py` let them; before running prefills of
       worse priority. Those that have begun before go first; among the others clients take turns (`fair.py`).
       Whoever's turn is next begins before a running prefill of another client goes on, with half of what is left,
       or all but a token if it has been served less: a long prompt of one client is not what a short one of another
       waits for.

The budget is the whole of it where nobody would wait for the step to end but those who are in it for their prompts, or
are of worse priority. A step that others decode in, or that another client waits for, has `max_num_mixed_tokens`.
What gives way to others that may ask again any moment does not make their steps long: prompts that are longer than
such a step, of whoever has been served more lately, half as long again; all that is of worse priority, what decodes
included, a tenth. How many tokens that is follows from what steps cost, which whoever measures them tells.

Blocks go to the best placed first; the worst placed gives its own up (`victims.py`). A preempted sequence keeps its
tokens, goes back to its place in the queue and recomputes.

Why this cannot livelock: the order of sequences that have begun is total and fixed while they live, nobody yields to
a worse placed one (held beams aside, which need nothing), and `submit` refuses what would not fit an empty pool. So
with nothing in flight the best placed sequence that is not held gets at least one token, or else prompts of other
clients have taken the step and got on by it, which they do a bounded number of times before they decode. All others
can be preempted for the best placed if it has memory, and if it waits, then nobody behind it may begin, those
with memory end in bounded time, and as soon as only held beams have memory they are preempted for it. Who is in front
of those that have never begun changes only while others are served more, so every one of them comes to the front, and
stays there until it begins.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered

from octavo.core.admit import Rule
from octavo.core.cache import CACHING_IS_OFF, WANTS_EMBEDDING, WANTS_PROMPT_LOGPROBS
from octavo.core.draft import Draft
from octavo.core.limits import Limits
from octavo.core.roster import Roster
from octavo.core.sequence import Sequence, State
from octavo.core.step import Preempted, Slice
from octavo.core.tables import UNCHANGED, Extension, Tables
from octavo.core.victims import victim_for, yielding_to
from octavo.errors import Bug

JUST_PREEMPTED = "it gave its memory up in this very step"
BACKGROUND = 8
"""Where nothing is known of what steps cost, what gives way has one of so many tokens of `max_num_mixed_tokens`."""
SERVED, OUTRANKED = 2, 10
"""What gives way may make a step longer by one of so many parts: prompts of whoever has been served more; all that is
of worse priority."""
WAITS_FOR_FLIGHT = "blocks it needs are in use by a step in flight"


class Planner:
    """Plans over one roster and its tables. Holds the preemptions that no step has reported yet.

    fixed_tokens  how many tokens cost what a step costs without any; None where nobody has measured it
    """

    def __init__(self, roster: Roster, tables: Tables, rules: Ordered[Rule], limits: Limits) -> None:
        self.preempted: list[int] = []
        self.events: list[Preempted] = []
        self.fixed_tokens: int | None = None
        self._roster = roster
        self._tables = tables
        self._cache = tables.cache
        self._pool = tables.pool
        self._rules = rules
        self._limits = limits
        self._max_chunk = limits.chunk_tokens

    def draft(self, *, is_in_flight: bool) -> Draft:
        """Decide a step. An empty draft means that nothing can be computed before the next commit or submit."""
        draft = Draft(self._cache, self._limits.max_num_batched_tokens)
        self._continue_running(draft)
        self._admit_waiting(draft)
        if draft.is_empty and not is_in_flight:
            with self._roster.turns.for_all():
                if self._roster.head is not None:
                    self._make_way_for_head(draft)
        return draft

    def _continue_running(self, draft: Draft) -> None:
        ready = self._without_those_behind([(one, one.num_ready) for one in self._roster.resident])
        decodes = [sequence for sequence, count in ready if count == 1]
        draft.promised_tokens = len(decodes)
        prefills = [sequence for sequence, count in ready if count > 1]
        self._set_budget(draft, prefills, decodes)
        in_parts = iter(self._in_parts(prefills))
        for placed, due in ready:
            sequence, num_clients = next(in_parts) if due > 1 else (placed, 1)
            count = sequence.num_ready if due > 1 else due
            if due == 1:
                draft.promised_tokens -= 1
            elif due:
                self._admit_waiting(draft, before=sequence)
            if not count or sequence.seq_id in draft.preempted:
                continue
            if due > 1:
                count = min(count, self._chunk(sequence, draft, num_clients))
                if count < 1:
                    draft.reserve(sequence.seq_id, self._tables.outstanding(sequence))
                    continue
            self._continue(sequence, sequence.num_planned + count, draft)

    def _without_those_behind(self, ready: list[tuple[Sequence, int]]) -> list[tuple[Sequence, int]]:
        """Of what decodes at a worse priority than the best that computes now, only as many as that hardly feels."""
        if self.fixed_tokens is None or len(ready) < 2:
            return ready
        best = min((one.request.priority for one, count in ready if count), default=0)
        if ready[-1][0].request.priority <= best:  # they are in order
            return ready
        num_before = sum(count for one, count in ready if one.request.priority == best)
        left = self._tokens_behind(min(num_before, self._limits.mixed_tokens(0)))
        kept: list[tuple[Sequence, int]] = []
        for one, count in ready:
            is_behind = count == 1 and one.request.priority > best
            if not is_behind or left > 0:
                kept.append((one, count))
            left -= is_behind
        return kept

    def _tokens_behind(self, num_before: int) -> int:
        """How many tokens make a step of so many others longer by a tenth."""
        assert self.fixed_tokens is not None
        return max((self.fixed_tokens + num_before) // OUTRANKED, 1)

    def _tokens_that_give_way(self, sequence: Sequence, draft: Draft) -> int:
        """How many prompt tokens a step may have that give way to others, all together."""
        if self.fixed_tokens is None:
            return max(self._limits.mixed_tokens(0) // BACKGROUND, 1)
        num_before = len(draft.decodes) + draft.promised_tokens
        if not draft.is_empty and self._roster.turns.is_outranked(sequence.request):
            return self._tokens_behind(num_before)
        return max((self.fixed_tokens + num_before) // SERVED, 1)

    def _gives_way(self, sequence: Sequence) -> bool:
        """Whether its prompt should not make steps long: for others of better priority; or, where no one step that
        others wait for holds it, for those that have been served less lately.
        """
        turns, request = self._roster.turns, sequence.request
        if turns.is_outranked(request):
            return True
        return len(sequence.tokens) > self._limits.mixed_tokens(0) and turns.has_had_more(request)

    def _chunk(self, sequence: Sequence, draft: Draft, num_clients: int = 1) -> int:
        """Tokens of a prompt in this step, at most; few where somebody who goes before it may come any time.

        num_clients  that share what is left
        """
        most = min(self._max_chunk, -(-draft.tokens_left // num_clients))
        if self._gives_way(sequence):
            draft.in_background.add(sequence.seq_id)
            return min(most, self._tokens_that_give_way(sequence, draft) - draft.background_tokens)
        return most

    def _set_budget(self, draft: Draft, prefills: Ordered[Sequence], decodes: Ordered[Sequence]) -> None:
        """A short step where others wait for its end; blocks for the rest of prefills, where others may begin first.

        Whoever decodes at a worse priority than the best of the prompts has to wait for all of it.
        """
        head = self._roster.next_in_turn()
        prompts = [*prefills, head] if head is not None else prefills
        best = min((one.request.priority for one in prompts), default=0)
        others_decode = any(one.request.priority <= best for one in decodes)
        others_wait = head is not None and any(head.request.client != one.request.client for one in prefills)
        if others_decode or others_wait:
            draft.budget = self._limits.mixed_tokens(draft.promised_tokens)
        if head is not None:
            for sequence in prefills:
                draft.reserve(sequence.seq_id, self._tables.outstanding(sequence))

    def _continue(self, sequence: Sequence, end: int, draft: Draft) -> None:
        tables = self._tables
        missing = tables.missing(sequence, end)
        if missing and missing > self._pool.num_available:
            end = self._make_room(sequence, end, draft)
            if end <= sequence.num_planned:
                self._stall(sequence, draft)
                return
        extension = tables.extend(sequence, end) if missing else UNCHANGED
        self._slice(sequence, end, extension, draft)

    def _make_room(self, sequence: Sequence, end: int, draft: Draft) -> int:
        """Preempt worse placed sequences for blocks up to `end`; how far it can go now, `num_planned` if nowhere."""
        while self._tables.missing(sequence, end) > self._pool.num_soon_available:
            victim = victim_for(sequence, self._roster.resident)
            if victim is None:
                self._cache.reclaim(sequence)
                break
            self._preempt(victim, "a better placed sequence needs its blocks", draft)
        return self._tables.reachable(sequence, end)

    def _stall(self, sequence: Sequence, draft: Draft) -> None:
        """It can get no block now: wait for the step in flight, or else give its own memory up."""
        draft.is_short = True
        if self._pool.deferred or sequence.is_in_flight:
            sequence.wait(WAITS_FOR_FLIGHT)
        else:
            self._preempt(sequence, "no block is left for its next token", draft)

    def _slice(self, sequence: Sequence, end: int, extension: Extension, draft: Draft) -> None:
        start, known = sequence.num_planned, len(sequence.tokens) + sequence.pending
        sequence.num_planned = end
        samples = 0
        if end < known:
            draft.reserve(sequence.seq_id, self._tables.outstanding(sequence))
        else:
            draft.release(sequence.seq_id)
            samples = sequence.num_draws
            sequence.pending += samples == 1 and not sequence.is_beam
        piece = Slice(
            sequence.seq_id,
            sequence.epoch,
            start,
            end - start,
            self._tables.report(sequence) if sequence.num_reported < len(sequence.table) else (),
            (),
            samples,
            extension.replaced,
        )
        draft.add(piece, extension.copies, is_decode=start + 1 == known)
        if sequence.seq_id in draft.in_background:
            draft.background_tokens += end - start

    def refused(self, draft: Draft, decodes: Ordered[Sequence]) -> tuple[Sequence | None, str | None]:
        """Who is asked first in a step in which all others decode, and why it has to wait with all behind it."""
        draft.promised_tokens = len(decodes)
        self._set_budget(draft, [], decodes)
        draft.promised_tokens, draft.num_tokens = 0, len(decodes)
        head = self._candidate(0)
        refusal = None if head is None else self._refusal(head, draft)
        return head, None if refusal is None or refusal[1] else refusal[0]

    def _admit_waiting(self, draft: Draft, before: Sequence | None = None) -> None:
        """Let waiting sequences begin until one has to wait.

        before  a running prefill: only those begin that may go before it
        """
        place = 0
        while not draft.is_closed:
            sequence = self._candidate(place)
            if sequence is None or (before is not None and not self._may_go_before(sequence, before, draft)):
                return
            refusal = self._refusal(sequence, draft)
            if refusal is not None and not refusal[1] and self._make_way_by_priority(sequence, draft):
                refusal = self._refusal(sequence, draft)
            if refusal is None:
                self._begin(sequence, draft, self._first_tokens(sequence, before, draft))
                continue
            sequence.wait(refusal[0])
            draft.is_closed = not refusal[1]
            if sequence.turn is None and not draft.is_closed:
                self._roster.call(sequence)
            place += 1

    def _may_go_before(self, sequence: Sequence, running: Sequence, draft: Draft) -> bool:
        """By its priority; or in its turn before another client's, where something of the budget is left for that."""
        ours, theirs = sequence.request, running.request
        if ours.priority != theirs.priority:
            return ours.priority < theirs.priority
        return sequence.turn is None and draft.tokens_left > 1 and ours.client != theirs.client

    def _in_parts(self, prefills: Ordered[Sequence]) -> list[tuple[Sequence, int]]:
        """Running prefills as they are to be asked, and how many clients share what is left then.

        Of one priority, the client with the shortest rest goes first, so that what it leaves is the others'. Those that
        give way come last of it, and nothing is kept for them.
        """
        last = {sequence.seq_id: self._gives_way(sequence) for sequence in prefills}
        shortest: dict[tuple[int, str], int] = {}
        for sequence in prefills:
            key = (sequence.request.priority, sequence.request.client)
            shortest[key] = min(shortest.get(key, sequence.num_ready), sequence.num_ready)
        keyed = [(sequence, (sequence.request.priority, sequence.request.client)) for sequence in prefills]
        keyed.sort(
            key=lambda one: (one[1][0], last[one[0].seq_id], shortest[one[1]], one[1][1], one[0].order)
        )
        found: list[tuple[Sequence, int]] = []
        clients: set[tuple[int, str]] = set()
        for sequence, client in reversed(keyed):
            if not last[sequence.seq_id]:
                clients.add(client)
            found.append((sequence, max(len(clients), 1)))
        return found[::-1]

    def _candidate(self, place: int) -> Sequence | None:
        """Who is asked next, when those before `place` in the queue have been."""
        waiting, priority = self._roster.waiting, self._roster.turns.best_priority
        if place < len(waiting) and (priority is None or priority >= waiting[place].request.priority):
            return waiting[place]
        return self._roster.next_in_turn()

    def _refusal(self, sequence: Sequence, draft: Draft) -> tuple[str, bool] | None:
        """Why it has to wait, and whether others may go before it."""
        if sequence.seq_id in draft.preempted:
            return JUST_PREEMPTED, False
        draft.forget_hit()
        for rule in self._rules:
            reason = rule.allows(sequence, draft)
            if reason is not None:
                return reason, rule.lets_others_pass
        return None

    def _first_tokens(self, sequence: Sequence, before: Sequence | None, draft: Draft) -> int:
        """What of the budget a first slice may take: a part where other clients wait too, or a prefill runs."""
        turns, priority = self._roster.turns, sequence.request.priority
        if before is None and sequence.turn is None:
            return -(-draft.tokens_left // max(turns.num_eligible(priority), 1))
        if before is None or before.request.priority != priority:
            return draft.tokens_left
        if turns.is_behind(sequence.request, before.request):
            return draft.tokens_left - 1
        return draft.tokens_left // 2

    def _begin(self, sequence: Sequence, draft: Draft, most: int) -> None:
        """Give a waiting sequence memory and its first slice, of at most so many tokens."""
        hit = draft.hit(sequence)
        spare = self._pool.num_available - self._tables.needed_with(sequence, hit) - draft.reserved_blocks
        with_partial = hit.partial is not None and spare >= (hit.partial[0] in self._pool.idle)
        if sequence.turn is None:
            self._roster.call(sequence)
        self._roster.unqueue(sequence)
        sequence.state = State.RUNNING
        extension = self._tables.adopt(sequence, hit, with_partial=with_partial)
        self._roster.seat(sequence)
        if hit.report.why not in (CACHING_IS_OFF, WANTS_EMBEDDING, WANTS_PROMPT_LOGPROBS):
            self._count_lookup(sequence)
        if sequence.cache_report is None:
            sequence.num_cached_tokens = sequence.num_computed
            self._roster.served_cached(sequence)
        sequence.cache_report = hit.report
        count = max(min(sequence.num_ready, self._chunk(sequence, draft), most), 1)
        end = self._tables.reachable(sequence, sequence.num_planned + count)
        self._tables.extend(sequence, end)
        self._slice(sequence, end, extension, draft)

    def _make_way_by_priority(self, sequence: Sequence, draft: Draft) -> bool:
        """Preempt sequences of strictly worse priority, if that can make room. True if any was preempted."""
        roster, pool = self._roster, self._pool
        victims = yielding_to(sequence.request.priority, roster.resident)
        if not victims or draft.tokens_left < 1 or draft.is_short:
            return False
        groups = {victim.request.request_id: roster.group_of(victim).num_seats for victim in victims}
        needed = self._tables.needed_with(sequence, draft.hit(sequence))
        if roster.seats_missing(sequence) > sum(groups.values()):
            return False
        if pool.num_soon_available + sum(len(victim.table) for victim in victims) < needed:
            return False
        preempted = False
        for victim in victims:
            draft.forget_hit()
            needed = self._tables.needed_with(sequence, draft.hit(sequence)) + draft.reserved_blocks
            if roster.seats_missing(sequence) <= 0 and pool.num_soon_available >= needed:
                break
            self._preempt(victim, "a request of better priority needs its place", draft)
            preempted = True
        return preempted

    def _make_way_for_head(self, draft: Draft) -> None:
        """Nothing runs and nothing is in flight: held beams give their memory to the head of the queue."""
        draft.is_short = False
        self._reopen(draft)
        while draft.is_empty and self._roster.resident:
            self._preempt(
                self._roster.resident[-1], "it is held while another sequence needs its blocks", draft
            )
            self._reopen(draft)
        if draft.is_empty:
            head = self._roster.head
            assert head is not None
            raise Bug(f"sequence {head.seq_id} cannot begin in an empty pool: {head.wait_reason}")

    def _reopen(self, draft: Draft) -> None:
        draft.is_closed = False
        draft.preempted.clear()
        self._admit_waiting(draft)

    def _preempt(self, sequence: Sequence, because: str, draft: Draft) -> None:
        """Take a sequence's memory. What it has in flight is ignored when it comes back."""
        for copy in draft.withdraw(sequence.seq_id):
            self._pool.end_copy(copy.source, copy.target)
        draft.preempted.add(sequence.seq_id)
        self._roster.unseat(sequence)
        self._tables.release(sequence)
        sequence.epoch += 1
        sequence.preemptions += 1
        self._cache.counters.preemptions += 1
        if sequence.state is State.RUNNING:
            self._roster.queue(sequence)
        self.preempted.append(sequence.seq_id)
        self.events.append(Preempted(sequence.request.request_id, sequence.seq_id, because))

    def _count_lookup(self, sequence: Sequence) -> None:
        counters = self._cache.counters
        counters.lookups += 1
        counters.hits += sequence.num_computed > 0
        counters.misses += sequence.num_computed == 0
        counters.lookup_tokens += len(sequence.tokens)
        counters.hit_tokens += sequence.num_computed
        counters.missed_tokens += len(sequence.tokens) - sequence.num_computed
