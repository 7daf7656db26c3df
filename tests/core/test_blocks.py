"""The pool: exact ids and counts, then a machine against a dictionary."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from octavo.core.blocks import BlockPool
from octavo.errors import Bug


def pool_of(num_blocks: int) -> tuple[BlockPool, list[int]]:
    evicted: list[int] = []
    return BlockPool(num_blocks, evicted.extend), evicted


def test_a_fresh_pool_hands_out_ids_from_one_and_never_the_null_block():
    pool, _ = pool_of(4)
    assert pool.take(3) == [1, 2, 3]
    assert pool.num_available == 0
    assert pool.references == [0, 1, 1, 1]
    assert pool.generations == [0, 1, 1, 1]


def test_take_is_all_or_nothing():
    pool, _ = pool_of(4)
    assert pool.take(4) is None
    assert pool.references == [0, 0, 0, 0]
    assert pool.num_available == 3
    assert pool.take(0) == []


def test_scratch_is_reused_last_in_first_out():
    pool, _ = pool_of(5)
    pool.take(4)
    pool.give_back_all([1, 2, 3])
    assert pool.take(3) == [1, 2, 3]  # given back as 3, 2, 1


def test_unpublished_blocks_are_reused_before_any_cached_one_is_evicted():
    pool, evicted = pool_of(4)
    a, b, c = pool.take(3)
    pool.publish(a)
    pool.give_back(a)
    pool.give_back(b)
    assert pool.take(1) == [b]
    assert evicted == []
    assert pool.take(1) == [a]
    assert evicted == [a]
    assert not pool.is_published(a)
    assert pool.references[c] == 1


def test_cached_blocks_are_evicted_oldest_first_and_the_deepest_of_a_chain_before_its_prefix():
    pool, evicted = pool_of(6)
    old, top, middle, leaf, rest = pool.take(5)
    pool.publish(old)
    pool.publish(top)
    pool.publish(middle, anchor=top)
    pool.publish(leaf, anchor=middle)
    pool.give_back(old)
    pool.give_back_all([top, middle, leaf])
    assert list(pool.idle) == [old, leaf, middle, top]
    assert pool.take(3) == [old, leaf, middle]
    assert evicted == [old, leaf, middle]
    assert pool.references[rest] == 1


def test_a_hit_makes_a_block_recent_again():
    pool, evicted = pool_of(3)
    a, b = pool.take(2)
    pool.publish(a)
    pool.publish(b)
    pool.give_back(a)
    pool.give_back(b)
    pool.share(a)
    pool.give_back(a)
    pool.take(1)
    assert evicted == [b]


def test_a_block_in_use_keeps_its_prefix_though_nobody_else_refers_to_it():
    """Somebody continued a prefix from a block of its own: the published prefix must not go before the end."""
    pool, evicted = pool_of(4)
    top, leaf, other = pool.take(3)
    pool.publish(top)
    pool.publish(leaf, anchor=top)
    pool.give_back(top)
    assert pool.references[top] == 1  # held by its child in use
    assert pool.take(1) is None
    pool.give_back(leaf)
    assert list(pool.idle) == [leaf, top]
    pool.share(leaf)
    assert pool.references[top] == 1
    pool.give_back(leaf)
    assert pool.take(2) == [leaf, top]
    assert evicted == [leaf, top]
    assert pool.references[other] == 1


def test_blocks_freed_under_a_step_in_flight_wait_for_its_commit():
    pool, _ = pool_of(4)
    a, b, c = pool.take(3)
    pool.defer_until(7)
    pool.give_back(a)
    pool.defer_until(8)
    pool.give_back(b)
    assert (pool.num_available, pool.num_soon_available) == (0, 2)
    assert dict(pool.deferred) == {a: 7, b: 8}
    pool.settle(7)
    assert pool.take(1) == [a]
    assert pool.take(1) is None
    pool.settle(8)
    assert pool.take(1) == [b]
    assert pool.references[c] == 1


def test_a_cached_block_that_waits_for_a_step_can_be_hit_meanwhile():
    pool, _ = pool_of(2)
    (a,) = pool.take(1)
    pool.publish(a)
    pool.defer_until(0)
    pool.give_back(a)
    pool.share(a)
    assert not pool.deferred
    pool.settle(0)
    assert pool.num_available == 0
    assert pool.references[a] == 1


def test_both_ends_of_a_copy_stay_until_it_is_made_and_do_not_count_as_owners():
    pool, _ = pool_of(4)
    source, target = pool.take(2)
    pool.begin_copy(source, target)
    assert (pool.references[source], pool.num_owners(source)) == (2, 1)
    pool.give_back(source)
    pool.give_back(target)
    assert pool.num_available == 1
    pool.end_copy(source, target)
    assert pool.num_available == 3
    assert pool.copying == {}


def test_a_prefix_can_be_handed_over_to_another_block_with_its_children_in_use():
    pool, _ = pool_of(6)
    top, old, child, idle_child, new = pool.take(5)
    pool.publish(top)
    pool.publish(old, anchor=top)
    pool.publish(child, anchor=old)
    pool.publish(idle_child, anchor=old)
    pool.give_back(idle_child)
    pool.give_back(old)
    pool.give_back(top)
    pool.hand_over(old, new, [child, idle_child])
    assert pool.scratch == [old]
    assert pool.references[new] == 2  # its table and its child in use
    assert pool.references[top] == 1
    assert pool.anchor(child) == pool.anchor(idle_child) == new
    pool.give_back(child)
    pool.give_back(new)
    assert list(pool.idle) == [idle_child, child, new, top]


def test_an_idle_block_handed_over_is_scratch_at_once():
    pool, _ = pool_of(4)
    top, old, new = pool.take(3)
    pool.publish(top)
    pool.publish(old, anchor=top)
    pool.give_back_all([top, old])
    pool.hand_over(old, new, [])
    assert (pool.scratch, list(pool.idle), pool.references[top]) == ([old], [], 1)


def test_bugs_are_called_by_name():
    pool, _ = pool_of(3)
    (a,) = pool.take(1)
    pool.give_back(a)
    with pytest.raises(Bug, match="I2: block 1 was given back more often"):
        pool.give_back(a)
    with pytest.raises(Bug, match="I11"):
        pool.publish(a)
    (b,) = pool.take(1)
    pool.publish(b)
    with pytest.raises(Bug, match="I11"):
        pool.publish(b)
    pool.share(b)
    (c,) = pool.take(1)
    with pytest.raises(Bug, match="I2: block 1 is handed over while 2 others use it"):
        pool.hand_over(b, c, [])


class PoolMachine(RuleBasedStateMachine):
    """References held by hand against the pool's counts. Chains are published as sequences publish them."""

    tables = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.evicted: list[int] = []
        self.pool = BlockPool(9, self.evicted.extend)
        self.held: list[list[int]] = []
        self.handed_out: dict[int, int] = {}
        self.step = 0
        self.waiting: dict[int, int] = {}

    @rule(target=tables, count=st.integers(1, 4))
    def take(self, count):
        room = 8 - len(self._in_use()) - len(self.waiting)
        free = list(self.pool.scratch)
        taken = self.pool.take(count)
        assert (taken is None) == (count > room)
        if taken is None:
            return multiple()
        assert taken == (free[::-1] + [b for b in taken if b not in free])[:count], "scratch goes first"
        self.held.append(taken)
        return taken

    @rule(target=tables, table=tables)
    def share(self, table):
        self.pool.share_all(table)
        self.held.append(list(table))
        return list(table)

    @rule(table=tables)
    def publish(self, table):
        anchor = 0
        for block in table:
            if not self.pool.is_published(block):
                self.pool.publish(block, anchor)
            anchor = block

    @rule(table=tables)
    def publish_at_once(self, table):
        if not any(self.pool.is_published(block) for block in table):
            self.pool.publish_chain(table, 0)
            assert [self.pool.anchor(block) for block in table] == [0, *table[:-1]]

    @rule(table=consumes(tables))
    def give_back(self, table):
        before = self._in_use()
        self.held.remove(table)
        self.pool.give_back_all(table)
        freed = before - self._in_use()
        if self.step:
            assert set(self.pool.deferred) >= freed
            self.waiting |= dict.fromkeys(freed, self.step)

    @rule()
    def launch(self):
        self.step += 1
        self.pool.defer_until(self.step)

    @precondition(lambda self: self.step)
    @rule()
    def land(self):
        self.pool.settle(self.step)
        self.pool.defer_until(None)
        self.step, self.waiting = 0, {}

    def _in_use(self) -> set[int]:
        """Blocks in a table, and the prefixes that published blocks in use hold on to."""
        used = {block for table in self.held for block in table}
        frontier = list(used)
        while frontier:
            anchor = self.pool.anchor(frontier.pop())
            if anchor and anchor not in used:
                used.add(anchor)
                frontier.append(anchor)
        return used

    @invariant()
    def counts_agree(self):
        used = self._in_use()
        for block in range(1, 9):
            tables = sum(table.count(block) for table in self.held)
            children = sum(1 for other in used if self.pool.anchor(other) == block)
            assert self.pool.references[block] == tables + children
        free = [*self.pool.scratch, *self.pool.idle, *self.pool.deferred]
        assert sorted(free) == sorted(set(range(1, 9)) - used)
        order = list(self.pool.idle)
        assert all(
            order.index(b) < order.index(self.pool.anchor(b)) for b in order if self.pool.anchor(b) in order
        )
        assert set(self.waiting) == set(self.pool.deferred)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
