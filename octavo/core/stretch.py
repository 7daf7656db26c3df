"""Many turns at once: while the same sequences decode and nothing else can happen, a turn need not be played.

In such a stretch a turn does only this: a token for each sequence; at block borders a block taken and one published; at
one client each the service charged. `measure` says how many turns that holds for, `skip` plays them together. What is
left behind, down to the order of free blocks, is what as many calls of `plan` and `commit` would have left; only the
events are not made, which are one Token for each sequence and turn.

turn 1 .. k of a stretch, step n under way when it begins:

    turn j   begins at ends_s[j-2]: plan n+j      ends at ends_s[j-1]: launch n+j, commit n+j-1
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

from octavo.core.draft import Draft
from octavo.core.fair import LATELY_S, OUTPUT_COST, Client
from octavo.core.scheduler import Scheduler
from octavo.core.sequence import Sequence, State
from octavo.core.step import Slice, Step
from octavo.errors import Bug

Drawn = Callable[[Sequence, int], Iterable[int]]
"""The next so many tokens of a sequence."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Turns that can be skipped.

    num_turns  at most so many
    since_s    no turn may end later than LATELY_S after it; see `reaches`
    blocked    who waits at the head of the queue meanwhile, and why
    """

    sequences: tuple[Sequence, ...]
    num_turns: int
    since_s: float
    blocked: tuple[Sequence, str] | None

    def reaches(self, now_s: float) -> bool:
        """Whether a turn may end at that time."""
        return now_s - self.since_s <= LATELY_S


@dataclass(frozen=True, slots=True)
class Skipped:
    """Where the scheduler is after a stretch.

    step        under way now
    used        (turn, blocks in use when its step is launched): from that turn until the next one listed
    """

    step: Step
    used: tuple[tuple[int, int], ...]


def measure(scheduler: Scheduler, awaited: Step) -> Stretch | None:
    """What can be skipped from here, between two turns, with `awaited` under way; None when the next must be played.

    Not when a sequence is about to end, to begin, to be preempted or to draw a token that may end it; nor with a
    sliding window, which frees blocks as it goes; nor with several priorities, of which a worse one may have to pause.
    """
    roster, cache = scheduler.roster, scheduler.cache
    slices = awaited.slices
    if len(slices) != len(roster.resident) or not slices:
        return None
    if roster.resident[0].request.priority != roster.resident[-1].request.priority:
        return None
    if cache.has_window or awaited.copies or len(scheduler.flights) != 1 or scheduler.has_news:
        return None
    sequences = tuple(roster.resident)
    num_turns = min([one.max_total_tokens - len(one.tokens) for one in sequences]) - 1
    if num_turns < 1:
        return None
    must_copy = scheduler.tables.must_copy
    for sequence, piece in zip(sequences, slices, strict=True):
        if not _decodes(sequence, piece) or must_copy(sequence):
            return None
    num_turns = _affordable(scheduler, sequences, num_turns)
    if num_turns < 1:
        return None
    blocked = None
    if roster.waiting or len(roster.turns):
        blocked = _blocked(scheduler, sequences)
        if blocked is None:
            return None
    return Stretch(sequences, num_turns, roster.turns.oldest_s, blocked)


def _decodes(sequence: Sequence, piece: Slice) -> bool:
    """Its only token to come is the one this slice draws, and no token can end it."""
    request = sequence.request
    return (
        piece.seq_id == sequence.seq_id
        and piece.epoch == sequence.epoch
        and piece.num_tokens == piece.samples == 1
        and sequence.pending == 1
        and sequence.num_planned == len(sequence.tokens)
        and sequence.state is State.RUNNING
        and not sequence.is_beam
        and (request.params.ignore_eos or not request.end_token_ids)
        and not request.params.stop_token_ids
    )


def _affordable(scheduler: Scheduler, sequences: Ordered[Sequence], num_turns: int) -> int:
    """So many of the turns as the blocks available now are enough for.

    Who publishes after a prefix that lies cached in other blocks than its own takes those into use.
    """
    size, available = scheduler.limits.block_tokens, scheduler.cache.pool.num_available
    for sequence in sequences:
        node = sequence.node
        if node is not None and node.depth and node.payload != sequence.table[node.depth - 1]:
            available -= node.depth
    if available < 0:
        return 0
    lengths = [len(sequence.tokens) for sequence in sequences]

    def needed(turns: int) -> int:
        return sum((length + turns + size - 1) // size - (length + size - 1) // size for length in lengths)

    if len(lengths) * (num_turns // size + 1) <= available or needed(num_turns) <= available:
        return num_turns
    low, high = 0, num_turns
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle) <= available else (low, middle)
    return low


def _blocked(scheduler: Scheduler, sequences: Ordered[Sequence]) -> tuple[Sequence, str] | None:
    """Who waits and goes on waiting as long as nobody ends, and why; None where that is not certain."""
    roster, cache = scheduler.roster, scheduler.cache
    if roster.turns.has_rivals or cache.computing or cache.pool.deferred:
        return None
    first = roster.head
    if first is not None and first.wait_reason is None and roster.seats_missing(first) <= 0:
        return None  # the next turn asks whether it may begin, and it may well
    draft = Draft(cache, scheduler.limits.max_num_batched_tokens)
    head, reason = scheduler.refused(draft, sequences)
    if head is None or reason is None or sequences[-1].request.priority > head.request.priority:
        return None
    for sequence in sequences:
        node, depth = sequence.node, sequence.num_published
        if cache.enabled and (node is None or node.num_children):
            return None
        if not depth or head.keys[depth - 1 : depth] == sequence.keys[depth - 1 : depth]:
            return None  # what it publishes might be the head's own beginning
    return head, reason


def skip(
    scheduler: Scheduler, awaited: Step, stretch: Stretch, ends_s: Ordered[float], drawn: Drawn
) -> Skipped:
    """Play `len(ends_s)` turns at once, at most `stretch.num_turns`; nothing else has been called since `measure`."""
    count = len(ends_s)
    for sequence in stretch.sequences:
        sequence.tokens.extend(drawn(sequence, count))
    _charge(scheduler, stretch, ends_s)
    used = _move_blocks(scheduler, awaited, stretch, count)
    if stretch.blocked is not None:
        head, reason = stretch.blocked
        head.wait_reason = reason
        head.wait_reasons[reason] = head.wait_reasons.get(reason, 0) + count
    roster = scheduler.roster
    roster.tell(ends_s[-1])
    slices = []
    for sequence in stretch.sequences:
        length = len(sequence.tokens)
        sequence.num_planned, sequence.num_computed = length, length - 1
        fresh = (
            sequence.table[-1:]
            if length % scheduler.limits.block_tokens == 1 % scheduler.limits.block_tokens
            else []
        )
        sequence.num_reported = len(sequence.table)
        slices.append(Slice(sequence.seq_id, sequence.epoch, length - 1, 1, tuple(fresh), (), 1))
    step = Step(awaited.number + count, tuple(slices))
    scheduler.jump(step)
    return Skipped(step, tuple(used))


def _charge(scheduler: Scheduler, stretch: Stretch, ends_s: Ordered[float]) -> None:
    """Each client's service, in the very order of additions in which commits would have charged it."""
    costs: dict[str, list[float]] = {}
    for sequence in stretch.sequences:
        request = sequence.request
        costs.setdefault(request.client, []).append(OUTPUT_COST * request.cost_weight)
    for name, own in costs.items():
        _charge_client(scheduler.roster.turns.clients[name], own, ends_s)


