"""Pinned prefixes outlive pressure, within a cap that always leaves room for one longest request."""

from __future__ import annotations

from tests.core.requests import request
from tests.core.world import World, limits

SYSTEM = tuple(range(8))


def warm(**changes) -> World:
    """A world that has computed SYSTEM (2 blocks) once."""
    values = {"num_blocks": 9, "max_model_len": 16, "max_pinned_blocks": 4} | changes
    world = World(limits(**values))
    world.submit(request("warm", [*SYSTEM, 9], max_tokens=1))
    world.drain()
    return world


def press(world: World) -> None:
    """Use every block that can be had."""
    for number in range(5):
        world.submit(request(f"press{number}", [50 + number] * 12, max_tokens=3))
    world.drain()


def start_of(world: World, prompt) -> int:
    world.submit(request("probe", prompt, max_tokens=1))
    start = world.plan().slices[0].start
    world.drain()
    return start


def test_a_pinned_prefix_outlives_pressure_and_an_unpinned_one_does_not():
    world = warm()
    assert world.pin(SYSTEM) == 2
    press(world)
    assert start_of(world, [*SYSTEM, 9]) == 8
    assert world.unpin(SYSTEM) == 2
    press(world)
    assert start_of(world, [*SYSTEM, 9]) == 0


def test_only_what_is_resident_and_full_is_pinned_and_a_second_pin_renews_it():
    world = warm(num_blocks=17)
    assert world.pin((*SYSTEM, 20, 21, 22, 23)) == 2
    world.submit(request("more", [*SYSTEM, 20, 21, 22, 23], max_tokens=1))
    world.drain()
    assert world.pin((*SYSTEM, 20, 21, 22, 23)) == 3
    assert world.pin((1, 2, 3)) == world.pin((77,) * 8) == 0
    assert world.unpin((*SYSTEM, 20, 21, 22, 23)) == 3
    assert world.unpin((*SYSTEM, 20, 21, 22, 23)) == 0


def test_pins_stop_at_the_cap_and_count_shared_blocks_once():
    world = warm(num_blocks=17, max_pinned_blocks=2)
    world.submit(request("more", [*SYSTEM, 20, 21, 22, 23], max_tokens=1))
    world.drain()
    assert world.pin(SYSTEM[:4]) == 1
    assert world.pin((*SYSTEM, 20, 21, 22, 23)) == 2
    assert world.scheduler.cache.pinned == {1: 2, 2: 1}
    assert world.unpin(SYSTEM[:4]) == 1
    assert world.scheduler.cache.pinned == {1: 1, 2: 1}


def test_the_cap_leaves_room_for_a_longest_request():
    world = warm(num_blocks=6, max_model_len=16, max_pinned_blocks=100)
    assert world.limits.pin_cap_blocks == 1
    assert world.pin(SYSTEM) == 1
    world.submit(request("longest", [5] * 12, max_tokens=4))
    world.drain()
    assert world.num_verified == 2


def test_namespaces_are_pinned_apart():
    world = warm()
    assert world.pin(SYSTEM, b"other") == 0
    assert world.unpin(SYSTEM, b"other") == 0
    assert world.pin(SYSTEM) == 2


def test_nothing_is_pinned_when_caching_is_off():
    world = warm(enable_prefix_caching=False)
    assert world.pin(SYSTEM) == 0
    press(world)
