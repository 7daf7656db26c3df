"""Stop texts through the whole engine, against an oracle that looks at growing prefixes of the free text."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from octavo.engine.outputs import CompletionOutput, Delta, RequestEnded
from tests.engine.tiny import VOCAB, engine

NUM_TOKENS = 24
PROMPT = [40, 41, 42]


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with engine(tiny) as made:
        yield made


@pytest.fixture(scope="module")
def params(llm: LLM) -> SamplingParams:
    """Greedy text of letters only, some of whose tokens are two letters long."""
    texts = {token: llm.tokenizer.decode([token]) for token in range(VOCAB)}
    unwanted = [token for token, text in texts.items() if not (text.isascii() and text.isalpha())]
    return SamplingParams(
        temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logit_bias=dict.fromkeys(unwanted, -100.0),
        frequency_penalty=1.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def free(llm: LLM, params: SamplingParams) -> CompletionOutput:
    """What comes without any stop."""
    (output,) = llm.generate(PROMPT, params)
    return output.outputs[0]


def expected(
    llm: LLM, tokens: list[int], stops: list[str], min_tokens: int = 0
) -> tuple[str, list[int], str | None]:
    """Text, tokens and the stop that was hit: the first to end; of those ending together, the longest."""
    before = ""
    for count in range(1, len(tokens) + 1):
        text = llm.tokenizer.decode(tokens[:count])
        for end in range(len(before) + 1, len(text) + 1):
            hits = [stop for stop in stops if text[:end].endswith(stop)]
            if hits and count >= min_tokens:
                hit = max(hits, key=len)
                return text[: end - len(hit)], tokens[:count], hit
        before = text
    return before, tokens, None


def test_the_free_text_has_what_the_tests_need(free: CompletionOutput) -> None:
    assert len(free.token_ids) == NUM_TOKENS
    assert len(set(free.text)) > 6
    assert len(free.text) > NUM_TOKENS, "no token of two letters was drawn, so no stop can end inside one"


@pytest.mark.parametrize("seed", range(12))
def test_stops_end_the_output_wherever_tokens_are_cut(
    llm: LLM, params: SamplingParams, free: CompletionOutput, seed: int
) -> None:
    rng = random.Random(seed)
    stops = []
    for _ in range(rng.randint(1, 4)):
        begin = rng.randrange(len(free.text) - 6)
        stops.append(free.text[begin : begin + rng.randint(1, 6)])
    stops.append("~not there~")
    text, tokens, hit = expected(llm, free.token_ids, stops)
    (output,) = llm.generate(PROMPT, replace(params, stop=tuple(stops)))
    choice = output.outputs[0]
    assert (choice.text, choice.token_ids, choice.stop_reason) == (text, tokens, hit)
    assert choice.finish_reason == "stop"
    updates = list(llm.stream(PROMPT, replace(params, stop=tuple(stops))))
    assert "".join(update.text for update in updates if isinstance(update, Delta)) == text
    assert [t for u in updates if isinstance(u, Delta) for t in u.token_ids] == tokens


def test_a_stop_that_never_comes_changes_nothing(
    llm: LLM, params: SamplingParams, free: CompletionOutput
) -> None:
    """Text is held back while it may begin a stop, and given out at the end."""
    almost = free.text[-5:] + "~"
    (output,) = llm.generate(PROMPT, replace(params, stop=(almost,)))
    choice = output.outputs[0]
    assert (choice.text, choice.token_ids) == (free.text, free.token_ids)
    assert (choice.finish_reason, choice.stop_reason) == ("length", None)
    updates = list(llm.stream(PROMPT, replace(params, stop=(almost,))))
    assert "".join(update.text for update in updates if isinstance(update, Delta)) == free.text


def test_a_stop_in_the_very_last_token_counts(
    llm: LLM, params: SamplingParams, free: CompletionOutput
) -> None:
    """max_tokens and the stop are reached together: the stop is the reason."""
    for count in range(2, NUM_TOKENS):
        text, before = (llm.tokenizer.decode(free.token_ids[:n]) for n in (count, count - 1))
        stop = text[len(before) - 1 :]
        if expected(llm, free.token_ids, [stop])[1] != free.token_ids[:count]:
            continue
        (output,) = llm.generate(PROMPT, replace(params, stop=(stop,), max_tokens=count))
        choice = output.outputs[0]
        assert choice.token_ids == free.token_ids[:count]
        assert choice.text == text[: -len(stop)]
        assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
        return
    pytest.fail("the free text has no place for this test")


def test_stops_before_min_tokens_pass(llm: LLM, params: SamplingParams, free: CompletionOutput) -> None:
    stop = free.text[3]
    for min_tokens in (0, 3, 10):
        text, tokens, hit = expected(llm, free.token_ids, [stop], min_tokens)
        (output,) = llm.generate(PROMPT, replace(params, stop=(stop,), min_tokens=min_tokens))
        choice = output.outputs[0]
        assert (choice.text, choice.token_ids, choice.stop_reason) == (text, tokens, hit)


def test_a_choice_that_stops_leaves_the_others_running(llm: LLM, params: SamplingParams) -> None:
    drawn = replace(params, temperature=1.0, seed=3, n=4, frequency_penalty=0.0)
    (whole,) = llm.generate(PROMPT, drawn)
    stop = whole.outputs[1].text[4:6]
    (output,) = llm.generate(PROMPT, replace(drawn, stop=(stop,)))
    for choice, alone in zip(output.outputs, whole.outputs, strict=True):
        text, tokens, hit = expected(llm, alone.token_ids, [stop])
        assert (choice.text, choice.token_ids, choice.stop_reason) == (text, tokens, hit)
    assert output.outputs[1].finish_reason == "stop"


def test_after_a_stop_nothing_is_left_of_the_request(
    llm: LLM, params: SamplingParams, free: CompletionOutput
) -> None:
    llm.generate([PROMPT] * 5, replace(params, stop=(free.text[2],)))
    while llm.engine.is_busy:
        llm.engine.step()
    llm.engine.scheduler.check()
    assert llm.engine.counts().used_kv_blocks == 0


def test_a_character_that_is_never_completed_comes_as_a_replacement(llm: LLM) -> None:
    """The first byte of a two-byte character, then the end: U+FFFD, not an error and not silence."""
    (lead,) = [token for token in range(256) if llm.tokenizer.token_bytes(token) == b"\xc3"]
    params = SamplingParams(temperature=0.0, max_tokens=1, logit_bias={lead: 100.0}, ignore_eos=True)
    updates = list(llm.stream(PROMPT, params))
    assert isinstance(updates[-1], RequestEnded)
    assert updates[-1].output.outputs[0].text == "\ufffd"
    assert "".join(update.text for update in updates if isinstance(update, Delta)) == "\ufffd"
    (output,) = llm.generate(PROMPT, replace(params, stop=("\ufffd",)))
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("", "stop")
