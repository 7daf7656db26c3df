"""Choices that go on from where they were broken off. Blocks hold 4 tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from octavo.core.sequence import Begun, Request
from octavo.core.step import Finished, Token
from octavo.errors import RequestError
from tests.core.requests import request
from tests.core.world import VOCAB, World, limits
from tests.oracles.shadow import alone


def broken_off(asked: Request, *lengths: int | None) -> Request:
    """The request with each choice begun up to that many tokens; None leaves a choice out, as one that has ended."""
    begun = []
    for index, length in enumerate(lengths):
        if length is not None:
            begun.append(Begun(index, tuple(alone(asked, index, 64, VOCAB)[0][:length])))
    return replace(asked, begun=tuple(begun))


@pytest.mark.parametrize("length", range(8))
def test_a_choice_goes_on_with_the_tokens_it_has_alone(length):
    world = World(limits())
    world.submit(broken_off(request("a", range(6)), length))
    world.drain()
    assert world.output("a") == alone(request("a", range(6)), 0, 64, VOCAB)[0]
    assert world.num_verified == 1


def test_what_was_drawn_is_computed_like_a_prompt_and_told_once():
    world = World(limits())
    world.submit(broken_off(request("a", range(6)), 5))
    step = world.plan()
    assert [(piece.start, piece.num_tokens, piece.samples) for piece in step.slices] == [(0, 11, 1)]
    (event,) = world.land()
    assert isinstance(event, Token)
    assert event.position == 11


def test_several_choices_keep_their_indexes_and_share_their_prompt():
    world = World(limits())
    world.submit(broken_off(request("a", range(9), n=4), 3, None, 0, 5))
    sequences = world.scheduler.live("a")
    assert [one.index for one in sequences] == [0, 2, 3]
    assert world.scheduler.roster.groups["a"].num_seats_wanted == 3
    world.drain()
    assert world.num_verified == 3
    assert {event.index for event in world.events if isinstance(event, Finished)} == {0, 2, 3}
    cached = [one.num_cached_tokens for one in sequences]
    assert cached[0] == 0
    assert min(cached[1:]) >= 8, "the prompt was computed once"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"begun": (Begun(1, ()),)}, r"choices \[1\]; there are 1"),
        ({"begun": (Begun(0, ()), Begun(0, ()))}, "choices"),
        ({"begun": (Begun(0, (1,) * 8),)}, "8 tokens"),
        ({"begun": (Begun(0, (-1,)),)}, "token ids"),
    ],
)
def test_what_cannot_go_on_is_refused_and_leaves_nothing(change, words):
    world = World(limits())
    with pytest.raises(RequestError, match=words) as caught:
        world.scheduler.submit(replace(request("a", range(6)), **change), 0.0)
    assert world.scheduler.idle
    assert caught.value.param in ("begun", "prompt")


@pytest.mark.parametrize("params", [{"beam_width": 2}, {"prompt_logprobs": 0}, {"best_of": 2}])
def test_an_answer_given_as_a_whole_has_no_part_to_go_on_from(params):
    world = World(limits())
    with pytest.raises(RequestError, match="as a whole"):
        world.scheduler.submit(replace(request("a", range(6), **params), begun=(Begun(0, ()),)), 0.0)
