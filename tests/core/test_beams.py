"""Beams: held until all siblings are, advanced together, and never losing a candidate to preemption."""

from __future__ import annotations

import pytest

from octavo.core.sequence import State
from octavo.core.step import Finished, Forked, Held, Preempted, Token
from octavo.errors import Bug
from tests.core.requests import request
from tests.core.world import World, limits


def held(prompt_length: int = 6, width: int = 3, **changes) -> World:
    """A world in which the first beam of a request has just been computed."""
    world = World(limits(**({"num_blocks": 65} | changes)))
    world.submit(request("a", range(10, 10 + prompt_length), beam_width=width, max_tokens=6))
    world.plan()
    world.land()
    return world


def test_a_beam_search_starts_as_one_sequence_and_holds_it():
    world = World(limits())
    world.submit(request("a", range(6), beam_width=3))
    assert world.plan().slices[0].samples == 1
    events = world.land()
    assert [type(event) for event in events] == [Held]
    assert len(events[0].payload) == 6
    assert world.sequence("a").state is State.HELD
    assert world.plan() is None
    assert world.scheduler.roster.num_seats == 3, "room for every beam is kept"


def test_advance_forks_the_first_child_in_place():
    world = held()
    events = world.scheduler.advance("a", [(0, 7), (0, 8), (0, 9)], 0.0)
    assert events == [
        Forked("a", 0, 1, 1, 6),
        Forked("a", 0, 2, 2, 6),
        Token("a", 0, 0, 6, 7),
        Token("a", 1, 1, 6, 8),
        Token("a", 2, 2, 6, 9),
    ]
    assert [s.tokens[6:] for s in world.scheduler.live("a")] == [[7], [8], [9]]
    assert world.pool.references[1:3] == [3, 3]


def test_beams_without_a_child_end_silently_and_no_beams_end_the_request():
    world = held()
    world.scheduler.advance("a", [(0, 7), (0, 8)], 0.0)
    step = world.scheduler.plan(0.0)
    world.shadow.workers.clear()
    outputs = [type("O", (), {})() for _ in step.slices]
    assert len(outputs) == 2
    with pytest.raises(Bug, match=r"its beams \[0, 1\] are not held"):
        world.scheduler.advance("a", [(0, 1)], 0.0)


def test_a_parent_with_two_children_and_one_with_none():
    world = held(width=2)
    world.advance("a")
    world.plan()
    world.land()
    events = world.scheduler.advance("a", [(1, 3), (1, 4)], 0.0)
    assert events == [
        Forked("a", 1, 2, 2, 7),
        Token("a", 1, 1, 7, 3),
        Token("a", 2, 2, 7, 4),
        Finished("a", 0, 0, "beam"),
    ]
    assert world.scheduler.cancel("a", 0.0) == [Finished("a", i, i, "cancelled") for i in (1, 2)]
    assert world.scheduler.advance("a", [], 0.0) == []
    assert world.scheduler.idle
    world.scheduler.check()


def test_advance_refuses_strangers_and_too_many():
    world = held(width=2)
    with pytest.raises(Bug, match="sequence 9 is not a live beam"):
        world.scheduler.advance("a", [(9, 1)], 0.0)
    with pytest.raises(Bug, match="3 beams where beam_width is 2"):
        world.scheduler.advance("a", [(0, 1), (0, 2), (0, 3)], 0.0)
    world.submit(request("b", [1]))
    with pytest.raises(Bug, match="'b' is no beam search"):
        world.scheduler.advance("b", [], 0.0)


def test_beams_give_what_they_give_alone_beside_others():
    world = World(limits(max_num_seqs=8))
    for name, width in (("a", 3), ("b", 1), ("c", 2)):
        world.submit(request(name, [ord(name)] * 5, beam_width=width, max_tokens=5))
    world.submit(request("d", [1, 2, 3]))
    world.drain()
    assert world.num_verified == 4


def test_beams_at_the_end_of_the_window_end_with_length():
    world = World(limits(max_model_len=9, num_blocks=65))
    world.submit(request("a", range(6), beam_width=2, max_tokens=40))
    world.drain()
    reasons = {event.reason for event in world.events if isinstance(event, Finished)}
    assert "length" in reasons
    assert world.num_verified == 1


def test_held_beams_yield_to_their_siblings_and_keep_their_candidates():
    """Memory for one beam at a time: each one is computed, held, preempted, and still advanced."""
    world = World(limits(num_blocks=6, max_model_len=20))
    world.submit(request("a", range(9), beam_width=3, max_tokens=10))
    world.drain()
    preempted = [event for event in world.events if isinstance(event, Preempted)]
    assert preempted
    assert world.num_verified == 1


def test_a_held_beam_without_memory_waits_for_its_siblings_and_not_in_the_queue():
    world = held(width=2, max_num_seqs=2)
    world.submit(request("b", [1] * 4, priority=-1, max_tokens=3))
    world.plan()
    sequence = world.sequence("a")
    assert (sequence.state, sequence.table, sequence.epoch) == (State.HELD, [], 1)
    assert sequence not in world.scheduler.roster.waiting
    world.advance("a")
    assert [s.state for s in world.scheduler.live("a")] == [State.WAITING] * 2
    world.drain()
    assert world.num_verified == 2


def test_when_only_held_beams_have_memory_they_make_way_for_the_queue():
    world = held(width=3, num_blocks=5, max_model_len=16)
    world.submit(request("b", [1] * 9, max_tokens=3))
    step = world.plan()
    assert [piece.seq_id for piece in step.slices] == [1]
    assert step.preempted == (0,)
    assert world.land()[0] == Preempted("a", 0, "it is held while another sequence needs its blocks")
    world.drain()
    assert world.num_verified == 2


def test_one_failed_beam_does_not_stop_the_others():
    world = held(width=2)
    world.advance("a")
    world.plan()
    events = world.land(errors=frozenset({1}))
    assert [type(event) for event in events] == [Held, Finished]
    world.drain()
    assert world.scheduler.idle
