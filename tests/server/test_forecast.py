"""What is promised of answers: counted and timed as an engine that serves one after another would do it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from octavo.core.sequence import SamplingParams
from octavo.link import frames
from octavo.server.forecast import MARGIN, Forecast
from octavo.server.journal import Entry
from octavo.server.running import Running


def submit(number: int, client: str = "a", priority: int = 0, **params: Any) -> frames.Submit:
    return frames.Submit(
        request_id=str(number),
        prompt_token_ids=(1,) * 10,
        params=SamplingParams(**{"max_tokens": 5, "ignore_eos": True, **params}),
        client=client,
        priority=priority,
    )


def entry(number: int, **more: Any) -> Entry:
    made = submit(number, **more)
    return Entry(made, Running([made]))


def ended(first_s: float, token_s: float, num_tokens: int) -> frames.Ended:
    end_s = 100.0 + first_s + token_s * (num_tokens - 1)
    return frames.Ended(
        request_id="x",
        usage=frames.Usage(prompt_tokens=10, completion_tokens=num_tokens, cached_prompt_tokens=0),
        metrics=frames.Metrics(
            arrival_s=90.0, first_scheduled_s=100.0, first_token_s=100.0 + first_s, finished_s=end_s
        ),
    )


def shown(places: int = 2) -> Forecast:
    """An engine whose answers take 0.2 s to the first token and 0.1 s for each of four more."""
    made = Forecast(places)
    for _ in range(30):
        made.note(ended(0.2, 0.1, 5))
    return made


def test_nothing_is_promised_of_an_engine_that_has_shown_nothing():
    made = Forecast(1)
    for number in range(5):
        made.enter(entry(number))
    assert made.wait_s(submit(9), None) == 0.0
    assert made.own_s(submit(9)) == 0.0


@pytest.mark.parametrize(
    ("params", "tokens"),
    [({}, 5), ({"max_tokens": 21}, 21), ({"max_tokens": 21, "ignore_eos": False}, 5),
     ({"max_tokens": 2, "ignore_eos": False}, 2), ({"max_tokens": None, "ignore_eos": False}, 5),
     ({"max_tokens": 1}, 1)],
)  # fmt: skip
def test_ones_own_time_follows_the_length_of_the_answer(params, tokens):
    assert shown().own_s(submit(0, **params)) == pytest.approx(MARGIN * (0.2 + 0.1 * (tokens - 1)))


def test_whoever_finds_a_place_does_not_wait_and_the_next_does():
    made = shown(places=2)
    waits = []
    for number in range(6):
        waits.append(made.wait_s(submit(number), None))
        made.enter(entry(number))
    assert waits == pytest.approx([0.0, 0.0, 0.3, 0.6, 0.9, 1.2]), "one of two places is free every 0.3 s"


def test_what_has_begun_and_what_has_left_is_counted():
    made = shown(places=2)
    aboard = [entry(number) for number in range(4)]
    for one in aboard:
        made.enter(one)
    assert made.num_pending_tokens == 40
    for one in aboard[:2]:
        one.has_output = True
        made.begun(one)
    assert made.num_pending_tokens == 20
    assert made.wait_s(submit(9), None) == pytest.approx(0.9)
    for one in aboard:
        made.leave(one)
    assert (made.num_pending_tokens, made.wait_s(submit(9), None)) == (0, 0.0)


def test_clients_take_turns_and_batches_stand_behind():
    made = shown(places=1)
    for number in range(50):
        made.enter(entry(number, client="flood"))
    for number in range(50, 60):
        made.enter(entry(number, client="a/batch", priority=2**40))
    assert made.wait_s(submit(99, client="flood"), None) == pytest.approx(50 * 0.6)
    assert made.wait_s(submit(99, client="b"), None) == pytest.approx(1 * 0.6)
    assert made.wait_s(submit(99, client="c", priority=2**40), None) == pytest.approx(51 * 0.6)


def test_an_engine_that_says_how_many_it_can_run_is_believed():
    made = shown(places=64)
    for number in range(8):
        made.enter(entry(number))
    stats = frames.Stats(num_steps=1, num_running=4, num_waiting=4, used_kv_blocks=9, num_kv_blocks=9)
    assert made.wait_s(submit(9), None) == 0.0
    assert made.wait_s(submit(9), stats) == pytest.approx(5 * 0.6 / 4)


def test_an_engine_that_has_gone_leaves_what_it_has_shown():
    made = shown(places=1)
    made.enter(entry(0))
    made.clear()
    assert made.num_pending_tokens == 0
    assert made.wait_s(submit(1), None) == 0.0
    assert made.own_s(submit(1)) > 0


@pytest.mark.parametrize("seed", range(5))
def test_the_forecast_is_near_what_a_simple_engine_does(seed):
    """S places, each answer as long as the last ones: those that come while the engine is full begin when it says."""
    rng = random.Random(seed)
    places = rng.randrange(1, 6)
    made = shown(places)
    free_at = [0.0] * places
    for number in range(40):
        begins = min(free_at)
        assert made.wait_s(submit(number), None) == pytest.approx(begins, abs=0.6)
        free_at[free_at.index(begins)] = begins + 0.6
        made.enter(entry(number))
