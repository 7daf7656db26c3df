"""Plans and commits with exact ids and counts. Blocks hold 4 tokens, a step 16, at most 4 sequences have memory."""

from __future__ import annotations

import pytest

from octavo.core.scheduler import Limits, Scheduler
from octavo.core.sequence import State
from octavo.core.step import Finished, Output, Preempted, Slice, Step, StepResult, Token
from octavo.errors import Bug, PromptTooLong, RequestError
from tests.core.requests import request
from tests.core.world import World, limits

END = 5


def answer(step: Step, *tokens: tuple[int, ...]) -> StepResult:
    """A result with these tokens for the step's slices, in order."""
    outputs = [Output(p.seq_id, p.epoch, t) for p, t in zip(step.slices, tokens, strict=True)]
    return StepResult(step.number, tuple(outputs))


def shapes(step: Step | None) -> list[tuple[int, int, int]]:
    """(sequence, start, tokens) of each slice."""
    assert step is not None
    return [(piece.seq_id, piece.start, piece.num_tokens) for piece in step.slices]


def test_one_request_from_submit_to_finish():
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", [1, 2, 3, 4, 5], max_tokens=2), 0.0)
    assert not scheduler.idle
    first = scheduler.plan(0.0)
    assert first == Step(0, (Slice(0, 0, 0, 5, (1, 2), (), 1),))
    assert scheduler.commit(first, answer(first, (7,)), 0.0) == [Token("a", 0, 0, 5, 7)]
    second = scheduler.plan(0.0)
    assert second == Step(1, (Slice(0, 0, 5, 1, (), (), 1),))
    events = scheduler.commit(second, answer(second, (8,)), 0.0)
    assert events == [Token("a", 0, 0, 6, 8), Finished("a", 0, 0, "length")]
    assert scheduler.idle
    assert scheduler.plan(0.0) is None
    assert scheduler.cache.pool.num_available == 32
    scheduler.check()


def test_a_long_prompt_is_computed_in_chunks_and_samples_only_at_its_end():
    world = World(limits(max_chunk_tokens=6))
    world.submit(request("a", range(15), max_tokens=1))
    for _ in range(3):
        world.turn(ahead=False)
    steps = world.steps
    assert [(s.slices[0].start, s.slices[0].num_tokens, s.slices[0].samples) for s in steps] == [
        (0, 6, 0),
        (6, 6, 0),
        (12, 3, 1),
    ]
    assert [s.slices[0].new_blocks for s in steps] == [(1, 2), (3,), (4,)]


def test_a_running_decode_is_never_starved_by_a_long_prefill():
    world = World(limits(max_model_len=120, num_blocks=80))
    world.submit(request("a", [1, 2, 3], max_tokens=20))
    world.turn(ahead=False)
    world.submit(request("b", range(100)))
    for _ in range(6):
        step = world.plan()
        assert step.slices[0] == Slice(0, 0, step.slices[0].start, 1, step.slices[0].new_blocks, (), 1)
        assert step.slices[1].num_tokens == 15
        assert step.num_tokens == 16
        world.land()


def test_running_prefills_share_the_budget_best_placed_first_then_others_begin():
    world = World(limits(max_chunk_tokens=6, num_blocks=80))
    for name in "abcd":
        world.submit(request(name, [ord(name)] * 20))
    assert shapes(world.plan()) == [(0, 0, 6), (1, 0, 6), (2, 0, 4)]
    assert shapes(world.plan()) == [(0, 6, 6), (1, 6, 6), (2, 4, 4)]
    world.land()
    world.land()
    assert shapes(world.plan()) == [(0, 12, 6), (1, 12, 6), (2, 8, 4)]
    assert world.sequence("d").wait_reasons == {"the step's token budget is used up": 3}


def test_a_step_is_planned_ahead_from_counts_alone():
    world = World(limits())
    world.submit(request("a", [1, 2, 3], max_tokens=4))
    assert shapes(world.plan()) == [(0, 0, 3)]
    assert shapes(world.plan()) == [(0, 3, 1)]  # its token is not known yet
    world.land()
    assert shapes(world.plan()) == [(0, 4, 1)]
    world.land()
    assert shapes(world.plan()) == [(0, 5, 1)]  # the last one: nothing beyond max_tokens is planned
    world.land()
    assert world.plan() is None
    assert [type(e) for e in world.land()] == [Token, Finished]


def test_steady_decoding_always_has_a_step_ahead():
    world = World(limits(max_model_len=60))
    for name in "abcd":
        world.submit(request(name, [ord(name)], max_tokens=30))
    world.plan()
    for number in range(1, 30):
        step = world.plan()
        assert step is not None
        assert step.number == number
        assert len(step.slices) == 4
        world.land()


