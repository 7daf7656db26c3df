"""SamplingParams: what is refused, with the field, the value and the range named."""

import dataclasses
import math

import pytest

from octavo.core.sequence import Grammar, SamplingParams
from octavo.errors import RequestError

NAN, INF = math.nan, math.inf

REFUSED = {
    "n": [0, -1, 129, 1.0, True, "1", None],
    "best_of": [0, 129, 2.5],
    "temperature": [-0.1, 100.1, NAN, INF, "hot", True, None],
    "top_p": [0.0, -0.1, 1.01, NAN],
    "top_k": [-2, 1.5, None],
    "min_p": [-0.01, 1.01, NAN],
    "presence_penalty": [-2.01, 2.01, NAN],
    "frequency_penalty": [-2.01, 2.01, INF],
    "repetition_penalty": [0.0, -1.0, 101.0, NAN],
    "seed": [-(2**63) - 1, 2**64, 1.5],
    "stop": [[""], ["a", ""], [1], 5, b"x", {"a": 1}],
    "stop_token_ids": [[-1], ["a"], [1.0], 5, "12"],
    "ignore_eos": ["no", 1, None],
    "early_stopping": ["never", 1, None],
    "max_tokens": [0, -1, 1.5],
    "min_tokens": [-1, 17, 1.5],
    "logprobs": [-1, 51, True],
    "prompt_logprobs": [-1, 51],
    "logit_bias": [[(1, 2.0)], "x", {-1: 0.0}, {"1": 0.0}, {1: 100.1}, {1: NAN}, {1: None}],
    "beam_width": [0, 65, 1.5],
    "length_penalty": [NAN, -10.1, 10.1],
    "grammar": ["[a-z]", {"kind": "regex"}],
    "bad_words": [[""], ["a", ""], [1], 5, "text"],
    "allowed_token_ids": [[], [-1], ["a"], [1.0], 5],
    "include_stop_str_in_output": ["no", 1, None],
    "skip_special_tokens": ["no", 0, None],
    "embed": [1, "yes", None],
}

ACCEPTED = {
    "n": [1, 128],
    "best_of": [1, 128, None],
    "temperature": [0.0, 1e-6, 1, 100.0],
    "top_p": [1e-9, 1.0],
    "top_k": [-1, 0, 1, 10**9],
    "min_p": [0.0, 1.0],
    "presence_penalty": [-2.0, 2.0],
    "frequency_penalty": [-2.0, 2.0],
    "repetition_penalty": [0.01, 100.0],
    "seed": [None, 0, -(2**63), 2**64 - 1],
    "stop": ["x", ["x"], (), ("a", "b")],
    "stop_token_ids": [(), [0, 5]],
    "max_tokens": [1, 10**9, None],
    "min_tokens": [0, 16],
    "ignore_eos": [True, False],
    "logprobs": [None, 0, 50],
    "prompt_logprobs": [None, 0, 50],
    "logit_bias": [None, {}, {0: -100.0, 5: 100}],
    "beam_width": [None, 1, 64],
    "length_penalty": [-10, 0.0, 10],
    "early_stopping": [True, False],
    "grammar": [None, Grammar(kind="regex", source="[a-z]"), Grammar(kind="json_object")],
    "bad_words": [(), ["x"], ("a", "b c")],
    "allowed_token_ids": [None, [0], (1, 2)],
    "include_stop_str_in_output": [True, False],
    "skip_special_tokens": [True, False],
    "embed": [True, False],
}

CASES = [(name, value) for name, values in REFUSED.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{n}={v!r}" for n, v in CASES])
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(RequestError, match=name) as error:
        SamplingParams(**{name: value})
    assert error.value.param == name


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_ends_of_every_range_are_accepted(name):
    for value in ACCEPTED[name]:
        SamplingParams(**{name: value})


def test_every_field_is_checked_here():
    fields = {field.name for field in dataclasses.fields(SamplingParams)}
    assert fields == ACCEPTED.keys() == REFUSED.keys()


def test_best_of_is_at_least_n():
    assert SamplingParams(n=3, best_of=3).num_choices == 3
    assert SamplingParams(n=3).num_choices == 3
    assert SamplingParams(n=2, best_of=5).num_choices == 5
    with pytest.raises(RequestError, match="best_of must be between 3 and 128, got 2"):
        SamplingParams(n=3, best_of=2)


def test_min_tokens_is_at_most_max_tokens():
    assert SamplingParams(max_tokens=None, min_tokens=10**6).min_tokens == 10**6
    with pytest.raises(RequestError, match="min_tokens must be between 0 and 4, got 5"):
        SamplingParams(max_tokens=4, min_tokens=5)


@pytest.mark.parametrize(
    "other",
    [{"n": 3}, {"best_of": 2}, {"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}],
)
def test_beam_search_refuses_what_it_would_ignore(other):
    SamplingParams(beam_width=2)
    SamplingParams(beam_width=2, n=2, temperature=0.0, length_penalty=0.5, early_stopping=True)
    with pytest.raises(RequestError):
        SamplingParams(beam_width=2, **other)


def test_stop_becomes_a_tuple():
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(stop=None).stop == ()
    assert SamplingParams(stop_token_ids=[1]).stop_token_ids == (1,)


def test_greedy_begins_below_a_hundred_thousandth():
    assert SamplingParams(temperature=9.9e-6).is_greedy
    assert not SamplingParams(temperature=1e-5).is_greedy


def test_a_grammar_is_of_a_known_kind():
    with pytest.raises(RequestError, match="yaml") as error:
        Grammar(kind="yaml", source="a: 1")
    assert error.value.param == "grammar"
