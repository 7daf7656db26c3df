"""What is cached, what a prompt reuses, and the reason for every miss. Blocks hold 4 tokens."""

from __future__ import annotations

import random

import pytest

from octavo.core.cache import CacheReport
from octavo.core.step import Copy
from tests.core.requests import request
from tests.core.world import World, limits


def ran(*prompts, **changes) -> World:
    """A world in which these prompts have been computed, one after the other, one token of output each."""
    world = World(limits(**({"num_blocks": 65} | changes)))
    for number, prompt in enumerate(prompts):
        world.submit(request(f"warm{number}", prompt, max_tokens=1))
        world.drain()
    return world


def begin(world: World, prompt, **params):
    """Submit and plan; the sequence and its first slice."""
    name = f"r{len(world.stories)}"
    world.submit(request(name, prompt, **params))
    step = world.plan()
    sequence = world.sequence(name)
    return sequence, next(piece for piece in step.slices if piece.seq_id == sequence.seq_id)


def cached_tokens(world: World) -> list[tuple[int, ...]]:
    """The prefixes under whose keys a block is held, in order of publication."""
    found = []
    for node in world.scheduler.cache.tree.nodes():
        tokens, walk = (), node
        while walk.parent is not None:
            tokens, walk = walk.tokens + tokens, walk.parent
        if node.payload is not None:
            found.append(tokens)
    return found


def test_full_blocks_are_reused_in_place():
    world = ran(range(10))
    sequence, piece = begin(world, [*range(8), 50, 51, 52])
    assert (piece.start, piece.num_tokens) == (8, 3)
    assert piece.new_blocks[:2] == (1, 2)
    assert sequence.num_cached_tokens == 8
    assert sequence.cache_report == CacheReport(2, 0, "the rest fills no block")
    assert world.steps[-1].copies == ()


def test_only_full_blocks_are_published_and_only_after_their_commit():
    world = World(limits())
    world.submit(request("a", range(10), max_tokens=4))
    world.plan()
    assert cached_tokens(world) == []
    world.land()
    assert cached_tokens(world) == [tuple(range(4)), tuple(range(8))]


def test_generated_tokens_are_cached_too():
    world = World(limits())
    world.submit(request("a", range(6), max_tokens=4))
    world.drain()
    line = (*range(6), *world.output("a"))
    assert cached_tokens(world) == [line[:4], line[:8]]
    sequence, piece = begin(world, [*line, 7])
    assert piece.start == 8
    assert sequence.cache_report.num_blocks == 2


def test_the_last_prompt_token_is_always_computed():
    """All 8 tokens are cached: the first block is shared, and three tokens of the second are copied."""
    world = ran(range(8))
    sequence, piece = begin(world, range(8))
    assert (piece.start, piece.num_tokens) == (7, 1)
    assert world.steps[-1].copies == (Copy(2, 3, 3),)
    assert piece.new_blocks == (1, 3)
    assert sequence.cache_report == CacheReport(1, 3, "the last prompt token is always computed")
    world.drain()


def test_a_prompt_of_one_block_is_a_hit_by_copy():
    world = ran(range(4))
    sequence, piece = begin(world, range(4))
    assert (piece.start, world.steps[-1].copies) == (3, (Copy(1, 2, 3),))
    assert sequence.num_cached_tokens == 3


def test_a_partly_matching_block_is_copied_from_the_best_child():
    world = ran([0, 1, 2, 3, 4, 9, 9, 9], [0, 1, 2, 3, 4, 5, 9, 9], [0, 1, 2, 3, 4, 5, 8, 8])
    sequence, piece = begin(world, [0, 1, 2, 3, 4, 5, 6, 7, 8])
    (copy,) = world.steps[-1].copies
    assert copy.num_tokens == 2
    assert piece.start == 6
    source = world.scheduler.cache.node_of[copy.source]
    assert source.tokens == (4, 5, 9, 9)
    assert sequence.cache_report == CacheReport(1, 2, "never seen")
    world.drain()


def test_the_source_of_a_copy_stays_until_the_copy_is_made():
    world = ran(range(8))
    begin(world, range(8))
    (copy,) = world.steps[-1].copies
    assert world.pool.references[copy.source] == 1
    assert world.pool.references[copy.target] == 2
    world.cancel("r1")
    assert world.pool.references[copy.source] == world.pool.references[copy.target] == 1
    world.land()
    assert world.pool.references[copy.source] == world.pool.references[copy.target] == 0


def test_a_copy_is_not_made_when_memory_is_short():
    """Two blocks are free and two are needed: the partial match is left alone."""
    world = ran(range(8), num_blocks=5, max_model_len=16)
    world.submit(request("hold", [9] * 3, max_tokens=4))
    world.turn(ahead=False)
    sequence, piece = begin(world, range(8), max_tokens=1)
    assert (piece.start, world.steps[-1].copies) == (4, ())
    assert sequence.num_cached_tokens == 4
    world.drain()