def _charge_client(client: Client, costs: list[float], ends_s: Ordered[float]) -> None:
    served, lately, charged_s = client.served, client.lately, client.charged_s
    exp2 = math.exp2
    for now_s in ends_s:
        if lately:
            lately *= exp2((charged_s - now_s) / LATELY_S)
        charged_s = now_s
        for cost in costs:
            lately += cost
    if served.is_integer() and all(cost.is_integer() for cost in costs):
        served += len(ends_s) * sum(costs)
    else:
        for _ in ends_s:
            for cost in costs:
                served += cost
    client.served, client.lately, client.charged_s = served, lately, charged_s


def _move_blocks(scheduler: Scheduler, awaited: Step, stretch: Stretch, count: int) -> list[tuple[int, int]]:
    """Take and publish blocks, turn by turn until nothing waits to be freed, and from there on all in one go."""
    size = scheduler.limits.block_tokens
    firsts = {sequence.seq_id: len(sequence.tokens) - count - 1 for sequence in stretch.sequences}
    due: dict[int, list[Sequence]] = {}
    for sequence in stretch.sequences:
        due.setdefault((-firsts[sequence.seq_id] - 1) % size + 1, []).append(sequence)
    borders = sorted((turn, first) for first in due for turn in range(first, count + 1, size))
    turns = [(turn, due[first]) for turn, first in borders]
    used = [(1, scheduler.num_used_blocks)]
    turn, place = 0, 0
    while turn < count and scheduler.cache.pool.deferred:
        turn += 1
        members = turns[place][1] if place < len(turns) and turns[place][0] == turn else []
        place += bool(members)
        used += _play_blocks(scheduler, awaited.number, turn, members, firsts)
    rest = turns[place:]
    if _grow_alone(scheduler, rest):
        return used + _take_blocks(scheduler, awaited.number, rest)
    for turn, members in rest:
        used += _play_blocks(scheduler, awaited.number, turn, members, firsts)
    return used


