"""Nobody starves and nothing livelocks: bounded numbers of steps under sizes chosen to hurt."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.scheduler import Limits
from octavo.core.sequence import State
from octavo.core.step import Finished
from tests.core.requests import request
from tests.core.world import World

sizes = st.lists(
    st.tuples(st.integers(1, 22), st.integers(1, 12), st.sampled_from([0, 0, 0, 1])), min_size=1, max_size=8
)


def tight(block_tokens: int, slack: int, seats: int, budget: int, window: int | None) -> World:
    """A pool in which the longest possible sequence only just fits (and `slack` blocks more)."""
    shape = {
        "num_blocks": 2,
        "block_tokens": block_tokens,
        "max_num_seqs": seats,
        "max_num_batched_tokens": seats + budget,
        "max_model_len": 24,
        "window_tokens": window,
    }
    smallest = Limits(**shape).min_blocks(24) + 1
    return World(Limits(**(shape | {"num_blocks": smallest + slack})))


@settings(max_examples=60, deadline=None)
@given(
    sizes=sizes,
    block_tokens=st.sampled_from([1, 2, 4]),
    slack=st.integers(0, 3),
    seats=st.integers(1, 5),
    budget=st.integers(0, 6),
    window=st.sampled_from([None, None, 5]),
    ahead=st.booleans(),
)
def test_the_number_of_turns_is_bounded_by_the_work_done_one_sequence_at_a_time(
    sizes, block_tokens, slack, seats, budget, window, ahead
):
    """The best placed sequence with memory gets a token in every turn (every second one with a step ahead), and
    loses it only to a better placed one that begins. So, one after the other, each needs no more turns than tokens.
    """
    world = tight(block_tokens, slack, seats, budget, window)
    tokens = 0
    for number, (prompt, output, priority) in enumerate(sizes):
        world.submit(request(f"r{number}", [number % 3] * prompt, max_tokens=output, priority=priority))
        tokens += min(prompt + output, 24) + 2
    world.drain(max_turns=(2 if ahead else 1) * tokens, ahead=ahead)
    assert world.num_verified == len(sizes)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("seed", range(6))
def test_beams_and_choices_get_on_in_a_pool_for_one_sequence(seed, window):
    """Every beam may have to be recomputed for every token: turns are bounded by tokens squared, per beam."""
    rng = random.Random(seed)
    world = tight(rng.choice([1, 2, 4]), seed % 2, 4, rng.randrange(5), window)
    tokens = 0
    for number in range(5):
        prompt, output = rng.randrange(1, 15), rng.randrange(1, 9)
        kind = {"beam_width": rng.randrange(1, 4)} if number % 2 else {"n": rng.randrange(1, 5)}
        world.submit(request(f"r{number}", [rng.randrange(3)] * prompt, max_tokens=output, **kind))
        tokens += 4 * (prompt + output) * (output + 1)
    world.drain(max_turns=2 * tokens)
    assert world.num_verified >= 5


def test_the_best_placed_sequence_is_never_preempted_and_gets_a_token_in_every_step():
    """Until it ends, whatever arrives behind it."""
    world = tight(block_tokens=2, slack=2, seats=4, budget=0, window=None)
    world.submit(request("best", [1] * 9, max_tokens=15))
    rng, number = random.Random(3), 0
    best = world.sequence("best")
    while best.state is not State.FINISHED:
        number += 1
        world.submit(request(f"r{number}", [2] * rng.randrange(1, 15), max_tokens=rng.randrange(1, 9)))
        step = world.plan()
        assert 0 in {piece.seq_id for piece in step.slices}
        world.land()
    assert best.preemptions == 0
    world.drain()


def test_a_big_request_gets_its_turn_in_a_stream_of_small_ones():
    world = tight(block_tokens=2, slack=3, seats=4, budget=8, window=None)
    world.submit(request("first", [1] * 4, max_tokens=8))
    world.turn()
    world.submit(request("big", [2] * 20, max_tokens=4))
    turns = 0
    while not any(isinstance(e, Finished) and e.request_id == "big" for e in world.events):
        world.submit(request(f"small{turns}", [3] * 3, max_tokens=3))
        world.turn()
        turns += 1
        assert turns < 60
    world.drain()
