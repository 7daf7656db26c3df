"""Forgetting cached prefixes: idle blocks go at once, what runs and what is pinned stays, nothing is lost."""

from __future__ import annotations

from tests.core.requests import request
from tests.core.test_pins import SYSTEM, start_of, warm


def test_what_nobody_uses_is_forgotten():
    world = warm()
    assert start_of(world, [*SYSTEM, 9]) == 8
    idle = len(world.pool.idle)
    assert world.scheduler.reset_cache() == idle > 0
    world.scheduler.check()
    assert len(world.pool.idle) == 0
    assert start_of(world, [*SYSTEM, 9]) == 0
    assert world.scheduler.reset_cache() > 0
    assert world.scheduler.reset_cache() == 0


def test_pinned_prefixes_stay():
    world = warm()
    assert world.pin(SYSTEM) == 2
    world.scheduler.reset_cache()
    world.scheduler.check()
    assert start_of(world, [*SYSTEM, 9]) == 8


def test_what_runs_is_not_disturbed_at_any_moment():
    """The world compares every token read and drawn with what the request would give alone."""
    world = warm(num_blocks=17)
    for number in range(4):
        world.submit(request(f"r{number}", [*SYSTEM, 20 + number, 5, 6], max_tokens=5))
    for _ in range(40):
        world.turn()
        world.scheduler.reset_cache()
        world.scheduler.check()
    world.drain()
    assert all(len(world.output(f"r{number}")) <= 5 for number in range(4))