def test_more_than_one_step_ahead_is_refused():
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", [1, 2, 3]), 0.0)
    scheduler.plan(0.0)
    scheduler.plan(0.0)
    with pytest.raises(Bug, match="steps 0 and 1 are in flight"):
        scheduler.plan(0.0)


def test_what_was_planned_ahead_of_an_end_is_ignored_and_its_blocks_wait_for_the_step():
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", [1, 2, 3, 4], ends={END}), 0.0)
    first, ahead = scheduler.plan(0.0), scheduler.plan(0.0)
    assert shapes(ahead) == [(0, 4, 1)]
    events = scheduler.commit(first, answer(first, (END,)), 0.0)
    assert events == [Token("a", 0, 0, 4, END), Finished("a", 0, 0, "stop", END)]
    assert list(scheduler.cache.pool.deferred) == [2, 1]
    assert scheduler.idle
    assert scheduler.commit(ahead, answer(ahead, (3,)), 0.0) == []
    assert not scheduler.cache.pool.deferred
    scheduler.check()


def test_an_output_with_an_old_epoch_is_ignored():
    """a is preempted for b while its token is in flight; the token does not count, and is drawn again."""
    scheduler = Scheduler(limits(num_blocks=4, max_model_len=12))
    scheduler.submit(request("a", [1, 2, 3, 4, 5, 6, 7], priority=1, max_tokens=4), 0.0)
    step = scheduler.plan(0.0)
    scheduler.submit(request("b", [9] * 8, max_tokens=2), 0.0)
    assert scheduler.plan(0.0) is None  # a's blocks are still in use by the step in flight
    assert list(scheduler.cache.pool.deferred) == [2, 1]
    events = scheduler.commit(step, answer(step, (3,)), 0.0)
    assert events == [Preempted("a", 0, "a request of better priority needs its place")]
    assert scheduler.sequences[0].tokens == [1, 2, 3, 4, 5, 6, 7]
    assert scheduler.sequences[0].epoch == 1
    following = scheduler.plan(0.0)
    assert shapes(following) == [(1, 0, 8)]
    assert following.preempted == (0,)


def test_a_result_must_answer_its_step_slice_by_slice():
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", [1, 2, 3]), 0.0)
    step = scheduler.plan(0.0)
    for wrong in (
        StepResult(1, answer(step, (1,)).outputs),
        StepResult(0, ()),
        StepResult(0, (Output(9, 0, (1,)),)),
    ):
        with pytest.raises(Bug, match="not that of step 0"):
            scheduler.commit(step, wrong, 0.0)
    with pytest.raises(Bug, match="was to draw 1 tokens and got 0"):
        scheduler.commit(step, answer(step, ()), 0.0)
    with pytest.raises(Bug, match="step 0 is not the oldest in flight"):
        scheduler.commit(step, answer(step, (1,)), 0.0)


@pytest.mark.parametrize(
    ("params", "tokens", "reason", "stop_token"),
    [
        ({"max_tokens": 3}, [1, 1, 1], "length", None),
        ({}, [1, END], "stop", END),
        ({"ignore_eos": True, "max_tokens": 3}, [1, END, 1], "length", None),
        ({"ignore_eos": True, "stop_token_ids": (4,)}, [END, 4], "stop", 4),
        ({"min_tokens": 3}, [END, END, END], "stop", END),
        ({"min_tokens": 2, "stop_token_ids": (4,)}, [4, 4], "stop", 4),
        ({"max_tokens": 2}, [1, END], "stop", END),
        ({"max_tokens": None}, [1] * 61, "length", None),
    ],
)
def test_how_tokens_end_a_sequence(params, tokens, reason, stop_token):
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", [1, 2, 3], ends={END}, **params), 0.0)
    for position, token in enumerate(tokens, start=3):
        step = scheduler.plan(0.0)
        events = scheduler.commit(step, answer(step, (token,)), 0.0)
        assert events[0] == Token("a", 0, 0, position, token)
    assert events[1:] == [Finished("a", 0, 0, reason, stop_token)]
    assert scheduler.idle


def test_an_error_ends_one_sequence_and_its_blocks_are_not_cached():
    world = World(limits())
    world.submit(request("a", range(9)))
    world.submit(request("b", range(20, 25)))
    world.plan()
    events = world.land(errors=frozenset({0}))
    assert events[0] == Finished("a", 0, 0, "error", None, "not a number in the logits")
    assert events[1] == Token("b", 1, 0, 5, events[1].token)
    world.submit(request("c", range(9)))
    world.plan()
    assert world.sequence("c").num_cached_tokens == 0
    world.drain()


