"""Followers: the state of one depends on its own output alone; compiled grammars are kept within bounds."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import bundled
from octavo.codec.tokenizer import Tokenizer
from octavo.core.sequence import Grammar
from octavo.decode.grammar import BASE_BYTES, DeadEnd, Follower, Grammars
from octavo.errors import InvalidGrammar

ROWS = 4100
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "n": {"type": "number"}, "l": {"type": "array", "items": {}}},
    "required": ["name", "n"],
}
GRAMMARS = [
    Grammar(kind="json_schema", source=json.dumps(SCHEMA)),
    Grammar(kind="json_object"),
    Grammar(kind="regex", source="[a-z]+( [a-z]+){2,5}"),
    Grammar(kind="lark", source='start: "(" start* ")" | /[0-9]+/'),
    Grammar(kind="choice", source='["one", "one two", "three"]'),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_path(bundled.path("quire"))


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, ROWS)


def same(one: Follower, other: Follower) -> bool:
    a, b = one.mask(), other.mask()
    return a.may_end == b.may_end and np.array_equal(a.text, b.text)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(GRAMMARS), st.randoms(use_true_random=False), st.integers(1, 40))
def test_a_replayed_follower_is_where_the_first_one_was(grammars, grammar, rng, length):
    """Also one that has never computed a mask on the way, one of a grammar compiled anew, and a copy."""
    first = Follower(grammars.compiled(grammar))
    for _ in range(length):
        mask = first.mask()
        if not mask.text.any():
            break
        token = rng.choice(np.nonzero(mask.text)[0].tolist())
        if first.accept(token):
            break
    output = list(first._output)
    assert same(first, Follower(grammars.compiled(grammar), output))
    assert same(first, Follower(grammars.compiled_anew(grammar), output))
    assert same(first, first.copy())


def test_complete_means_that_nothing_can_follow(grammars, tokenizer):
    def told(text: str, choices: list[str]) -> list[bool]:
        follower = Follower(grammars.compiled(Grammar(kind="choice", source=json.dumps(choices))))
        ids = [next(t for t in range(ROWS) if tokenizer.token_bytes(t) == char.encode()) for char in text]
        return [follower.accept(token) for token in ids]

    assert told("one", ["one"]) == [False, False, True]
    assert told("one", ["one", "one two"]) == [False, False, False]
    assert told("two", ["one", "two", "tw"]) == [False, False, True]


def test_a_token_that_does_not_fit_is_a_dead_end(grammars, tokenizer):
    follower = Follower(grammars.compiled(Grammar(kind="regex", source="[0-9]+x")))
    assert not follower.accept(tokenizer.encode("a", False)[0])
    with pytest.raises(DeadEnd):
        follower.mask()
    with pytest.raises(DeadEnd):
        Follower(
            grammars.compiled(Grammar(kind="regex", source="[0-9]+x")), tokenizer.encode("1a", False)
        ).mask()


def test_what_is_kept_is_bounded_by_bytes_and_the_oldest_goes(tokenizer):
    grammars = Grammars(tokenizer, ROWS, max_bytes=4 * BASE_BYTES)
    made = [Grammar(kind="regex", source=f"a{{{i}}}") for i in range(1, 200)]
    for grammar in made:
        grammars.compiled(grammar)
        assert grammars.num_bytes <= 4 * BASE_BYTES
        assert len(grammars) <= 4
    kept = grammars.compiled(made[-2])
    for grammar in made[:2]:
        grammars.compiled(grammar)
    assert grammars.compiled(made[-2]) is kept, "it was used last"
    assert grammars.compiled(made[-1]) is not grammars.compiled_anew(made[-1])


def test_a_large_one_counts_for_more_and_is_still_served(tokenizer):
    grammars = Grammars(tokenizer, ROWS, max_bytes=BASE_BYTES)
    large = Grammar(kind="choice", source=json.dumps([f"choice number {i}" for i in range(500)]))
    compiled = grammars.compiled(large)
    assert compiled.num_bytes > 5 * BASE_BYTES
    assert Follower(compiled).mask().text.any()
    grammars.compiled(Grammar(kind="regex", source="a"))
    assert grammars.num_bytes <= 2 * BASE_BYTES


def test_a_refused_one_is_not_kept(grammars):
    before = (len(grammars), grammars.num_bytes)
    with pytest.raises(InvalidGrammar):
        grammars.compiled(Grammar(kind="regex", source="("))
    assert (len(grammars), grammars.num_bytes) == before


def test_many_threads_may_compile_at_once(tokenizer):
    grammars = Grammars(tokenizer, ROWS)
    gate = threading.Barrier(8)

    def work(number: int) -> bool:
        gate.wait()
        return all(
            Follower(grammars.compiled(Grammar(kind="regex", source=f"[a-z]{{{1 + i % 5}}}")))
            .mask()
            .text.any()
            for i in range(number, number + 20)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert len(grammars) == 5
    assert grammars.num_bytes == sum(
        grammars.compiled(Grammar(kind="regex", source=f"[a-z]{{{i}}}")).num_bytes for i in range(1, 6)
    )
