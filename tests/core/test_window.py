"""A sliding window frees what it has passed, and hits need only what it still reaches. Blocks hold 4 tokens."""

from __future__ import annotations

import pytest

from tests.core.requests import request
from tests.core.world import World, limits


def windowed(**changes) -> World:
    return World(limits(**({"window_tokens": 6, "max_chunk_tokens": 4} | changes)))


def test_blocks_behind_the_window_are_given_back_once_settled():
    """After 11 tokens a position from 11 on sees 6 and later ones: block 0 is passed, block 1 is not."""
    world = windowed()
    world.submit(request("a", range(30), max_tokens=1))
    tables = []
    for _ in range(6):
        world.turn(ahead=False)
        tables.append([bool(block) for block in world.sequence("a").table])
    assert tables == [
        [True],
        [True, True],
        [False, True, True],  # 12 settled: 7 and later are seen
        [False, False, True, True],
        [False, False, False, True, True],
        [False, False, False, False, True, True],
    ]
    world.drain()
    assert world.num_verified == 1


def test_only_settled_tokens_pass_a_block():
    """Planning ahead to position 12 does not free block 0; the commit of positions 8 to 11 does."""
    world = windowed()
    world.submit(request("a", range(30), max_tokens=1))
    world.turn(ahead=False)
    world.turn(ahead=False)
    world.plan()
    world.plan()
    assert world.sequence("a").num_planned == 16
    assert all(world.sequence("a").table)
    first = world.sequence("a").table[0]
    world.land()
    assert world.sequence("a").table[0] == 0
    assert first in world.pool.deferred
    world.land()
    assert first not in world.pool.deferred


def test_a_long_prompt_runs_in_a_pool_much_smaller_than_itself():
    world = windowed(num_blocks=6, max_model_len=400)
    world.submit(request("a", [i % 5 for i in range(350)], max_tokens=40))
    world.drain()
    assert world.num_verified == 1
    assert world.scheduler.counters.preemptions == 0


def evict_prefix(world: World, depths: tuple[int, ...]) -> list:
    """Evict the cached blocks at these depths of the only chain, wherever the order would have put them."""
    pool = world.pool
    nodes = [node for node in world.scheduler.cache.tree.nodes() if node.depth in depths]
    first = [node.payload for node in nodes]
    for block in [block for block in pool.idle if block not in first]:
        pool.idle.remove_all([block])
        pool.idle.add_all([block])
    pool.give_back_all(pool.take(len(pool.scratch) + len(first)))
    assert all(node.payload is None for node in nodes)
    world.scheduler.check()
    return nodes


@pytest.mark.parametrize("window", [1, 2, 4, 5, 9])
def test_the_smallest_pool_that_is_accepted_is_enough(window):
    smallest = windowed(window_tokens=window).limits.min_blocks(60) + 1
    world = windowed(window_tokens=window, num_blocks=smallest)
    for name in "ab":
        world.submit(request(name, [ord(name) + i % 3 for i in range(40)], max_tokens=20))
    world.drain()
    assert world.num_verified == 2


def test_a_hit_needs_only_the_blocks_the_window_reaches():
    """Window 6 needs ceil(5 / 4) = 2 blocks before the end of a hit; earlier ones may be gone."""
    world = windowed(num_blocks=65)
    world.submit(request("a", range(25), max_tokens=1))
    world.drain()
    evict_prefix(world, depths=(1, 2))
    world.submit(request("b", [*range(24), 99], max_tokens=1))
    piece = world.plan().slices[0]
    assert piece.start == 24
    assert piece.new_blocks[:4] == (0, 0, 0, 0)
    assert all(piece.new_blocks[4:6])
    world.drain()


def test_a_hole_in_the_window_shortens_the_hit():
    world = windowed(num_blocks=65)
    world.submit(request("a", range(25), max_tokens=1))
    world.drain()
    evicted_at = world.scheduler.cache.step_number
    (fifth,) = evict_prefix(world, depths=(5,))
    assert fifth.is_linked, "a deeper block is still there: the place stays as a hole"
    world.scheduler.check()
    world.submit(request("b", [*range(24), 99], max_tokens=1))
    piece = world.plan().slices[0]
    assert piece.start == 16
    assert world.sequence("b").cache_report.why == f"evicted at step {evicted_at}"
    world.drain()


def test_no_hit_when_the_whole_short_prefix_is_not_there():
    """A hit shorter than the window needs all of its blocks."""
    world = windowed(num_blocks=65, window_tokens=50)
    world.submit(request("a", range(9), max_tokens=1))
    world.drain()
    evict_prefix(world, depths=(1,))
    world.submit(request("b", range(9), max_tokens=1))
    assert world.plan().slices[0].start == 0
    world.drain()


def test_preempted_and_forked_sequences_keep_their_window():
    world = windowed(num_blocks=9, max_model_len=60)
    world.submit(request("a", range(20), n=3, max_tokens=20))
    world.submit(request("b", range(18), beam_width=2, max_tokens=9))
    world.submit(request("c", range(22), max_tokens=25, priority=-1))
    world.drain()
    assert world.num_verified == 5


def test_passed_blocks_are_evicted_first_and_then_the_deepest():
    """25 tokens fill 6 blocks; the window of 10 passed the first four one by one, the end gave back the rest."""
    world = windowed(window_tokens=10)
    world.submit(request("a", range(25), max_tokens=1))
    world.drain()
    depths = [world.scheduler.cache.node_of[block].depth for block in world.pool.idle]
    assert depths == [1, 2, 3, 4, 6, 5]
