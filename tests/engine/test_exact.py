"""Results never depend on company: tokens and log-probabilities are compared bit for bit.

What a request gives alone, unchunked and without a cache is the reference; every other way to the same request
must give the same bits. The pool is filled with NaN first, so that a read of a slot nobody wrote shows.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams, bundled
from octavo.codec.tokenizer import Tokenizer
from octavo.engine.outputs import RequestEnded, RequestOutput
from tests.engine.tiny import engine

MODELS = ["tiny", "half", "sliding", "quire"]
Job = tuple[list[int], SamplingParams]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    """Path of a model folder, or the name of the bundled model."""
    if request.param == "quire":
        if "quire" not in bundled.names():
            pytest.skip("the bundled model is not in this checkout")
        return "quire"
    return str(request.getfixturevalue(request.param))


@cache
def corpus(model: str) -> list[int]:
    """Token ids to cut prompts from: real text for the trained model, any ids for random ones."""
    if model == "quire":
        return Tokenizer.from_path(bundled.path("quire")).encode(inspect.getsource(textwrap), False)
    return [(i * i * 31 + i * 17 + i // 7) % 251 for i in range(4000)]


def tokens(model: str, count: int, salt: int) -> list[int]:
    """Token ids, another stretch for every salt."""
    return corpus(model)[salt * 83 : salt * 83 + count]


def jobs(model: str) -> list[Job]:
    """Requests that differ in everything that could leak: lengths, prefixes, sampling, penalties, choices."""
    draw = partial(tokens, model)
    common = draw(37, 1)
    greedy = SamplingParams(temperature=0.0, max_tokens=20, logprobs=3, ignore_eos=True)
    drawn = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=17, logprobs=2, ignore_eos=True)
    return [
        (common + draw(5, 2), greedy),
        (common + draw(23, 3), drawn),
        (common[:29] + draw(9, 4), replace(drawn, top_k=40, min_p=0.01, seed=12)),
        (draw(1, 5), greedy),
        (draw(70, 6), replace(greedy, max_tokens=9, prompt_logprobs=2)),
        (draw(8, 7), replace(greedy, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2)),
        (draw(16, 8), replace(drawn, n=3, seed=13)),
        (common, replace(drawn, temperature=1.7, top_p=1.0, seed=14, logit_bias={5: 3.0, 9: -50.0})),
    ]


def bits(output: RequestOutput) -> list[Any]:
    """Everything that must not change, floats compared by their exact value."""
    prompt = None
    if output.prompt_logprobs is not None:
        prompt = [
            one and [(token, p.logprob.hex(), p.rank) for token, p in one.items()]
            for one in output.prompt_logprobs
        ]
    choices = []
    for choice in output.outputs:
        assert choice.logprobs is not None
        assert choice.cumulative_logprob is not None
        logprobs = [[(t, p.logprob.hex(), p.rank) for t, p in one.items()] for one in choice.logprobs]
        choices.append(
            (choice.token_ids, logprobs, choice.cumulative_logprob.hex(), choice.text, choice.finish_reason)
        )
    return [prompt, choices]


def poisoned(model: str, **settings: Any) -> LLM:
    """An engine whose whole pool holds NaN."""
    llm = engine(model, max_model_len=128, **settings)
    llm.engine._executor.kv.poison(range(llm.built.plan.resolved.limits.num_blocks))  # type: ignore[attr-defined]
    return llm


def run(llm: LLM, wanted: Sequence[Job]) -> list[RequestOutput]:
    outputs = llm.generate([prompt for prompt, _ in wanted], [params for _, params in wanted])
    llm.engine.scheduler.check()
    return outputs


@cache
def reference(model: str) -> tuple[list[Any], ...]:
    """Each job alone: its prompt in one piece, no cache, nobody beside it."""
    found = []
    with poisoned(model, enable_prefix_caching=False, max_num_batched_tokens=128) as llm:
        for job in jobs(model):
            found.append(bits(run(llm, [job])[0]))
    return tuple(found)


def assert_same(model: str, outputs: Sequence[RequestOutput]) -> None:
    for index, (output, wanted) in enumerate(zip(outputs, reference(model), strict=True)):
        assert bits(output) == wanted, f"job {index}"


def test_the_reference_says_something(model: str) -> None:
    """Guards the others: texts differ between jobs and choices, few repeat one token, none ends early."""
    found = reference(model)
    choices = [tuple(choice[0]) for _, job in found for choice in job]
    assert len(set(choices)) == len(choices)
    assert sum(len(set(one)) > 4 for one in choices) >= 8
    assert all(choice[4] == "length" for _, job in found for choice in job)


def test_alone_again_is_the_same(model: str) -> None:
    with poisoned(model, enable_prefix_caching=False, max_num_batched_tokens=128) as llm:
        assert_same(model, [run(llm, [job])[0] for job in reversed(jobs(model))][::-1])


@pytest.mark.parametrize("max_num_seqs", [3, 10])
def test_batched(model: str, max_num_seqs: int) -> None:
    with poisoned(model, max_num_seqs=max_num_seqs, max_num_batched_tokens=512) as llm:
        assert_same(model, run(llm, jobs(model)))


@pytest.mark.parametrize(("chunk", "budget"), [(1, 8), (3, 64), (8, 11), (13, 64), (None, 9)])
def test_chunked(model: str, chunk: int | None, budget: int) -> None:
    with poisoned(model, max_chunk_tokens=chunk, max_num_batched_tokens=budget) as llm:
        assert_same(model, run(llm, jobs(model)))


@pytest.mark.parametrize("block_size", [1, 4, 32])
def test_other_block_sizes(model: str, block_size: int) -> None:
    with poisoned(model, block_size=block_size, num_kv_blocks=1 + 1024 // block_size) as llm:
        assert_same(model, run(llm, jobs(model)))


def test_one_at_a_time_from_a_warm_cache(model: str) -> None:
    """The second round finds most of the first in the cache."""
    wanted = jobs(model)
    with poisoned(model) as llm:
        assert_same(model, [run(llm, [job])[0] for job in wanted])
        again = [run(llm, [job])[0] for job in wanted]
        assert_same(model, again)
        for (prompt, params), output in zip(wanted, again, strict=True):
            cached = output.metrics.cached_prompt_tokens
            assert cached == (len(prompt) - 1 if params.prompt_logprobs is None else 0)


def test_seats_for_one_request_at_a_time(model: str) -> None:
    with poisoned(model, max_num_seqs=3, max_num_batched_tokens=3) as llm:
        assert_same(model, run(llm, jobs(model)))
    single = [job for job in jobs(model) if job[1].n == 1]
    with poisoned(model, max_num_seqs=1) as llm:
        outputs = run(llm, single)
    wanted = [one for one, job in zip(reference(model), jobs(model), strict=True) if job[1].n == 1]
    assert [bits(output) for output in outputs] == wanted


@pytest.mark.parametrize("caching", [True, False])
def test_preempted(model: str, caching: bool) -> None:
    """A pool that holds the longest request and little more: sequences lose their blocks and are recomputed."""
    needs = 5 if model.endswith("sliding") else 17
    with poisoned(model, num_kv_blocks=needs + 1, enable_prefix_caching=caching) as llm:
        outputs = run(llm, jobs(model))
    assert_same(model, outputs)
    assert sum(output.metrics.preemptions for output in outputs) > 0


def test_cache_hits_of_every_length(model: str) -> None:
    """Prompts that share 0, 1, 2 ... tokens with what was computed before; every length is really hit."""
    prompt, params = tokens(model, 41, 20), SamplingParams(temperature=0.8, seed=3, max_tokens=4, logprobs=2)
    with poisoned(model, enable_prefix_caching=False) as llm:
        wanted = bits(run(llm, [(prompt, params)])[0])
    hits = []
    for shared in range(len(prompt) + 1):
        with_other_end = prompt[:shared] + [(token + 1) % 250 for token in tokens(model, 60, 20)[shared:]]
        with poisoned(model) as llm:
            run(llm, [(with_other_end, replace(params, max_tokens=1))])
            (output,) = run(llm, [(prompt, params)])
        assert bits(output) == wanted, f"{shared} tokens shared"
        hits.append(output.metrics.cached_prompt_tokens)
    assert hits == [*range(len(prompt)), len(prompt) - 1]


def test_choices_do_not_depend_on_how_many_there_are(model: str) -> None:
    """Choice i is keyed by (seed, i, position): more choices beside it change nothing."""
    prompt = tokens(model, 21, 30)
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=10, logprobs=1, ignore_eos=True)
    found = {}
    for n in (1, 2, 5):
        with poisoned(model, max_num_seqs=8) as llm:
            (output,) = run(llm, [(prompt, replace(params, n=n))])
        found[n] = bits(output)[1]
    assert found[2] == found[5][:2]
    assert found[1] == found[5][:1]
    assert len({tuple(choice[0]) for choice in found[5]}) == 5


def test_others_cancelled_beside_it(model: str) -> None:
    """Every other request is cancelled at a different moment; the rest do not notice."""
    wanted = jobs(model)
    with poisoned(model, max_num_seqs=6) as llm:
        for index, (prompt, params) in enumerate(wanted):
            llm.engine.add(prompt, params, request_id=str(index))
        doomed = iter(["1", "3", "5", "7"])
        done: dict[str, RequestOutput] = {}
        num_turns = 0
        while llm.engine.is_busy:
            done |= {one.request_id: one.output for one in llm.engine.step() if isinstance(one, RequestEnded)}
            num_turns += 1
            if num_turns % 2 == 0 and (victim := next(doomed, None)):
                llm.engine.cancel(victim)
            llm.engine.scheduler.check()
    survivors = [i for i in range(len(wanted)) if i % 2 == 0]
    for index in survivors:
        assert bits(done[str(index)]) == reference(model)[index], f"job {index}"


def test_prompt_logprobs_do_not_depend_on_chunks(model: str) -> None:
    job = (
        tokens(model, 90, 40),
        SamplingParams(temperature=0.0, max_tokens=2, logprobs=0, prompt_logprobs=3),
    )
    found = []
    for settings in ({"max_num_batched_tokens": 128}, {"max_chunk_tokens": 7}, {"max_num_batched_tokens": 8}):
        with poisoned(model, **settings) as llm:
            found.append(bits(run(llm, [job])[0]))
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == 90
    assert found[0][0][0] is None


def test_priorities_change_the_order_and_nothing_else(model: str) -> None:
    wanted = jobs(model)
    with poisoned(model, max_num_seqs=3, num_kv_blocks=40) as llm:
        outputs = llm.generate(
            [prompt for prompt, _ in wanted],
            [params for _, params in wanted],
            priority=[len(wanted) - i for i in range(len(wanted))],
        )
    assert_same(model, outputs)
    first = [output.metrics.first_scheduled_s for output in outputs]
    assert first[-1] == min(first)  # type: ignore[type-var]


def test_a_path_is_not_needed_twice(tiny: Path) -> None:
    """Two engines side by side share nothing that could change results."""
    with poisoned(str(tiny)) as one, poisoned(str(tiny), max_chunk_tokens=5) as other:
        ours, theirs = jobs(str(tiny))[:3], jobs(str(tiny))[3:6]
        mixed = [*run(one, ours), *run(other, theirs)]
        mixed += [*run(other, ours), *run(one, theirs)]
    assert [bits(output) for output in mixed] == [*reference(str(tiny))[:6]] * 2