def test_cancel_and_finish_at_any_moment_and_twice():
    world = World(limits())
    for name in "abc":
        world.submit(request(name, [ord(name)] * 5))
    assert world.cancel("c") == [Finished("c", 2, 0, "cancelled")]  # waiting
    world.plan()
    assert world.finish(1, "stop") == [Finished("b", 1, 0, "stop")]  # in flight
    assert [type(event) for event in world.land()] == [Token]
    assert world.cancel("a") == [Finished("a", 0, 0, "cancelled")]  # between steps
    assert world.cancel("a") == world.cancel("nobody") == []
    assert world.scheduler.finish(0, "stop", 0.0) == []
    assert world.scheduler.idle
    assert world.pool.num_available == 32


def test_a_request_id_can_be_used_again_after_its_end():
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", [1]), 0.0)
    with pytest.raises(RequestError, match="'a' is in use"):
        scheduler.submit(request("a", [2]), 0.0)
    scheduler.cancel("a", 0.0)
    scheduler.submit(request("a", [2]), 0.0)
    assert [s.seq_id for s in scheduler.live("a")] == [1]


def test_better_priority_goes_first_and_equals_go_by_arrival():
    world = World(limits(max_num_seqs=1, num_blocks=80))
    for name, priority in [("a", 2), ("b", 1), ("c", 2), ("d", 1)]:
        world.submit(request(name, [ord(name)] * 3, priority=priority, max_tokens=1))
    order = []
    while not world.scheduler.idle:
        order += [event.request_id for event in world.turn(ahead=False) if isinstance(event, Finished)]
    assert order == ["b", "d", "a", "c"]


def test_a_request_of_better_priority_takes_the_seat_of_the_worst():
    world = World(limits(max_num_seqs=2))
    world.submit(request("a", [1] * 5, priority=1))
    world.submit(request("b", [2] * 5, priority=2))
    world.turn(ahead=False)
    world.submit(request("c", [3] * 5, priority=0))
    step = world.plan()
    assert step.preempted == (1,)
    assert shapes(step) == [(0, 5, 1), (2, 0, 5)]
    assert world.land()[0] == Preempted("b", 1, "a request of better priority needs its place")
    assert world.sequence("b").state is State.WAITING
    assert world.sequence("b").preemptions == 1
    world.drain()
    assert world.num_verified == 3


def test_a_request_of_better_priority_goes_before_a_long_prefill_that_has_begun():
    world = World(limits(max_model_len=100, num_blocks=80))
    world.submit(request("decode", [8], max_tokens=20, priority=2))
    world.turn(ahead=False)
    world.submit(request("long", range(90), priority=1))
    world.turn(ahead=False)
    world.submit(request("urgent", [7] * 9))
    world.submit(request("equal", [6] * 9, priority=1))
    assert shapes(world.plan()) == [(0, 2, 1), (2, 0, 9), (1, 15, 2), (3, 0, 1)]


def test_equal_priority_does_not_preempt_from_the_queue():
    world = World(limits(max_num_seqs=1))
    world.submit(request("a", [1] * 5))
    world.turn(ahead=False)
    world.submit(request("b", [2] * 5))
    step = world.plan()
    assert shapes(step) == [(0, 5, 1)]
    assert step.preempted == ()
    assert world.sequence("b").wait_reason == "all seats are taken"


def test_out_of_blocks_the_last_arrival_yields_and_comes_back_with_its_tokens():
    """Two sequences of 8 tokens fill 4 blocks; the ninth token of the first takes a block of the second."""
    world = World(limits(num_blocks=5, max_model_len=16, enable_prefix_caching=False))
    world.submit(request("a", [1] * 7, max_tokens=6))
    world.submit(request("b", [2] * 7, max_tokens=6))
    world.turn(ahead=False)
    world.turn(ahead=False)
    assert shapes(world.plan()) == [(0, 8, 1)]
    assert world.steps[-1].preempted == (1,)
    assert world.sequence("b").tokens[7:] == world.output("b")
    assert len(world.output("b")) == 2
    world.drain()
    assert world.num_verified == 2
    assert [e.because for e in world.events if isinstance(e, Preempted)] == [
        "a better placed sequence needs its blocks"
    ]
    assert world.scheduler.counters.preemptions == 1


