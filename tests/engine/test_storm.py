"""Random storms of requests: everything at once, at random moments, in too little memory; each as if alone."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.engine.outputs import ChoiceEnded, Delta, RequestEnded, RequestOutput, Update
from tests.engine.tiny import VOCAB, engine

NUM_REQUESTS = 14
LETTERS = "aeinrst E.x"


def draw_params(rng: random.Random) -> SamplingParams:
    """Any mixture of what one request may ask for."""
    fields: dict[str, Any] = {"max_tokens": rng.randint(1, 16), "ignore_eos": rng.random() < 0.5}
    if rng.random() < 0.2:
        width = rng.randint(1, 4)
        fields |= {"beam_width": width, "n": rng.randint(1, width), "temperature": 0.0}
        return SamplingParams(**fields, length_penalty=rng.choice([0.0, 1.0, 2.0]))
    fields["temperature"] = rng.choice([0.0, 0.7, 1.5])
    fields["seed"] = rng.randrange(1000)
    if rng.random() < 0.3:
        fields["n"] = rng.randint(1, 3)
    if rng.random() < 0.2:
        fields["best_of"] = fields.get("n", 1) + rng.randint(0, 2)
    if rng.random() < 0.4:
        fields["stop"] = [rng.choice(LETTERS) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.4:
        fields["logprobs"] = rng.randint(0, 3)
    if rng.random() < 0.2:
        fields["prompt_logprobs"] = rng.randint(0, 2)
    if rng.random() < 0.3:
        fields["stop_token_ids"] = [rng.randrange(VOCAB) for _ in range(20)]
    if rng.random() < 0.3:
        fields["min_tokens"] = rng.randint(0, fields["max_tokens"])
    if rng.random() < 0.3:
        fields |= {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "top_k": 50, "top_p": 0.9}
    return SamplingParams(**fields)


def draw_prompt(rng: random.Random, stems: list[list[int]]) -> list[int]:
    """Often a stem that others share, cut anywhere, with an end of its own."""
    stem = rng.choice(stems)
    own = [rng.randrange(250) for _ in range(rng.randint(0, 12))]
    return stem[: rng.randint(0, len(stem))] + own or [1]


def draw_settings(rng: random.Random) -> dict[str, Any]:
    block_size = rng.choice([1, 2, 4, 8, 16])
    num_seqs = rng.randint(5, 9)
    most_blocks = -(-96 // block_size)
    return {
        "block_size": block_size,
        "num_kv_blocks": 1 + most_blocks + rng.choice([0, 2, most_blocks, 4 * most_blocks]),
        "max_num_seqs": num_seqs,
        "max_num_batched_tokens": num_seqs + rng.choice([0, 7, 40, 200]),
        "max_chunk_tokens": rng.choice([None, 1, 5, 17]),
        "enable_prefix_caching": rng.random() < 0.8,
    }


def whole(output: RequestOutput) -> list[Any]:
    """Everything of an output that must not depend on company."""
    return [
        output.prompt_logprobs,
        [
            (c.token_ids, c.text, c.logprobs, c.cumulative_logprob, c.finish_reason, c.stop_reason)
            for c in output.outputs
        ],
    ]


def check_told(updates: list[Update], output: RequestOutput, was_streamed: bool) -> None:
    """What was told piece by piece adds up to the whole, and every end is told once."""
    ends = Counter(update.index for update in updates if isinstance(update, ChoiceEnded))
    assert sum(isinstance(update, RequestEnded) for update in updates) == 1
    if not was_streamed:
        assert len(updates) == 1
        return
    assert ends == {choice.index: 1 for choice in output.outputs}
    for choice in output.outputs:
        deltas = [update for update in updates if isinstance(update, Delta) and update.index == choice.index]
        assert [token for delta in deltas for token in delta.token_ids] == choice.token_ids
        assert "".join(delta.text for delta in deltas) == choice.text


def weather(
    llm: LLM, rng: random.Random, requests: list[tuple[list[int], SamplingParams]]
) -> dict[str, list[Update]]:
    """Send the requests at random moments, cancel some at others; every update by request."""
    arrivals = sorted(rng.randint(0, 25) for _ in requests)
    cancels = {rng.randint(1, 40): str(rng.randrange(len(requests))) for _ in range(4)}
    told: dict[str, list[Update]] = {str(i): [] for i in range(len(requests))}
    turn = 0
    while turn <= 40 or llm.engine.is_busy:
        updates: list[Update] = []
        for index, arrival in enumerate(arrivals):
            if arrival == turn:
                prompt, params = requests[index]
                llm.engine.add(
                    prompt, params, request_id=str(index), priority=rng.choice([0, 0, 1, -1]),
                    namespace=rng.choice([b"", b"", b"other"]),
                )  # fmt: skip
        updates += llm.engine.step()
        if turn in cancels:
            updates += llm.engine.cancel(cancels[turn])
        llm.engine.scheduler.check()
        for update in updates:
            told[update.request_id].append(update)
        turn += 1
    return told


def storm(model: str, seed: int) -> tuple[int, int]:
    """Run a storm; returns how many requests were cancelled and how often sequences were preempted."""
    rng = random.Random(seed)
    stems = [[rng.randrange(250) for _ in range(40)] for _ in range(2)]
    requests = [(draw_prompt(rng, stems), draw_params(rng)) for _ in range(NUM_REQUESTS)]
    settings = draw_settings(rng)
    with engine(model, max_model_len=96, max_num_batched_tokens=96, enable_prefix_caching=False) as alone:
        expected = [alone.generate([prompt], params)[0] for prompt, params in requests]
    num_cancelled = num_preempted = 0
    with engine(model, max_model_len=96, **settings) as llm:
        pool = llm.engine._executor.kv  # type: ignore[attr-defined]
        pool.poison(range(settings["num_kv_blocks"]))
        told = weather(llm, rng, requests)
        assert llm.engine.counts().used_kv_blocks == 0
    for index, wanted in enumerate(expected):
        updates = told[str(index)]
        assert updates, f"request {index} was never answered"
        last = updates[-1]
        assert isinstance(last, RequestEnded)
        output = last.output
        check_told(updates, output, last.was_streamed)
        num_preempted += output.metrics.preemptions
        if any(choice.finish_reason == "cancelled" for choice in output.outputs):
            num_cancelled += 1
            for choice, one in zip(output.outputs, wanted.outputs, strict=False):
                if requests[index][1].beam_width is None and last.was_streamed:
                    assert choice.token_ids == one.token_ids[: len(choice.token_ids)], f"request {index}"
            continue
        assert whole(output) == whole(wanted), f"request {index}: {requests[index]}, {settings}"
    return num_cancelled, num_preempted


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("model", ["tiny", "sliding"])
def test_every_request_of_a_storm_is_answered_as_if_alone(
    request: pytest.FixtureRequest, model: str, seed: int
) -> None:
    storm(str(request.getfixturevalue(model)), seed)


def test_storms_cancel_and_preempt(tiny: Path) -> None:
    """Guards the test above: its seeds reach what they are meant to reach."""
    found = [storm(str(tiny), seed) for seed in (0, 3)]
    assert sum(cancelled for cancelled, _ in found) > 0
    assert sum(preempted for _, preempted in found) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 220))
@pytest.mark.parametrize("model", ["tiny", "half", "sliding"])
def test_many_storms(request: pytest.FixtureRequest, model: str, seed: int) -> None:
    storm(str(request.getfixturevalue(model)), seed)


def test_params_are_drawn_from_all_there_is() -> None:
    """Guards the storms: every field that can be set is set by some request."""
    rng = random.Random(1)
    drawn = [draw_params(rng) for _ in range(300)]
    plain = SamplingParams()
    for field in (
        "n",
        "best_of",
        "beam_width",
        "stop",
        "stop_token_ids",
        "min_tokens",
        "logprobs",
        "prompt_logprobs",
    ):
        assert any(getattr(params, field) != getattr(plain, field) for params in drawn), field
