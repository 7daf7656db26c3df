"""Scoring: what counts as right, and the interval around a share."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.evals.score import Proportion, first_sentence, is_right, names_value
from octavo.evals.tasks import Item, user_message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Return the sum. Then rest.", "Return the sum."),
        ("Return\n   the sum.", "Return the sum."),
        ("Use e.g. this one. Not that.", "Use e.g. this one."),
        ("Version 3.11 is fine! Yes.", "Version 3.11 is fine!"),
        ("Calls os.path.join. More", "Calls os.path.join."),
        ("no stop at all", "no stop at all"),
        ("Is it? It is.", "Is it?"),
        ("", ""),
    ],
)
def test_first_sentence(text, sentence):
    assert first_sentence(text) == sentence


@given(st.text())
def test_a_first_sentence_is_its_own_and_opens_the_text(text):
    sentence = first_sentence(text)
    assert first_sentence(sentence) == sentence
    assert " ".join(text.split()).startswith(sentence)


def test_stdlib_replies_must_open_with_the_exact_sentence():
    item = Item("stdlib-qa", user_message("What does x do?"), "Return x.")
    assert is_right(item, "Return x.")
    assert is_right(item, " Return x. Further text.")
    assert not is_right(item, "Return x")
    assert not is_right(item, "return x.")
    assert not is_right(item, "Well: Return x.")


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("The value of amber is falcon.", True),
        ("falcon", True),
        ("Falcon!", True),
        ("The value of amber is cedar.", False),
        ("falcon or cedar", False),
        ("falconry", False),
        ("amber", False),
        ("", False),
    ],
)
def test_retrieval_replies_name_the_value_and_nothing_else(reply, right):
    assert names_value(reply, "falcon", "amber") is right
    item = Item("recall", user_message("?"), "falcon", {"key": "amber", "num_pairs": 1})
    assert is_right(item, reply) is right


@given(count=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_bounds_solve_their_defining_equation(count, share):
    """The bounds p are where |observed - p| is z standard errors of p, save at 0 and 1 where one is the end."""
    observed = Proportion(round(share * count), count)
    for bound in observed.interval:
        assert 0 <= bound <= 1
        if 0 < bound < 1:
            error = math.sqrt(bound * (1 - bound) / count)
            assert abs(observed.share - bound) / error == pytest.approx(1.959963984540054, rel=1e-6)
    low, high = observed.interval
    assert low <= observed.share <= high


def test_nothing_asked_is_nothing_known():
    assert math.isnan(Proportion(0, 0).share)
    assert Proportion(0, 0).interval == (0.0, 1.0)
    assert str(Proportion(19, 20)) == "95.0 % (19/20, 95 % interval 76.4-99.1)"