def test_a_sequence_that_is_the_worst_itself_yields_to_nobody_worse():
    world = World(limits(num_blocks=5, max_model_len=16, enable_prefix_caching=False))
    world.submit(request("a", [1] * 6, max_tokens=9))
    world.submit(request("b", [2] * 7, max_tokens=6))
    world.turn(ahead=False)
    world.turn(ahead=False)
    step = world.plan()  # b is at a block's edge, a is not
    assert shapes(step) == [(0, 7, 1)]
    assert step.preempted == (1,)
    assert world.land()[0].because == "no block is left for its next token"
    world.drain()
    assert world.num_verified == 2


def test_blocks_of_a_victim_in_flight_are_not_handed_out_before_its_step_has_landed():
    world = World(limits(num_blocks=5, max_model_len=16, enable_prefix_caching=False))
    world.submit(request("a", [1] * 7, max_tokens=6))
    world.submit(request("b", [2] * 7, max_tokens=6))
    world.plan()
    assert shapes(world.plan()) == [(0, 7, 1), (1, 7, 1)]
    world.land()
    assert world.plan() is None  # a waits for b's blocks, which step 1 still uses
    assert world.sequence("a").wait_reason == "blocks it needs are in use by a step in flight"
    assert list(world.pool.deferred) == [4, 3]
    world.land()
    step = world.plan()
    assert shapes(step) == [(0, 8, 1)]
    assert step.slices[0].new_blocks == (3,)
    world.drain()


def test_nobody_overtakes_a_big_request_that_waits_for_blocks():
    world = World(limits(num_blocks=9, max_model_len=32))
    world.submit(request("a", [1] * 15, max_tokens=8))
    world.turn(ahead=False)
    world.submit(request("big", [2] * 24, max_tokens=4))
    world.submit(request("small", [3], max_tokens=1))
    assert shapes(world.plan()) == [(0, 15, 1)]
    assert world.sequence("big").wait_reasons == {"not enough free blocks": 1}
    assert world.sequence("small").wait_reasons == {}
    world.drain()
    first_slices = {piece.seq_id: step.number for step in reversed(world.steps) for piece in step.slices}
    assert 0 < first_slices[1] <= first_slices[2]


def test_a_prompt_begins_only_when_all_of_it_fits_beside_the_prefills_under_way():
    """a still needs 4 of the 8 blocks when b asks for 5."""
    world = World(limits(num_blocks=10, max_model_len=36, max_num_batched_tokens=8, max_chunk_tokens=4))
    world.submit(request("a", [1] * 19, max_tokens=1))
    world.submit(request("b", [2] * 18, max_tokens=1))
    assert shapes(world.plan()) == [(0, 0, 4)]
    assert world.sequence("b").wait_reason == "not enough free blocks"
    world.drain()
    assert world.scheduler.counters.preemptions == 0


def test_what_can_never_run_is_refused_with_numbers():
    scheduler = Scheduler(limits(num_blocks=9, max_model_len=64))
    with pytest.raises(
        PromptTooLong, match=r"the prompt has 64 tokens and the window is 64 .* shorten the prompt to 63"
    ):
        scheduler.submit(request("a", [1] * 64), 0.0)
    with pytest.raises(
        PromptTooLong, match=r"has 30 tokens .* may reach 38, which takes 10 blocks .* 8 blocks \(32 tok"
    ):
        scheduler.submit(request("a", [1] * 30), 0.0)
    scheduler.submit(request("a", [1] * 24), 0.0)
    with pytest.raises(RequestError, match="the prompt is empty"):
        scheduler.submit(request("b", []), 0.0)
    for bad in (-1, 2**32, "x", 1.0):
        with pytest.raises(RequestError, match="token ids between 0 and 4294967295"):
            scheduler.submit(request("b", [bad]), 0.0)
    with pytest.raises(RequestError, match="asks for 5 sequences at once and max_num_seqs is 4; lower n"):
        scheduler.submit(request("b", [1], n=5), 0.0)
    with pytest.raises(RequestError, match="lower beam_width"):
        scheduler.submit(request("b", [1], beam_width=5), 0.0)
    assert list(scheduler.sequences) == [0], "a refused request leaves nothing behind"
    scheduler.check()


def test_ids_and_indices_are_what_the_engine_expects():
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", [1, 2]), 0.0)
    sequence = scheduler.sequences[0]
    assert (sequence.seq_id, sequence.index, sequence.epoch, sequence.state) == (0, 0, 0, State.WAITING)
    assert sequence.tokens == [1, 2]
    assert sequence.request.request_id == "a"
    assert isinstance(scheduler.limits, Limits)
