"""Training rows: a function of seed and step, well framed, and weighted where the answer is."""

import random
import re

import numpy as np
import pytest

from lab import guide
from lab.batches import Batches, pad
from lab.tokenizer import BOS_ID, END_ID, PAD_ID

MAKERS = {
    "text": lambda source, step: [source.text(step, 3, 128)],
    "questions": lambda source, step: source.questions(step, 800, 0.4),
    "recall": lambda source, step: [source.recall(step, 12, 96, 0.3)],
    "needle": lambda source, step: [source.needle(step, 3, 300)],
}


@pytest.mark.parametrize("kind", MAKERS)
def test_rows_follow_from_seed_and_step(batches, small_tokenizer, few_sources, kind):
    make = MAKERS[kind]
    again = Batches(small_tokenizer, few_sources, seed=1)
    other = Batches(small_tokenizer, few_sources, seed=2)
    for one, two in zip(make(batches, 5), make(again, 5), strict=True):
        assert np.array_equal(one.tokens, two.tokens)
        assert np.array_equal(one.weights, two.weights)
    assert not np.array_equal(make(batches, 5)[0].tokens, make(batches, 6)[0].tokens)
    assert not np.array_equal(make(batches, 5)[0].tokens, make(other, 5)[0].tokens)


@pytest.mark.parametrize("kind", MAKERS)
def test_rows_open_with_the_start_token_and_padding_is_free(batches, kind):
    for batch in MAKERS[kind](batches, 3):
        assert (batch.tokens[:, 0] == BOS_ID).all()
        assert (batch.weights[batch.tokens == PAD_ID] == 0).all()
        assert (batch.weights.sum(1) > 0).all()


def test_canonical_questions_go_round(batches):
    """Over steps that cover one epoch, each question comes once, and never twice before the next epoch."""
    per_step = len(batches.canonical) // 7
    mean = sum(len(ids) for ids, _ in batches.canonical) / len(batches.canonical)
    seen = []
    for step in range(7):
        for batch in batches.questions(step, int(mean * per_step) + 1, 0.0):
            seen += [tuple(row[row != PAD_ID].tolist()) for row in batch.tokens]
    assert len(seen) == len(set(seen))
    assert len(seen) >= 0.95 * len(batches.canonical)


def test_recall_answers_stand_in_the_facts(batches, small_tokenizer):
    for row in batches.recall(9, 40, 160, 0.0).tokens:
        text = small_tokenizer.decode(row.tolist(), skip_special_tokens=False)
        facts = dict(re.findall(r"The value of (\w+) is (\w+)\.", text.split("What is")[0]))
        turns = re.findall(r"value of (\w+)\?<\|end\|><\|assistant\|>The value of (\w+) is (\w+)\.", text)
        assert turns
        for asked, key, value in turns:
            assert asked == key
            assert facts[key] == value


def test_needle_rows_answer_from_a_fact_in_the_text(batches, small_tokenizer):
    answered = 0
    for row in batches.needle(4, 6, 400).tokens:
        text = small_tokenizer.decode(row.tolist(), skip_special_tokens=False)
        for key, value in re.findall(r"<\|assistant\|>The value of (\w+) is (\w+)\.<\|end\|>", text):
            assert re.search(rf"(\n|<\|user\|>)The value of {key} is {value}\.\n", text)
            answered += 1
    assert answered >= 6


def test_only_answers_weigh(batches):
    ids, marks = batches.turn("What does x do?", "Return y.")
    assert [marks[n] > 0 for n in range(len(ids))] == [False] * (len(ids) - marks.count(1.0)) + [
        True
    ] * marks.count(1.0)
    assert batches.tokenizer.decode([i for i, mark in zip(ids, marks, strict=True) if mark]) == "Return y."
    assert ids[-1] == END_ID


def test_padding_cuts_and_fills():
    batch = pad("x", [([1, 2, 3], [0.0, 1.0, 1.0]), ([4], [1.0])], 2)
    assert batch.tokens.tolist() == [[1, 2], [4, PAD_ID]]
    assert batch.weights.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_places_point_at_the_last_same_three_tokens():
    """Against a search that tries every earlier place."""
    rng = random.Random(3)
    tokens = np.array([[rng.randrange(4) for _ in range(40)] for _ in range(8)])
    weights = np.array([[rng.choice((0.0, 1.0)) for _ in range(40)] for _ in range(8)])
    found = guide.places(tokens, weights)
    for row in range(8):
        for t in range(40):
            want = guide.NOWHERE
            if 1 <= t < 39 and weights[row, t + 1] > 0:
                for s in range(2, t + 1):
                    if tokens[row, s - 2 : s + 1].tolist() == tokens[row, t - 1 : t + 2].tolist():
                        want = s
            assert found[row, t] == want
