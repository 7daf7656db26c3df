"""`check` finds what it claims to find: each kind of damage, done by hand, is named."""

from __future__ import annotations

import re

import pytest

from octavo.core.evict import LeastRecent
from octavo.core.sequence import State
from octavo.errors import Bug
from tests.core.requests import request
from tests.core.world import World, limits


def busy(**changes) -> World:
    """Cached blocks, two running sequences that share a prefix, one that waits, a step in flight."""
    world = World(limits(**({"num_blocks": 40, "max_num_seqs": 2, "max_pinned_blocks": 2} | changes)))
    world.submit(request("old", range(50, 62), max_tokens=1))
    world.drain()
    world.submit(request("a", range(12), max_tokens=20))
    world.turn(ahead=False)
    world.submit(request("b", range(11), max_tokens=20))
    world.submit(request("c", [7, 7]))
    world.plan()
    world.scheduler.check()
    return world


def leak(world):
    world.pool.scratch.pop()


def free_twice(world):
    world.pool.scratch.append(world.pool.scratch[0])


def free_in_use(world):
    block = world.sequence("a").table[0]
    world.pool.scratch.append(block)


def miscount(world):
    world.pool.references[world.sequence("a").table[0]] += 1


def circulate_null(world):
    world.pool.references[0] = 1


def key_on_scratch(world):
    block = next(iter(world.pool.idle))
    world.pool.idle.remove_all([block])
    world.pool.scratch.append(block)


def idle_without_key(world):
    listed = LeastRecent()
    for block in [*world.pool.idle, world.pool.scratch.pop()]:
        listed.add_all([block])
    world.pool.idle = listed


def prefix_before_its_end(world):
    block = next(iter(world.pool.idle))
    world.pool.idle.remove_all([block])
    world.pool.idle.add_all([block])


def forget_node(world):
    del world.scheduler.cache.node_of[next(iter(world.pool.idle))]


def false_key(world):
    node = world.scheduler.cache.node_of[next(iter(world.pool.idle))]
    node.packed = bytes([9, 0, 0, 0]) * 4


def partial_block(world):
    node = world.scheduler.cache.node_of[next(iter(world.pool.idle))]
    node.packed = node.packed[:12]


def lose_the_beginning(world):
    leaf = world.scheduler.cache.node_of[next(iter(world.pool.idle))]
    del world.scheduler.cache.node_of[leaf.parent.payload]
    leaf.parent.payload = None


def publish_early(world):
    world.sequence("a").num_computed = 3


def foreign_block(world):
    world.sequence("b").tokens[0] = 3


def other_prefix(world):
    world.sequence("b").keys[0] = bytes(32)


def share_a_written_block(world):
    table = world.sequence("a").table
    world.pool.share(table[-1])
    world.sequence("b").table.append(table[-1])


def wait_for_nothing(world):
    world.pool.deferred[world.pool.scratch.pop()] = 99


def forget_a_copy(world):
    world.pool.copying.clear()


def pin_too_much(world):
    for block in list(world.pool.idle)[::-1]:
        world.pool.share(block)
        world.scheduler.cache.pinned[block] = 1


def wrong_seats(world):
    world.scheduler.roster.num_seats -= 1


def out_of_order(world):
    world.scheduler.roster.resident.reverse()


def lost(world):
    world.scheduler.roster.call(world.sequence("c"))
    world.scheduler.roster.waiting.clear()


def turn_lost(world):
    world.scheduler.roster.turns.remove(world.scheduler.roster.groups["c"])


def turn_twice(world):
    world.sequence("c").turn = 0


def wrong_list(world):
    world.sequence("c").state = State.RUNNING


def wrong_pending(world):
    world.sequence("a").pending += 1


def false_metrics(world):
    world.scheduler.counters.hits += 1


DAMAGE = [
    (leak, "I1"),
    (free_twice, "I1: a block is free twice"),
    (free_in_use, "I1"),
    (miscount, "I2: block 4 counts 4 references and has 3"),
    (circulate_null, "I4: the null block is in circulation"),
    (key_on_scratch, "I8: scratch block"),
    (idle_without_key, "I8: idle block"),
    (prefix_before_its_end, "I21"),
    (forget_node, "I8"),
    (false_key, "I9: a key does not name"),
    (partial_block, "I9: a published block holds 3"),
    (lose_the_beginning, "I23: a prefix lost its beginning"),
    (publish_early, "I11"),
    (foreign_block, "I9: sequence 2 block 0 has a foreign key"),
    (other_prefix, "I13"),
    (share_a_written_block, "I14: block 7 is written by sequence 1 and read by others"),
    (wait_for_nothing, "I17"),
    (forget_a_copy, "I15"),
    (pin_too_much, "I22"),
    (wrong_seats, "2 of 2 seats are taken"),
    (out_of_order, "a list of sequences is out of order"),
    (lost, "sequence 3 is lost"),
    (turn_lost, "a turn was lost, or given twice"),
    (turn_twice, "a turn was lost, or given twice"),
    (wrong_list, "sequence 3 runs without a turn"),
    (wrong_pending, "sequence 1 awaits wrong tokens"),
    (false_metrics, "I40"),
]


@pytest.mark.parametrize(("damage", "name"), DAMAGE, ids=[damage.__name__ for damage, _ in DAMAGE])
def test_damage_is_found_and_named(damage, name):
    world = busy()
    damage(world)
    with pytest.raises(Bug) as caught:
        world.scheduler.check()
    assert re.match(re.escape(name), str(caught.value))


def test_a_window_that_keeps_or_loses_blocks_is_found():
    world = World(limits(window_tokens=6, max_chunk_tokens=4))
    world.submit(request("a", range(30)))
    for _ in range(4):
        world.turn(ahead=False)
    sequence = world.sequence("a")
    gone = sequence.num_passed_blocks
    assert gone
    sequence.num_passed_blocks -= 1
    with pytest.raises(Bug, match="I24: sequence 0 keeps blocks behind its window"):
        world.scheduler.check()
    sequence.num_passed_blocks = gone
    block = sequence.table[gone]
    sequence.table[gone] = 0
    world.pool.references[block] = 0
    world.pool.deferred.clear()
    world.scheduler.cache.tree.clear(world.scheduler.cache.node_of.pop(block))
    del world.pool._anchors[block]
    world.pool.scratch.append(block)
    with pytest.raises(Bug, match="I24: sequence 0 lacks block 2 inside its window"):
        world.scheduler.check()


def test_what_is_left_when_everybody_has_gone_is_found():
    world = World(limits())
    world.submit(request("a", range(9), max_tokens=1))
    world.drain()
    world.scheduler.cache.computing[b"key"] = (0,)
    with pytest.raises(Bug, match="I6: prefixes are announced"):
        world.scheduler.check()
