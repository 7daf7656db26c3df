"""Bad words, allowed tokens, kept stop texts and special tokens, each against an oracle of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.core.sequence import Grammar
from octavo.errors import RequestError
from tests.engine.tiny import END, VOCAB, engine, write_checkpoint

PROMPT = [40, 41, 42]
FREE = SamplingParams(
    temperature=1.0,
    seed=7,
    max_tokens=40,
    ignore_eos=True,
)


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with engine(tiny) as made:
        yield made


def ids(llm: LLM, **params: Any) -> list[int]:
    (output,) = llm.generate(PROMPT, replace(FREE, **params))
    return output.outputs[0].token_ids


def holds(tokens: list[int], word: list[int]) -> bool:
    return any(tokens[i : i + len(word)] == word for i in range(len(tokens)))


@pytest.mark.parametrize("seed", range(8))
def test_bad_words_never_come_and_nothing_else_changes(llm, seed):
    """The output is that of the free run up to the first bad word; from there on it has none either."""
    free = ids(llm, seed=seed)
    words = [free[5:6], free[10:12], free[20:23]]
    texts = [llm.tokenizer.decode(word, skip_special_tokens=False) for word in words]
    if any(llm.tokenizer.encode(text, False) != word for text, word in zip(texts, words, strict=True)):
        texts = ["ae", "be", "q"]
        words = [llm.tokenizer.encode(text, False) for text in texts]
    held = ids(llm, seed=seed, bad_words=texts)
    assert len(held) == len(free)
    spaced = [llm.tokenizer.encode(" " + text, False) for text in texts]
    for word in [*words, *spaced]:
        assert not holds(held, word)
    ends = [i + len(w) for w in [*words, *spaced] for i in range(len(free)) if free[i : i + len(w)] == w]
    first = min(ends, default=len(free) + 1) - 1
    assert held[:first] == free[:first]
    if first < len(free):
        assert held[first] != free[first]


def test_a_word_of_several_tokens_bans_its_last_one_only_after_the_others(llm):
    """Greedy: the first token of the word is still drawn, and what follows is the second likeliest."""
    params = {"temperature": 0.0, "frequency_penalty": 1.0}
    free = ids(llm, **params)
    place = next(
        i for i in range(3, 30)
        if llm.tokenizer.encode(llm.tokenizer.decode(free[i : i + 2]), False) == free[i : i + 2]
        and not holds(free[: i + 1], free[i : i + 2])
    )  # fmt: skip
    held = ids(llm, **params, bad_words=[llm.tokenizer.decode(free[place : place + 2])])
    assert held[: place + 1] == free[: place + 1]
    assert held[place + 1] != free[place + 1]


@pytest.mark.parametrize("allowed", [[65, 66, 67], [5], list(range(10, 200, 7)), [END, 70]])
def test_only_allowed_tokens_come(llm, allowed):
    for seed in range(3):
        assert set(ids(llm, seed=seed, allowed_token_ids=allowed)) <= set(allowed)
    greedy = ids(llm, temperature=0.0, allowed_token_ids=allowed, max_tokens=1)
    banned = {token: -100.0 for token in range(VOCAB) if token not in allowed}
    assert greedy == ids(llm, temperature=0.0, logit_bias=banned, max_tokens=1)


def test_all_tokens_allowed_is_no_constraint(llm):
    assert ids(llm, allowed_token_ids=list(range(VOCAB))) == ids(llm)


def test_an_end_token_comes_only_when_it_is_allowed(llm):
    (output,) = llm.generate(PROMPT, replace(FREE, ignore_eos=False, allowed_token_ids=[70, END]))
    assert output.outputs[0].finish_reason == "stop"
    assert output.outputs[0].token_ids[-1] == END
    (output,) = llm.generate(PROMPT, replace(FREE, ignore_eos=False, allowed_token_ids=[70]))
    assert output.outputs[0].finish_reason == "length"


def test_beams_obey_too(llm):
    beams = SamplingParams(beam_width=3, n=3, temperature=0.0, max_tokens=8)
    (free,) = llm.generate(PROMPT, beams)
    (held,) = llm.generate(PROMPT, replace(beams, allowed_token_ids=[65, 66, 67]))
    assert all(set(output.token_ids) <= {65, 66, 67} for output in held.outputs)
    word = free.outputs[0].token_ids[2:3]
    (held,) = llm.generate(PROMPT, replace(beams, bad_words=[llm.tokenizer.decode(word)]))
    assert all(word[0] not in output.token_ids for output in held.outputs)


@pytest.mark.parametrize("seed", range(6))
def test_a_kept_stop_text_ends_the_output(llm, seed):
    texts = SamplingParams(
        temperature=0.9,
        seed=seed,
        max_tokens=30,
        ignore_eos=True,
        allowed_token_ids=[*range(64, 90), 256, 257],
    )
    (free,) = llm.generate(PROMPT, texts)
    stop = free.outputs[0].text[9:12]
    (cut,) = llm.generate(PROMPT, replace(texts, stop=[stop]))
    (kept,) = llm.generate(PROMPT, replace(texts, stop=[stop], include_stop_str_in_output=True))
    end = free.outputs[0].text.index(stop)
    assert cut.outputs[0].text == free.outputs[0].text[:end]
    assert kept.outputs[0].text == free.outputs[0].text[: end + len(stop)]
    assert kept.outputs[0].token_ids == cut.outputs[0].token_ids
    assert kept.outputs[0].stop_reason == stop


def test_a_stop_token_shows_its_text_when_kept(llm):
    params = SamplingParams(temperature=0.0, max_tokens=30, stop_token_ids=[70], allowed_token_ids=[70])
    (hidden,) = llm.generate(PROMPT, params)
    (kept,) = llm.generate(PROMPT, replace(params, include_stop_str_in_output=True))
    assert (hidden.outputs[0].text, kept.outputs[0].text) == ("", llm.tokenizer.decode([70]))


def test_special_tokens_show_when_they_are_not_skipped(llm):
    special = SamplingParams(temperature=0.0, max_tokens=3, allowed_token_ids=[298], ignore_eos=True)
    (skipped,) = llm.generate(PROMPT, special)
    (shown,) = llm.generate(PROMPT, replace(special, skip_special_tokens=False))
    assert (skipped.outputs[0].text, shown.outputs[0].text) == ("", "<user>" * 3)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("allowed_token_ids", {"allowed_token_ids": [VOCAB]}),
        ("logit_bias", {"logit_bias": {VOCAB: 1.0}}),
        ("stop_token_ids", {"stop_token_ids": [VOCAB]}),
    ],
)
def test_tokens_the_model_does_not_have_are_refused_by_field(llm, name, params):
    with pytest.raises(RequestError, match=str(VOCAB)) as caught:
        llm.generate(PROMPT, SamplingParams(**params))
    assert caught.value.param == name


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_a_tokenizer_may_know_tokens_that_the_model_does_not_have(tmp_path: Path, kernels: str) -> None:
    """Its end token among them: nothing is written to a place that is not there, which would end a GPU's context."""
    folder = write_checkpoint(tmp_path / "m", vocab_size=END - 6, eos_token_id=None, bos_token_id=None)
    with engine(folder, kernels=kernels) as made:
        assert made.tokenizer.end_ids == {END}
        free = SamplingParams(temperature=0.0, max_tokens=5)
        (want,) = made.generate(PROMPT, free)
        for params in (
            replace(free, min_tokens=3),
            replace(free, bad_words=["<end>"]),
            replace(free, min_tokens=2, bad_words=("<user>",)),
        ):
            (got,) = made.generate(PROMPT, params)
            assert got.outputs[0].token_ids == want.outputs[0].token_ids
        grammar = Grammar(kind="regex", source="[a-d]{3}")
        (got,) = made.generate(PROMPT, replace(free, grammar=grammar, min_tokens=2))
        assert len(got.outputs[0].text) == 3
        (beams,) = made.generate(PROMPT, SamplingParams(beam_width=2, temperature=0.0, max_tokens=3))
        assert beams.outputs[0].token_ids