def _grow_alone(scheduler: Scheduler, turns: list[tuple[int, list[Sequence]]]) -> bool:
    """Whether all that is to be published continues blocks of its own that nothing else continues, as nothing did that
    has been evicted: when it is published makes no difference then.
    """
    cache, size = scheduler.cache, scheduler.limits.block_tokens
    if not cache.enabled:
        return True
    for sequence in _all_of(turns):
        node, count = sequence.node, (len(sequence.tokens) - 1) // size
        if node is None or not node.is_linked or node.num_children or not node.depth:
            return False
        if node.payload != sequence.table[node.depth - 1] or node.depth != sequence.num_published:
            return False
        cache.extend_chain(sequence, count)
        if not cache.ghosts.keys().isdisjoint(sequence.keys[node.depth : count]):
            return False
    return True


def _all_of(turns: list[tuple[int, list[Sequence]]]) -> list[Sequence]:
    """Those who come to a border in any of these turns."""
    return list({one.seq_id: one for _, members in turns for one in members}.values())


def _play_blocks(
    scheduler: Scheduler, number: int, turn: int, members: list[Sequence], firsts: dict[int, int]
) -> list[tuple[int, int]]:
    """One turn, counted from the step of that number: these sequences come to a block's border."""
    cache, pool = scheduler.cache, scheduler.cache.pool
    cache.step_number = number + turn
    for sequence in members:
        sequence.num_planned = firsts[sequence.seq_id] + turn
        scheduler.tables.extend(sequence, sequence.num_planned + 1)
    used = [(turn, scheduler.num_used_blocks)]
    pool.defer_until(number + turn)
    pool.settle(number + turn - 1)
    for sequence in members:
        sequence.num_computed = firsts[sequence.seq_id] + turn
        cache.publish(sequence)
    return [*used, (turn + 1, scheduler.num_used_blocks)]


def _take_blocks(
    scheduler: Scheduler, number: int, turns: list[tuple[int, list[Sequence]]]
) -> list[tuple[int, int]]:
    """All that is left to be taken, evicting in the order of turns, and then published."""
    cache, pool, used = scheduler.cache, scheduler.cache.pool, scheduler.num_used_blocks
    taken = pool.take(min(sum(len(members) for _, members in turns), len(pool.scratch)))
    assert taken is not None, "scratch blocks are available"
    levels, first = list[tuple[int, int]](), 0
    for turn, members in turns:
        cache.step_number = number + turn
        more = pool.take(max(first + len(members) - len(taken), 0))
        if more is None:
            raise Bug("I7: a stretch needs more blocks than were predicted to be there")
        taken += more
        for sequence in members:
            sequence.table.append(taken[first])
            first += 1
        levels.append((turn, used + first))
    if cache.enabled:
        for sequence in _all_of(turns):
            sequence.num_computed = len(sequence.tokens) - 1
            cache.publish(sequence)
    return levels
