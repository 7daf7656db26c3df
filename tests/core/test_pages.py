"""The picture of the pool agrees with what the scheduler counts, block by block, at every moment."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from octavo.core.pages import CACHED, FREE, PINNED, RUNNING, pages
from tests.core.requests import request
from tests.core.world import World, limits


def ask(world: World, name: str, prompt, client: str, **params) -> None:
    world.submit(replace(request(name, prompt, **params), client=client, namespace=client.encode()))


def test_an_empty_pool_is_free_and_nobodys():
    shown = pages(World(limits(num_blocks=9)).scheduler, 100)
    assert (shown.states, shown.owners, shown.clients, shown.num_blocks) == (bytes(8), (0,) * 8, (), 8)


def test_whose_blocks_are_in_use_and_whose_are_cached():
    world = World(limits(num_blocks=33))
    ask(world, "a", range(10), "alice", max_tokens=1)
    world.drain()
    ask(world, "b", range(100, 109), "bob", max_tokens=9)
    world.turn()
    shown = pages(world.scheduler, 100)
    owned = Counter(
        (state, shown.clients[owner - 1])
        for state, owner in zip(shown.states, shown.owners, strict=True)
        if owner
    )
    assert owned == {(CACHED, "alice"): 2, (RUNNING, "bob"): 3}
    assert shown.states.count(FREE) == 32 - 5


def test_a_pinned_block_is_shown_as_such():
    world = World(limits(num_blocks=33, max_pinned_blocks=4))
    ask(world, "a", range(10), "alice", max_tokens=1)
    world.drain()
    assert world.pin(tuple(range(8)), b"alice") == 2
    shown = pages(world.scheduler, 100)
    assert shown.states.count(PINNED) == 2
    assert {shown.clients[owner - 1] for owner in shown.owners if owner} == {"alice"}


def test_a_large_pool_is_shown_in_part_and_evenly():
    world = World(limits(num_blocks=33))
    ask(world, "a", range(30), "alice", max_tokens=1)
    world.drain()
    whole, part = pages(world.scheduler, 32), pages(world.scheduler, 8)
    assert part.states == whole.states[::4]
    assert part.num_blocks == whole.num_blocks == 32


@pytest.mark.parametrize("seed", range(5))
def test_the_picture_counts_as_the_pool_does(seed):
    rng = random.Random(seed)
    world = World(limits(num_blocks=25, max_num_seqs=3))
    for number in range(40):
        if rng.random() < 0.5:
            start = 50 * rng.randrange(6)
            ask(
                world,
                f"r{number}",
                range(start, start + rng.randrange(1, 20)),
                rng.choice("abc"),
                max_tokens=3,
            )
        world.turn()
        shown, pool = pages(world.scheduler, 100), world.pool
        counts = Counter(shown.states)
        assert counts[CACHED] == len(pool.idle)
        assert counts[FREE] == len(pool.scratch)
        assert counts[RUNNING] == 24 - len(pool.idle) - len(pool.scratch)
        assert all(
            owner for state, owner in zip(shown.states, shown.owners, strict=True) if state == CACHED
        ), "whoever has cached something is remembered"
