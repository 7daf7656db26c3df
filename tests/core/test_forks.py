"""Parallel choices share their prompt, and part at the first write. Blocks hold 4 tokens."""

from __future__ import annotations

from octavo.core.sequence import State
from octavo.core.step import Copy, Forked, Preempted, Token
from tests.core.requests import request
from tests.core.world import World, limits


def forked(prompt_length: int = 6, n: int = 3, **changes) -> World:
    """A world in which one request has just parted into `n` choices."""
    world = World(limits(**({"num_blocks": 65} | changes)))
    world.submit(request("a", range(10, 10 + prompt_length), n=n, max_tokens=6))
    world.plan()
    world.land()
    return world


def test_choices_part_when_the_prompt_is_computed():
    world = World(limits())
    world.submit(request("a", range(6), n=3))
    step = world.plan()
    assert step.slices[0].samples == 3
    assert world.plan() is None, "nothing is planned ahead of a fork"
    events = world.land()
    assert [type(event) for event in events] == [Forked, Forked, Token, Token, Token]
    assert events[:2] == [Forked("a", 0, 1, 1, 6), Forked("a", 0, 2, 2, 6)]
    assert [(e.seq_id, e.index, e.position) for e in events[2:]] == [(0, 0, 6), (1, 1, 6), (2, 2, 6)]
    assert [world.scheduler.sequences[i].table for i in range(3)] == [[1, 2]] * 3
    assert world.pool.references[1:3] == [3, 3]


def test_the_shared_tail_is_copied_at_the_first_write_and_the_last_one_keeps_it():
    world = forked()
    step = world.plan()
    assert step.copies == (Copy(2, 3, 2), Copy(2, 4, 2))
    first, second, third = step.slices
    assert (first.new_blocks, first.replaced) == ((), ((1, 3),))  # its table was known to the worker
    assert (second.new_blocks, second.replaced) == ((1, 4), ())  # a new sequence is told all of its table
    assert (third.new_blocks, third.replaced) == ((1, 2), ())
    world.land()
    assert world.pool.references[1:5] == [3, 1, 1, 1]
    world.drain()
    assert world.num_verified == 3


def test_a_prompt_that_fills_its_blocks_needs_no_copy():
    world = forked(prompt_length=8)
    step = world.plan()
    assert step.copies == ()
    assert [piece.new_blocks for piece in step.slices] == [(3,), (1, 2, 4), (1, 2, 5)]
    world.drain()
    assert world.num_verified == 3


def test_one_choice_can_be_cancelled_by_finish_and_the_others_go_on():
    world = forked()
    world.plan()
    world.finish(1)
    world.land()
    assert [s.seq_id for s in world.scheduler.live("a")] == [0, 2]
    world.drain()
    assert world.num_verified == 2
    assert world.pool.num_available == 64


def test_a_group_takes_a_seat_for_every_choice_to_come():
    world = World(limits())
    world.submit(request("a", [1] * 6, n=3))
    world.submit(request("b", [2] * 6, n=2))
    assert [piece.seq_id for piece in world.plan().slices] == [0]
    assert world.sequence("b").wait_reason == "all seats are taken"
    assert world.scheduler.roster.num_seats == 3
    world.land()
    world.finish(0)
    world.finish(2)
    assert world.scheduler.roster.num_seats == 1, "choices that have ended give their seats back"
    assert [piece.seq_id for piece in world.plan().slices] == [2, 1] or world.scheduler.roster.num_seats == 3
    world.drain()


def test_a_preempted_choice_is_recomputed_alone_and_shares_the_prompt_again():
    world = World(limits(num_blocks=7, max_model_len=24))
    world.submit(request("a", range(9), n=3, max_tokens=7))
    world.drain()
    preempted = [event.seq_id for event in world.events if isinstance(event, Preempted)]
    assert preempted
    assert set(preempted) <= {1, 2}
    assert world.num_verified == 3


def test_preempted_before_the_fork_it_still_draws_all_choices():
    world = World(limits(max_num_seqs=3, max_num_batched_tokens=4))
    world.submit(request("a", range(10), n=3, priority=1))
    world.turn(ahead=False)
    world.submit(request("b", [7] * 3, max_tokens=2))
    world.plan()
    assert world.sequence("a").state is State.WAITING
    assert world.sequence("a").epoch == 1
    world.drain()
    assert world.num_verified == 4
    assert len([event for event in world.events if isinstance(event, Forked)]) == 2


def test_choices_that_end_at_once_give_everything_back():
    world = World(limits())
    world.submit(request("a", range(7), n=4, max_tokens=1))
    world.drain()
    assert world.num_verified == 4
    assert world.pool.num_available == 32
    assert len(world.steps) == 1
