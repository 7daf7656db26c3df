"""Every invariant of the block rules that can be checked from the outside, recomputed from scratch.

Slow on purpose: nothing here trusts a running counter. Tests call it after each commit, the engine when idle.

    I1   null + free + deferred + in use are all blocks, each once     I13  no block is reached from two namespaces
    I2   references = table entries + pins + copies + children in use  I14  written blocks have one owner, no key
    I3   free blocks have no references                                I15  both ends of a copy stay until it is made
    I4   the null block is never in circulation                        I17  freed blocks wait for steps in flight
    I5   lists and their counters agree                                I21  the end of a chain is evicted first
    I6   when everybody has gone nothing is left behind                I22  pins stay within their cap
    I8   keys and blocks know each other, free blocks have none        I23  a cached prefix has its beginning
    I9   a key names a full block and exactly its tokens               I24  windows keep what they see, and no more
    I11  nothing is published before it is computed                    I40  hits and misses are all lookups
    I18  every planned position has a block

I7 (all or nothing, as predicted), I16 (hits first) and I20 (generations) are enforced where they could be broken.
I10, I12 and I19 speak of contents and history, which only tests can see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Ordered
from itertools import pairwise

from octavo.core.blocks import NULL_BLOCK, BlockPool
from octavo.core.cache import PrefixCache
from octavo.core.keys import block_key, border_key
from octavo.core.roster import Roster
from octavo.core.sequence import State
from octavo.core.step import Step
from octavo.errors import Bug


def check(roster: Roster, cache: PrefixCache, flights: Ordered[Step], block_tokens: int) -> None:
    """Raise Bug naming the first broken invariant."""
    _check_pool(cache.pool)
    _check_references(roster, cache, flights)
    _check_tree(cache, block_tokens)
    _check_tables(roster, cache, block_tokens)
    _check_flights(roster, cache.pool, flights, block_tokens)
    _check_roster(roster)
    _check_counters(cache)
    if not roster.sequences and not flights:
        _check_quiet(roster, cache)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise Bug(message)


def _check_pool(pool: BlockPool) -> None:
    free = [*pool.scratch, *pool.idle, *pool.deferred]
    in_use = [block for block in range(1, pool.num_blocks) if pool.references[block] > 0]
    _require(len(free) == len(set(free)), "I1: a block is free twice")
    _require(
        len(free) + len(in_use) + 1 == pool.num_blocks,
        "I1: free, deferred and used blocks are not all blocks",
    )
    _require(len(pool.idle) == len(list(pool.idle)), "I5: the eviction order and its length disagree")
    for block in free:
        _require(
            pool.references[block] == 0,
            f"I3: block {block} is free and has {pool.references[block]} references",
        )
    _require(
        pool.references[NULL_BLOCK] == 0 and NULL_BLOCK not in free, "I4: the null block is in circulation"
    )
    _require(not pool.is_published(NULL_BLOCK), "I4: the null block is published")
    for block in pool.scratch:
        _require(not pool.is_published(block), f"I8: scratch block {block} still has a key")
    seen: set[int] = set()
    for block in pool.idle:
        _require(pool.is_published(block), f"I8: idle block {block} has no key")
        _require(
            pool.anchor(block) not in seen, f"I21: block {pool.anchor(block)} would be evicted before {block}"
        )
        seen.add(block)


def _check_references(roster: Roster, cache: PrefixCache, flights: Ordered[Step]) -> None:
    pool = cache.pool
    expected: Counter[int] = Counter()
    for sequence in roster.sequences.values():
        expected.update(block for block in sequence.table if block != NULL_BLOCK)
    expected.update(cache.pinned)
    copying: Counter[int] = Counter()
    for step in flights:
        for copy in step.copies:
            copying.update((copy.source, copy.target))
    _require(
        dict(copying) == pool.copying,
        f"I15: copies hold {pool.copying}, steps in flight name {dict(copying)}",
    )
    expected.update(copying)
    for block in cache.node_of:
        if pool.references[block] and pool.anchor(block) != NULL_BLOCK:
            expected[pool.anchor(block)] += 1
    for block in range(1, pool.num_blocks):
        _require(
            pool.references[block] == expected[block],
            f"I2: block {block} counts {pool.references[block]} references and has {expected[block]}",
        )
    _require(len(cache.pinned) <= cache.max_pinned_blocks, f"I22: {len(cache.pinned)} blocks are pinned")


def _check_tree(cache: PrefixCache, block_tokens: int) -> None:
    pool = cache.pool
    with_payload = 0
    for node in cache.tree.nodes():
        _require(node.is_linked, "I8: an unlinked node is still in the key map")
        parent = node.parent
        children = list(node.children())
        _require(len(children) == node.num_children, "I5: a node miscounts its children")
        if parent is None:
            _require(bool(children), "I5: a root without children was kept")
            continue
        _require(len(node.tokens) == block_tokens, f"I9: a published block holds {len(node.tokens)} tokens")
        origin = parent.key if node.realm == parent.realm else border_key(parent.key, node.realm)
        _require(node.key == block_key(origin, node.tokens), "I9: a key does not name its tokens")
        _require(parent.is_linked and node in parent.starting(node.packed[:4]), "I5: a node hangs loose")
        block = node.payload
        if block is None:
            _require(cache.has_window, "I23: a prefix lost its beginning")
            _require(bool(children), "I23: a childless hole was kept")
            continue
        with_payload += 1
        _require(cache.node_of.get(block) is node, f"I8: block {block} and its node do not know each other")
        _require(pool.is_published(block), f"I8: block {block} has a key and the pool does not know")
        anchor = NULL_BLOCK if cache.has_window or parent.payload is None else parent.payload
        _require(pool.anchor(block) == anchor, f"I23: block {block} does not hold on to its prefix")
    _require(with_payload == len(cache.node_of), "I8: a block claims a node that is gone")
    _require(
        all(not pool.is_published(b) or b in cache.node_of for b in range(pool.num_blocks)),
        "I8: a published block has no key",
    )


def _check_tables(roster: Roster, cache: PrefixCache, block_tokens: int) -> None:
    for sequence in roster.sequences.values():
        name, table = f"sequence {sequence.seq_id}", sequence.table
        settled, planned = sequence.num_computed, sequence.num_planned
        _require(settled <= planned <= sequence.num_known, f"I18: {name} has planned more than it knows")
        _require(len(table) * block_tokens >= planned, f"I18: {name} computes positions that have no block")
        _require(
            len(set(table) - {NULL_BLOCK}) == len(table) - table.count(NULL_BLOCK),
            f"I2: {name} repeats a block",
        )
        passed = min(cache.num_passed_blocks(settled), len(table))
        _require(
            sequence.num_passed_blocks == passed or not table, f"I24: {name} keeps blocks behind its window"
        )
        for index, block in enumerate(table):
            _require(
                (block == NULL_BLOCK) == (index < passed),
                f"I24: {name} lacks block {index} inside its window",
            )
            if block not in cache.node_of:
                continue
            _require(
                (index + 1) * block_tokens <= settled,
                f"I11: {name} block {index} is published before computed",
            )
            node = cache.node_of[block]
            own = tuple(sequence.tokens[index * block_tokens : (index + 1) * block_tokens])
            _require(
                node.tokens == own and node.depth == index + 1, f"I9: {name} block {index} has a foreign key"
            )
            _require(
                node.key == sequence.keys[index],
                f"I13: {name} block {index} is from another prefix or namespace",
            )
            _require(
                node.realm == sequence.lineage.realm(index),
                f"I13: {name} block {index} may not be found by it",
            )


def _check_flights(roster: Roster, pool: BlockPool, flights: Ordered[Step], block_tokens: int) -> None:
    _require(bool(flights) or not pool.deferred, "I17: blocks wait for a step that is not in flight")
    _require(
        all(flights[0].number <= number <= flights[-1].number for number in pool.deferred.values()),
        "I17: a block waits for a step that is not in flight",
    )
    pending: Counter[int] = Counter()
    for step in flights:
        for piece in step.slices:
            sequence = roster.sequences.get(piece.seq_id)
            if sequence is None or sequence.epoch != piece.epoch:
                continue
            pending[piece.seq_id] += piece.samples == 1 and sequence.request.params.beam_width is None
            first, last = piece.start // block_tokens, (piece.end - 1) // block_tokens
            for block in sequence.table[first : last + 1]:
                _require(
                    pool.num_owners(block) == 1 and not pool.is_published(block),
                    f"I14: block {block} is written by sequence {piece.seq_id} and read by others",
                )
    for sequence in roster.sequences.values():
        _require(
            sequence.pending == pending[sequence.seq_id], f"sequence {sequence.seq_id} awaits wrong tokens"
        )


def _check_roster(roster: Roster) -> None:
    for listed, states in (
        (roster.resident, (State.RUNNING, State.HELD)),
        (roster.waiting, (State.WAITING,)),
    ):
        _require(all(a.order < b.order for a, b in pairwise(listed)), "a list of sequences is out of order")
        for sequence in listed:
            _require(
                sequence.state in states, f"sequence {sequence.seq_id} is {sequence.state} in the wrong list"
            )
            _require(
                roster.sequences.get(sequence.seq_id) is sequence,
                f"sequence {sequence.seq_id} outlived its end",
            )
    resident = {sequence.seq_id for sequence in roster.resident}
    waiting = {sequence.seq_id for sequence in roster.waiting}
    seats = 0
    for group in roster.groups.values():
        _require(bool(group.members), f"request {group.request.request_id!r} has no sequence left")
        count = sum(1 for seq_id in group.members if seq_id in resident)
        _require(count == group.num_resident, f"request {group.request.request_id!r} miscounts its residents")
        _require(group.num_seats == (group.num_seats_wanted if count else 0), "a request holds wrong seats")
        _require(
            len(group.members) <= group.width, f"request {group.request.request_id!r} has too many sequences"
        )
        seats += group.num_seats
    _require(
        seats == roster.num_seats <= roster.max_num_seqs, f"{seats} of {roster.max_num_seqs} seats are taken"
    )
    in_line = _check_turns(roster)
    for sequence in roster.sequences.values():
        is_listed = sequence.seq_id in resident or sequence.seq_id in waiting
        _require((sequence.turn is None) == (sequence.seq_id in in_line), "a turn was lost, or given twice")
        is_listed = is_listed or sequence.seq_id in in_line
        _require(is_listed or sequence.state is State.HELD, f"sequence {sequence.seq_id} is lost")
        _require(
            bool(sequence.table) <= (sequence.seq_id in resident), f"sequence {sequence.seq_id} hoards blocks"
        )


def _check_turns(roster: Roster) -> set[int]:
    """Ids of the sequences that wait for a turn."""
    turns, in_line = roster.turns, set[int]()
    for name, client in turns.clients.items():
        for priority, line in client.lines.items():
            _require(bool(line), f"client {name!r} keeps an empty line")
            for group in line:
                request = group.request
                _require(
                    roster.groups.get(request.request_id) is group, "a request outlived its end in a line"
                )
                _require(
                    (request.client, request.priority) == (name, priority),
                    f"request {request.request_id!r} stands in a line of others",
                )
                for sequence in group.members.values():
                    _require(
                        sequence.state is State.WAITING, f"sequence {sequence.seq_id} runs without a turn"
                    )
                    in_line.add(sequence.seq_id)
    _require(len(in_line) == turns.num_sequences, "a request stands in line twice")
    seats: dict[str, int] = {}
    for group in roster.groups.values():
        seats[group.request.client] = seats.get(group.request.client, 0) + group.num_seats
    for name, client in turns.clients.items():
        _require(client.num_seats == seats.get(name, 0), f"client {name!r} miscounts its seats")
    best = min(
        (
            priority
            for client in turns.clients.values()
            for priority in client.lines
            if turns.may_begin(client.lines[priority][0].request)
        ),
        default=None,
    )
    _require(best == turns.best_priority, "the best priority in line is not what it is said to be")
    return in_line


def _check_counters(cache: PrefixCache) -> None:
    counters = cache.counters
    _require(counters.hits + counters.misses == counters.lookups, "I40: hits and misses are not all lookups")
    _require(
        counters.hit_tokens + counters.missed_tokens == counters.lookup_tokens,
        "I40: tokens found and tokens missed are not all tokens looked up",
    )


def _check_quiet(roster: Roster, cache: PrefixCache) -> None:
    pool = cache.pool
    held = sum(1 for count in pool.references if count)
    _require(held == len(cache.pinned), f"I6: {held} blocks are in use when nobody is here")
    _require(not cache.computing, "I6: prefixes are announced when nobody computes")
    _require(not roster.num_seats and not roster.groups, "I6: seats are taken when nobody is here")
