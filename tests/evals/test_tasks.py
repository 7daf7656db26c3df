"""The generators: the same arguments ask the same questions, and each answer stands in its question."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.evals import tasks

FACT = re.compile(r"The value of (\w+) is (\w+)\.")


def derived(content: str) -> str:
    """Answer a retrieval question by reading it, with a parser that shares nothing with the generators."""
    facts = FACT.findall(content)
    assert len({key for key, _ in facts}) == len(facts)
    asked = re.search(r"What is the value of (\w+)\?$", content)
    assert asked is not None
    return dict(facts)[asked.group(1)]


def count_words(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]|\n", text))


@given(num_pairs=st.integers(1, tasks.MAX_PAIRS), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_recall_answers_follow_from_the_question(num_pairs, seed):
    items = list(tasks.recall(num_pairs, 5, seed))
    assert items == list(tasks.recall(num_pairs, 5, seed))
    for item in items:
        content = item.messages[0]["content"]
        assert derived(content) == item.answer
        assert len(FACT.findall(content)) == num_pairs
        assert tasks.full_reply(item) in content


def test_recall_asks_every_place_equally_often():
    places = [item.tags["place"] for item in tasks.recall(8, 80, seed=3)]
    assert sorted(places) == sorted(list(range(8)) * 10)


def test_other_seeds_ask_other_questions():
    assert list(tasks.recall(8, 10, 0)) != list(tasks.recall(8, 10, 1))


def test_no_word_is_both_key_and_value():
    for item in tasks.recall(16, 50, seed=4):
        words = [word for fact in FACT.findall(item.messages[0]["content"]) for word in fact]
        assert len(set(words)) == 32


@pytest.mark.parametrize("num_pairs", [0, tasks.MAX_PAIRS + 1])
def test_more_pairs_than_words_are_refused(num_pairs):
    with pytest.raises(ConfigError, match=f"num_pairs is {num_pairs}"):
        list(tasks.recall(num_pairs, 1, 0))


FILLER = [
    "\n".join(f"line {n} says amber {n * 7}" if n % 5 else f"plain {n}" for n in range(200)),
    "\n\n   \n",
    "one line only",
]


@pytest.mark.parametrize("context_tokens", [40, 333, 1900])
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_needle_is_derivable_placed_and_sized(context_tokens, depth):
    made = list(tasks.needle([depth], context_tokens, 6, 5, count_tokens=count_words, filler=FILLER))
    assert made == list(tasks.needle([depth], context_tokens, 6, 5, count_tokens=count_words, filler=FILLER))
    for item in made:
        content = item.messages[0]["content"]
        assert derived(content) == item.answer
        assert content.count(str(item.tags["key"])) == 2
        longest = max(count_words(line) + 1 for text in FILLER for line in text.splitlines())
        assert context_tokens - longest - 2 <= count_words(content) <= context_tokens
        lines = content.splitlines()
        place = next(n for n, line in enumerate(lines) if FACT.match(line))
        assert place == round(depth * (len(lines) - 2))


def test_needle_hides_in_held_out_text_by_default():
    shipped = {line for text in tasks.validation_texts() for line in text.splitlines()}
    item = next(iter(tasks.needle([0.5], 400, 1, 0, count_tokens=count_words)))
    filler = [line for line in item.messages[0]["content"].splitlines()[:-1] if not FACT.match(line)]
    assert len(filler) > 10
    assert set(filler) <= shipped


def test_needle_refuses_what_cannot_be():
    with pytest.raises(ConfigError, match=r"depth is 1\.5"):
        list(tasks.needle([1.5], 400, 1, 0, count_tokens=count_words, filler=FILLER))
    with pytest.raises(ConfigError, match="context_tokens is 5"):
        list(tasks.needle([0.5], 5, 1, 0, count_tokens=count_words, filler=FILLER))
    with pytest.raises(ConfigError, match="usable line"):
        list(tasks.needle([0.5], 400, 1, 0, count_tokens=count_words, filler=["\n\n"]))


def test_stdlib_questions_are_a_seeded_draw_from_the_shipped_file():
    everything = list(tasks.stdlib_qa())
    assert 1500 <= len(everything) <= 2500
    assert len({item.messages[0]["content"] for item in everything}) == len(everything)
    assert list(tasks.stdlib_qa(7, seed=2)) == list(tasks.stdlib_qa(seed=2))[:7]
    assert list(tasks.stdlib_qa(7, seed=2)) != list(tasks.stdlib_qa(7, seed=3))
    assert all(tasks.full_reply(item) == item.answer for item in everything[:20])
