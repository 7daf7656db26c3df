"""Which engine a prompt is sent to. Routing blocks hold 64 tokens."""

from __future__ import annotations

import random

import pytest

from octavo.core.route import BLOCK_TOKENS, RUNNING_TOKENS, Load, Router

IDLE = [Load(0, 0, 0), Load(1, 0, 0), Load(2, 0, 0)]
LONG = tuple(range(3 * BLOCK_TOKENS + 5))


def test_a_prompt_goes_where_its_beginning_was_sent():
    router = Router()
    router.choose(LONG, b"", [Load(2, 0, 0)])
    route = router.choose((*LONG[: 2 * BLOCK_TOKENS], 9, 9), b"", IDLE)
    assert (route.replica, route.num_matched) == (2, 2 * BLOCK_TOKENS)
    assert "128 of 130 prompt tokens" in route.because


def test_what_shares_nothing_goes_where_least_is_to_do():
    loads = [Load(0, 500, 1), Load(1, 40, 1), Load(2, 0, 9)]
    assert Router().choose((1, 2, 3), b"", loads).replica == 1
    assert Router().choose((1, 2, 3), b"", IDLE).replica == 0


@pytest.mark.parametrize(("pending", "wanted"), [(191, 0), (193, 1)])
def test_a_cached_beginning_is_worth_as_many_tokens_as_it_saves(pending, wanted):
    router = Router()
    router.choose(LONG, b"", [Load(0, 0, 0)])
    assert router.choose(LONG, b"", [Load(0, pending, 0), Load(1, 0, 0)]).replica == wanted
    router = Router("least_loaded")
    router.choose(LONG, b"", [Load(0, 0, 0)])
    assert router.choose(LONG, b"", [Load(0, 1, 0), Load(1, 0, 0)]).replica == 1


def test_running_requests_count_too():
    assert Router().choose((1,), b"", [Load(0, 0, 2), Load(1, 2 * RUNNING_TOKENS - 1, 0)]).replica == 1


def test_namespaces_share_nothing():
    router = Router()
    router.choose(LONG, b"a", [Load(1, 0, 0)])
    assert router.choose(LONG, b"b", IDLE) == Router().choose(LONG, b"b", IDLE)


def test_a_replica_without_its_cache_is_forgotten_and_the_others_are_not():
    router = Router()
    for replica in (0, 1):
        router.choose(LONG, b"", [Load(replica, 0, 0)])
    router.forget(0)
    assert router.choose(LONG, b"", IDLE).replica == 1
    router.forget(1)
    router.forget(2)
    assert len(router) == 0
    assert len(router._tree) == 0, "nothing is left of it"


def test_memory_is_bounded_and_the_beginnings_stay_longest():
    router = Router(max_blocks=4)
    router.choose(LONG, b"", [Load(1, 0, 0)])
    router.choose(tuple(range(1000, 1000 + 2 * BLOCK_TOKENS)), b"", [Load(2, 0, 0)])
    assert len(router) == 4
    route = router.choose(LONG, b"", [Load(1, 0, 0)])
    assert route.num_matched == 2 * BLOCK_TOKENS, "its last block was forgotten first"


def test_no_replica_is_an_error():
    with pytest.raises(ValueError, match="no replica"):
        Router().choose((1,), b"", [])


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_a_list_of_everything_that_was_sent(seed):
    rng = random.Random(seed)
    router, sent = Router(), []
    for _ in range(120):
        stem = [rng.randrange(2)] * (BLOCK_TOKENS * rng.randrange(4))
        tokens = tuple(stem + [rng.randrange(3) for _ in range(rng.randrange(2 * BLOCK_TOKENS))])
        namespace = rng.choice([b"", b"x"])
        loads = [Load(i, rng.randrange(200), rng.randrange(3)) for i in range(3)]
        matched = {
            i: max((shared(tokens, other) for n, other, to in sent if (n, to) == (namespace, i)), default=0)
            for i in range(3)
        }
        costs = [
            one.pending_tokens + len(tokens) - matched[i] + RUNNING_TOKENS * one.num_running
            for i, one in enumerate(loads)
        ]
        route = router.choose(tokens, namespace, loads)
        assert (route.replica, route.num_matched) == (
            costs.index(min(costs)),
            matched[costs.index(min(costs))],
        )
        sent.append((namespace, tokens, route.replica))
        if rng.random() < 0.05:
            gone = rng.randrange(3)
            router.forget(gone)
            sent = [one for one in sent if one[2] != gone]


def shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Leading tokens in common, in whole blocks."""
    count = 0
    while one[count : count + 64] == other[count : count + 64] and len(one[count : count + 64]) == 64:
        count += BLOCK_TOKENS
    return count
