"""What tenants may take from each other's cache: nothing by flooding, and what the operator has declared, together."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from octavo.core.evict import KEEP_TURNOVERS, FairShare, LeastRecent
from octavo.core.route import Load, Router
from octavo.errors import RequestError
from tests.core.requests import request
from tests.core.world import World, limits


def run(world: World, name: str, prompt, **changes) -> int:
    """Compute one output token after that prompt; how many tokens were cached."""
    world.submit(replace(request(name, prompt, max_tokens=1), **changes))
    world.plan()
    cached = world.sequence(name).num_cached_tokens
    world.land()
    world.drain()
    return cached


def test_a_flood_evicts_its_own_blocks():
    world = World(limits(num_blocks=33, max_num_seqs=1))
    run(world, "victim", range(16), namespace=b"victim")
    for number in range(10):
        start = 1000 + 100 * number
        run(world, f"flood{number}", range(start, start + 40), namespace=b"flooder")
    assert run(world, "again", range(16), namespace=b"victim") == 15


def test_what_nobody_has_used_for_long_is_given_up():
    world = World(limits(num_blocks=33, max_num_seqs=1))
    run(world, "victim", range(16), namespace=b"victim")
    for number in range(KEEP_TURNOVERS * 33 // 10 + 10):
        start = 1000 + 100 * number
        run(world, f"flood{number}", range(start, start + 40), namespace=b"flooder")
    assert run(world, "again", range(16), namespace=b"victim") == 0


@pytest.mark.parametrize("seed", range(30))
def test_one_realm_is_least_recently_used_first(seed):
    rng = random.Random(seed)
    fair, plain = FairShare(lambda _: b"one", 20), LeastRecent()
    outside = set(range(20))
    for _ in range(300):
        if outside and rng.random() < 0.6:
            block = rng.choice(sorted(outside))
            outside.remove(block)
            fair.add_all([block])
            plain.add_all([block])
        elif len(plain):
            if rng.random() < 0.5:
                block = rng.choice(list(plain))
                fair.remove_all([block])
                plain.remove_all([block])
            else:
                (block,) = plain.take(1)
                assert fair.take(1) == [block]
            outside.add(block)
        assert list(fair) == list(plain)
        assert len(fair) == len(plain)


@pytest.mark.parametrize("seed", range(30))
def test_nobody_below_an_equal_share_gives_way_to_one_above(seed):
    """Against the rule counted from scratch."""
    rng = random.Random(seed)
    owner = {block: rng.choice([b"a", b"b", b"b", b"c", b"shared"]) for block in range(60)}
    order = FairShare(owner.__getitem__, 10**6, shared=b"shared")
    outside = set(owner)
    for _ in range(400):
        if outside and (rng.random() < 0.55 or not len(order)):
            block = rng.choice(sorted(outside))
            outside.remove(block)
            order.add_all([block])
            continue
        listed = list(order)
        counts = {name: sum(owner[one] == name for one in listed) for name in (b"a", b"b", b"c")}
        present = [count for count in counts.values() if count]
        front = owner[listed[0]]
        (gone,) = order.take(1)
        if front == b"shared" or counts[front] * len(present) > sum(present) or len(set(present)) == 1:
            assert gone == listed[0]
        else:
            assert counts[owner[gone]] == max(present)
            assert gone == next(one for one in listed if owner[one] == owner[gone])
        outside.add(gone)


@pytest.mark.parametrize("seed", range(30))
def test_several_at_once_are_one_after_another(seed):
    """With one owner for a while, with several, and with blocks that are nobody's."""
    rng = random.Random(seed)
    owner = {block: rng.choice([b"a", b"b", b"c", b"shared"]) if block > 25 else b"a" for block in range(60)}
    single, several = (FairShare(owner.__getitem__, 8, shared=b"shared") for _ in range(2))
    outside = set(owner)
    for turn in range(300):
        known = sorted(block for block in outside if block <= 25 or turn > 60)
        listed = list(single)
        if known and rng.random() < 0.5:
            blocks = rng.sample(known, rng.randint(1, min(6, len(known))))
            several.add_all(blocks)
            for block in blocks:
                single.add_all([block])
            outside -= set(blocks)
        elif listed and rng.random() < 0.5:
            blocks = rng.sample(listed, rng.randint(1, min(4, len(listed))))
            several.remove_all(blocks)
            for block in blocks:
                single.remove_all([block])
            outside |= set(blocks)
        elif listed:
            count = rng.randint(1, len(listed))
            gone = several.take(count)
            assert gone == [block for _ in range(count) for block in single.take(1)]
            outside |= set(gone)
        assert list(several) == list(single)
        assert several.num_listed(sorted(owner)) == len(several)


def test_everybody_finds_a_public_prefix_and_nothing_after_it():
    world = World(limits(num_blocks=65))
    public = list(range(8))
    assert run(world, "a", [*public, *range(50, 60)], namespace=b"a", num_public_tokens=8) == 0
    assert run(world, "b", [*public, *range(50, 60)], namespace=b"b", num_public_tokens=8) == 8
    assert run(world, "again", [*public, *range(50, 60)], namespace=b"a", num_public_tokens=8) == 16
    assert run(world, "part", [*public, *range(50, 53), 7, 7], namespace=b"a", num_public_tokens=8) == 11
    assert run(world, "foreign part", [*public, *range(50, 53), 7], namespace=b"c", num_public_tokens=8) == 8


def test_only_whole_blocks_of_a_public_prefix_are_shared():
    world = World(limits(num_blocks=65))
    run(world, "a", range(12), namespace=b"a", num_public_tokens=6)
    assert run(world, "b", range(12), namespace=b"b", num_public_tokens=6) == 4


def test_a_prefix_that_was_not_declared_stays_with_its_tenant():
    world = World(limits(num_blocks=65))
    run(world, "a", range(12), namespace=b"a")
    assert run(world, "b", range(12), namespace=b"b", num_public_tokens=8) == 0
    assert run(world, "c", range(12), namespace=b"c", num_public_tokens=8) == 8


@pytest.mark.parametrize("count", [-1, 5])
def test_a_public_part_outside_the_prompt_is_refused(count):
    world = World(limits())
    with pytest.raises(RequestError, match="num_public_tokens"):
        world.scheduler.submit(replace(request("a", range(4)), num_public_tokens=count), 0.0)


def test_a_router_knows_a_public_prefix_whoever_sent_it():
    router = Router()
    loads = [Load(0, 0, 0), Load(1, 0, 0)]
    public = list(range(128))
    first = router.choose([*public, *range(500, 600)], b"a", [loads[1]], 128)
    assert first.num_matched == 0
    route = router.choose([*public, *range(500, 600)], b"b", loads, 128)
    assert (route.replica, route.num_matched) == (1, 128)
    assert router.choose([*public, *range(500, 600)], b"a", loads, 128).num_matched == 192