def test_namespaces_do_not_meet():
    world = ran(range(8))
    sequence, piece = begin(world, range(8), namespace=b"other")
    assert piece.start == 0
    assert sequence.cache_report == CacheReport(0, 0, "never seen")
    again, piece = begin(world, range(8))
    assert piece.start == 7
    assert again.num_cached_tokens == 7


def test_other_weights_are_another_cache():
    one, two = ran(range(8), fingerprint=b"one"), ran(range(8), fingerprint=b"two")
    keys = [{node.key for node in w.scheduler.cache.tree.nodes()} for w in (one, two)]
    assert keys[0].isdisjoint(keys[1])


@pytest.mark.parametrize(
    ("changes", "params", "why"),
    [
        ({"enable_prefix_caching": False}, {}, "caching is off"),
        ({}, {"prompt_logprobs": 1}, "prompt log-probabilities were asked for"),
    ],
)
def test_those_who_do_not_read_the_cache_say_why(changes, params, why):
    world = ran(range(8), **changes)
    before = world.scheduler.counters.lookups
    sequence, piece = begin(world, range(8), **params)
    assert piece.start == 0
    assert sequence.cache_report == CacheReport(0, 0, why)
    assert world.scheduler.counters.lookups == before
    world.drain()


def test_a_request_for_prompt_logprobs_fills_the_cache_for_others():
    world = World(limits())
    world.submit(request("a", range(8), max_tokens=1, prompt_logprobs=0))
    world.drain()
    assert begin(world, range(8))[1].start == 7


def test_an_evicted_prefix_is_remembered_with_its_step():
    world = ran(range(8), num_blocks=5, max_model_len=16)
    world.submit(request("other", [9] * 12, max_tokens=1))
    world.drain()
    evicted_at = world.steps[-1].number
    assert world.scheduler.counters.evictions == 1
    sequence, piece = begin(world, [*range(8), 1])
    assert piece.start == 4
    assert sequence.cache_report == CacheReport(1, 0, f"evicted at step {evicted_at}")


def test_the_memory_of_evictions_is_bounded():
    world = World(limits(num_blocks=5, max_model_len=16))
    for number in range(20):
        world.submit(request(f"r{number}", [100 + number] * 12, max_tokens=1))
        world.drain()
    assert world.scheduler.counters.evictions == 56
    assert len(world.scheduler.cache.ghosts) == 20
    assert begin(world, [100] * 12)[0].cache_report.why == "never seen"
    world.cancel("r20")
    world.land()
    assert begin(world, [117] * 12)[0].cache_report.why.startswith("evicted at step")


def test_a_prefix_under_way_is_waited_for_and_then_reused():
    world = World(limits(num_blocks=65))
    for name in "abc":
        world.submit(request(name, [*range(13), ord(name)], max_tokens=1))
    assert [piece.seq_id for piece in world.plan().slices] == [0]
    assert world.plan() is None
    why = "another sequence is computing its prefix right now"
    assert world.sequence("b").wait_reasons == world.sequence("c").wait_reasons == {why: 2}
    world.land()
    step = world.plan()
    assert [(piece.seq_id, piece.start) for piece in step.slices] == [(1, 12), (2, 12)]
    assert [piece.new_blocks[:3] for piece in step.slices] == [(1, 2, 3)] * 2
    world.drain()


def test_a_prefix_under_way_is_not_waited_for_when_it_saves_little():
    world = World(limits(num_blocks=65, max_num_batched_tokens=64))
    world.submit(request("a", range(4)))
    world.submit(request("b", range(12)))
    assert [piece.start for piece in world.plan().slices] == [0, 0]
    assert world.sequence("b").cache_report == CacheReport(
        0, 0, "being computed by another sequence right now"
    )


def test_nobody_waits_for_a_prefix_under_way_at_worse_priority():
    """Those who compute it may themselves have to let others go first."""
    world = World(limits(num_blocks=65, max_num_batched_tokens=64, max_chunk_tokens=8))
    world.submit(request("a", range(16), priority=1))
    world.plan()
    world.submit(request("same", range(15), priority=1))
    world.submit(request("better", range(15)))
    assert [piece.seq_id for piece in world.plan().slices] == [2, 0]
    assert world.sequence("same").wait_reason == "another sequence is computing its prefix right now"
    world.drain()


def test_those_who_wait_for_a_prefix_let_others_pass_and_go_on_when_it_is_cancelled():
    world = World(limits(num_blocks=65, max_num_batched_tokens=24, max_chunk_tokens=8))
    world.submit(request("a", range(16)))
    world.submit(request("b", range(15)))
    world.submit(request("c", [77]))
    assert [piece.seq_id for piece in world.plan().slices] == [2, 0]
    world.cancel("a")
    assert world.sequence("b").wait_reason == "another sequence is computing its prefix right now"
    assert [piece.seq_id for piece in world.plan().slices] == [2, 1]
    world.drain()


