"""A request broken off anywhere and taken up by another engine gives the rest of the same answer, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.core.sequence import Grammar
from octavo.engine.outputs import ChoiceEnded, Delta, RequestEnded, Update
from octavo.errors import RequestError
from octavo.link.frames import Progress
from tests.engine.test_grammar import PERSON
from tests.engine.tiny import END, engine

PROMPT = [40, 41, 42, 7, 9, 40, 41, 42, 7, 9, 12]
SCHEMA = Grammar(kind="json_schema", source=json.dumps(PERSON))

ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0, "ignore_eos": True},
    "drawn": {"temperature": 1.0, "seed": 3, "logprobs": 2},
    "without a seed": {"temperature": 1.0},
    "several": {"n": 4, "temperature": 1.2, "seed": 5, "max_tokens": 9, "logprobs": 0},
    "penalties": {
        "temperature": 0.8,
        "seed": 2,
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.5,
        "top_k": 40,
        "top_p": 0.9,
        "bad_words": ("e", "ab"),
    },
    "stop texts": {"n": 3, "temperature": 1.0, "seed": 11, "stop": ("e", "Qx", "\x07"), "max_tokens": 40},
    "stop texts shown": {"temperature": 1.0, "seed": 12, "stop": ("e",), "include_stop_str_in_output": True},
    "stop tokens": {"n": 2, "temperature": 1.0, "seed": 4, "stop_token_ids": tuple(range(0, 250, 12))},
    "min tokens": {"temperature": 1.0, "seed": 4, "stop_token_ids": tuple(range(0, 250, 3)), "min_tokens": 6},
    "end token": {"n": 3, "temperature": 1.0, "seed": 1, "logit_bias": {END: 6.0}, "max_tokens": 30},
    "grammar": {"n": 2, "temperature": 1.0, "seed": 6, "grammar": SCHEMA, "max_tokens": 70},
    "choice": {"temperature": 1.0, "seed": 6, "grammar": Grammar(kind="choice", source='["yes", "not at all"]')},
    "window": {"temperature": 1.0, "seed": 6, "max_tokens": None, "ignore_eos": True},
}  # fmt: skip


@dataclass
class Got:
    """What a client has of one choice."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[dict[int, Any]] = field(default_factory=list)
    end: ChoiceEnded | None = None


class Client:
    """Adds up what it is told, and refuses what it was told before."""

    def __init__(self, n: int) -> None:
        self.choices = [Got() for _ in range(n)]
        self.ended: RequestEnded | None = None

    def hear(self, updates: Sequence[Update]) -> None:
        for update in updates:
            assert self.ended is None, "something came after the end"
            if isinstance(update, RequestEnded):
                self.ended = update
                continue
            got = self.choices[update.index]
            assert got.end is None, "a choice that had ended was told of again"
            if isinstance(update, ChoiceEnded):
                got.end = update
            else:
                got.tokens += update.token_ids
                got.text += update.text
                got.logprobs += update.logprobs or ()

    def progress(self) -> tuple[Progress, ...]:
        """As a front notes it down; choices of which nothing has come are left out."""
        return tuple(
            Progress(i, tuple(got.tokens), len(got.text), got.end is not None)
            for i, got in enumerate(self.choices)
            if got.tokens or got.text or got.end
        )

    def all(self) -> list[Any]:
        return [(got.tokens, got.text, got.logprobs, got.end) for got in self.choices]


@pytest.fixture(scope="module")
def engines(tiny: Path) -> Iterator[tuple[LLM, LLM]]:
    """Two of them, of other chunks and block sizes."""
    with (
        engine(tiny, max_model_len=48) as one,
        engine(tiny, max_model_len=48, max_num_batched_tokens=9, max_num_seqs=9, block_size=4) as other,
    ):
        yield one, other


def finished(llm: LLM) -> list[Update]:
    updates: list[Update] = []
    while llm.engine.is_busy:
        updates += llm.engine.step()
    llm.engine.scheduler.check()
    return updates


@pytest.mark.parametrize("asked", ASKED)
def test_broken_off_after_any_update_it_ends_as_it_would_have(engines, asked):
    one, other = engines
    params = SamplingParams(**({"max_tokens": 16} | ASKED[asked]))
    updates = one.engine.add(PROMPT, params, request_id="a", seed=77)
    assert updates == []
    updates = finished(one)
    wanted = Client(params.n)
    wanted.hear(updates)
    assert wanted.ended is not None
    assert len(updates) > params.n + 1
    for cut in range(len(updates)):
        client = Client(params.n)
        client.hear(updates[:cut])
        lacking = other.engine.add(PROMPT, params, request_id="a", seed=77, progress=client.progress())
        client.hear(lacking)
        client.hear(finished(other))
        assert client.all() == wanted.all(), f"broken off after {cut} updates: {updates[:cut]}"
        assert client.ended is not None
        counted = [len(choice.token_ids) for choice in client.ended.output.outputs]
        assert counted == [len(got.tokens) for got in wanted.choices], "usage counts all tokens once"


def test_what_is_answered_as_a_whole_has_no_progress(engines):
    one, _ = engines
    params = SamplingParams(n=1, best_of=2, max_tokens=4)
    with pytest.raises(RequestError, match="as a whole"):
        one.engine.add(PROMPT, params, request_id="a", progress=(Progress(0, (1,), 1, False),))
    assert not one.engine.is_busy


def test_cancelling_what_was_taken_up_ends_every_choice_that_had_not(engines):
    one, _ = engines
    params = SamplingParams(n=3, temperature=1.0, max_tokens=16, ignore_eos=True)
    progress = (Progress(0, (5, 6), 2, False), Progress(1, (5,), 1, True))
    assert one.engine.add(PROMPT, params, request_id="a", progress=progress) == []
    told = one.engine.cancel("a")
    assert [update.index for update in told if isinstance(update, ChoiceEnded)] == [0, 2]
    assert isinstance(told[-1], RequestEnded)
    assert not finished(one)


def test_a_seed_of_the_request_goes_before_that_of_the_front(engines):
    one, _ = engines
    params = SamplingParams(temperature=1.0, max_tokens=8, seed=1)
    texts = []
    for seed in (5, 6):
        one.engine.add(PROMPT, params, request_id="a", seed=seed)
        texts.append([update for update in finished(one) if isinstance(update, Delta)])
    assert texts[0] == texts[1]