def test_equal_blocks_computed_side_by_side_are_published_once():
    """c is too short to wait for; its own first block stays unpublished and dies with its table."""
    world = World(limits(num_blocks=65, max_num_batched_tokens=64))
    world.submit(request("a", [0, 1, 2, 3], max_tokens=5))
    world.submit(request("b", [0, 1, 2, 3, *range(50, 58)], max_tokens=5))
    world.plan()
    world.land()
    a, b = world.sequence("a"), world.sequence("b")
    assert (a.table[0], b.table[0]) == (1, 2)
    assert world.pool.is_published(1)
    assert not world.pool.is_published(2)
    assert world.pool.is_published(b.table[1])
    assert world.pool.anchor(b.table[1]) == 1
    world.cancel("a")
    assert world.pool.references[1] == 1, "b's published continuation keeps its prefix"
    world.cancel("b")
    assert world.pool.references[1] == 0
    assert 2 in world.pool.scratch
    assert list(world.pool.idle) == [4, 3, 1]


def test_a_block_that_nobody_uses_hands_its_prefix_to_the_one_who_computes_it_again():
    """Requests for prompt log-probabilities never read the cache; their own blocks replace idle ones."""
    world = ran(range(8))
    old = list(world.pool.idle)
    world.submit(request("a", range(8), max_tokens=3, prompt_logprobs=0))
    world.turn(ahead=False)
    table = world.sequence("a").table
    assert set(table).isdisjoint(old)
    assert all(world.pool.is_published(block) for block in table[:2])
    assert set(old) <= set(world.pool.scratch)
    world.drain()


def test_a_lone_sequence_gets_back_the_blocks_its_own_continuations_held():
    """9 blocks. `lone` does not read the cache, so it has 3 blocks of its own beside the 3 of `other`; its fourth
    continues those of `other` and holds them. Its seventh finds nothing free until they are let go.
    """
    world = World(limits(num_blocks=10, max_model_len=28, max_num_batched_tokens=64))
    world.submit(request("other", range(12), max_tokens=4))
    world.turn(ahead=False)
    world.submit(request("lone", range(12), max_tokens=16, prompt_logprobs=0))
    world.plan()
    lone = world.sequence("lone")
    while len(lone.table) < 6:
        world.land()
        world.plan()
    held = [world.scheduler.cache.node_of[lone.table[3]].parent.payload]
    assert held[0] not in lone.table
    assert world.pool.references[held[0]] == 1
    assert world.pool.num_available == 0
    world.drain(ahead=False)
    assert lone.preemptions == 0
    assert world.num_verified == 2


def test_counters_add_up():
    world = ran(range(8), range(8), [9] * 5)
    counters = world.scheduler.counters
    assert (counters.lookups, counters.hits, counters.misses) == (3, 1, 2)
    assert (counters.lookup_tokens, counters.hit_tokens, counters.missed_tokens) == (21, 7, 14)
    assert counters.computed_tokens == world.shadow.num_computed == 14


def test_hits_agree_with_a_dictionary_of_token_lists():
    """Without eviction: a hit is the longest common prefix in whole blocks, plus the best part of one more."""
    rng = random.Random(7)
    world = World(limits(num_blocks=400, max_num_batched_tokens=64), vocab=3)
    seen: dict[bytes, set[tuple[int, ...]]] = {b"": set(), b"x": set()}
    for number in range(120):
        namespace = rng.choice([b"", b"x"])
        prompt = tuple(rng.randrange(3) for _ in range(rng.randrange(1, 20)))
        if rng.random() < 0.5 and seen[namespace]:
            prompt = rng.choice(sorted(seen[namespace])) + prompt[:6]
        prompt = prompt[:50]
        limit, known = len(prompt) - 1, seen[namespace]
        blocks = next(k for k in range(limit // 4, -1, -1) if k == 0 or prompt[: 4 * k] in known)
        partial = max(
            (
                next(
                    (
                        i
                        for i in range(4)
                        if 4 * blocks + i >= limit or line[4 * blocks + i] != prompt[4 * blocks + i]
                    ),
                    4,
                )
                for line in known
                if len(line) == 4 * blocks + 4 and line[: 4 * blocks] == prompt[: 4 * blocks]
            ),
            default=0,
        )
        world.submit(request(f"r{number}", prompt, namespace=namespace, max_tokens=rng.randrange(1, 6)))
        first = world.plan().slices[0]
        assert first.start == 4 * blocks + partial
        world.drain()
        line = (*prompt, *world.output(f"r{number}"))[:-1]
        known.update(line[: 4 * k] for k in range(1, len(line) // 4 + 1))
    assert world.scheduler.counters.hits > 80
    assert world.scheduler.counters.evictions == 0


def test_tokens_do_not_depend_on_what_was_cached():
    prompt = list(range(9))
    cold, warm = ran(), ran(prompt, prompt[:6], [*prompt, 1, 2])
    for world in (cold, warm):
        world.submit(request("x", prompt))
        world.drain()
    assert cold.output("x") == warm.output("x")
    assert warm.scheduler.counters.hits > cold.scheduler.counters.hits == 0
