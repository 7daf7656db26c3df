"""What callers of `LLM` hold in their hands: prompts in, outputs out, every field, every refusal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo import LLM, SamplingParams
from octavo.cli.main import main
from octavo.config import EngineConfig
from octavo.engine.outputs import ChoiceEnded, Delta, RequestEnded, RequestOutput
from octavo.errors import ConfigError, LoadError, PromptTooLong, RequestError, Unsupported
from octavo.obs import recording
from octavo.obs.flight import Submitted
from tests.engine.tiny import ASSISTANT, END, VOCAB, engine

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with engine(tiny) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: no request, no sequence, and every block free or cached."""
    yield
    if "llm" in request.fixturenames:
        used = request.getfixturevalue("llm")
        assert_free(used)


def assert_free(used: LLM) -> None:
    while used.engine.is_busy:
        used.engine.step()
    used.engine.scheduler.check()
    counts = used.engine.counts()
    assert (counts.num_running, counts.num_waiting, counts.used_kv_blocks) == (0, 0, 0)


def one(outputs: list[RequestOutput]) -> RequestOutput:
    (output,) = outputs
    return output


# -- prompts ----------------------------------------------------------------------------------------------------


def test_every_form_of_a_prompt_means_the_same(llm: LLM) -> None:
    text = "some words"
    ids = llm.tokenizer.encode(text)
    forms: list[Any] = [text, [text], ids, [ids], {"prompt": text}, [{"prompt_token_ids": ids}], tuple(ids)]
    outputs = [one(llm.generate(form, GREEDY)) for form in forms]
    assert {tuple(output.outputs[0].token_ids) for output in outputs} == {
        tuple(outputs[0].outputs[0].token_ids)
    }
    assert {tuple(output.prompt_token_ids) for output in outputs} == {tuple(ids)}
    assert [output.prompt for output in outputs] == [text, text, None, None, text, None, None]


def test_outputs_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = [[i] * (9 - i) for i in range(1, 8)]
    params = [SamplingParams(temperature=0.0, max_tokens=9 - i, ignore_eos=True) for i in range(1, 8)]
    outputs = llm.generate(prompts, params)
    assert [output.prompt_token_ids for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == [8, 7, 6, 5, 4, 3, 2]
    assert len({output.request_id for output in outputs}) == 7


def test_no_prompts_give_no_outputs(llm: LLM) -> None:
    assert llm.generate([], GREEDY) == []


def test_defaults_are_sixteen_tokens_at_temperature_one(llm: LLM) -> None:
    output = one(llm.generate("x"))
    assert len(output.outputs[0].token_ids) <= 16
    again = one(llm.generate("x", SamplingParams(seed=output.metrics.seed)))
    assert again.outputs[0].token_ids == output.outputs[0].token_ids


def test_max_tokens_none_goes_to_the_end_of_the_window(tiny: Path) -> None:
    with engine(tiny, max_model_len=40) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
        output = one(llm.generate([1, 2, 3], params))
    assert len(output.outputs[0].token_ids) == 37
    assert output.outputs[0].finish_reason == "length"


def test_an_output_stops_at_the_window_whatever_max_tokens_says(tiny: Path) -> None:
    with engine(tiny, max_model_len=40) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=1000, ignore_eos=True)
        output = one(llm.generate([1] * 39, params))
    assert len(output.outputs[0].token_ids) == 1


# -- outputs ----------------------------------------------------------------------------------------------------


def test_an_output_in_full(llm: LLM) -> None:
    output = one(
        llm.generate([5, 6, 7], SamplingParams(temperature=0.0, max_tokens=4, logprobs=2, ignore_eos=True))
    )
    assert output.finished
    assert output.prompt_logprobs is None
    choice = output.outputs[0]
    assert choice.index == 0
    assert choice.finish_reason == "length"
    assert choice.stop_reason is None
    assert choice.error is None
    assert choice.text == llm.tokenizer.decode(choice.token_ids)
    assert choice.logprobs is not None
    assert len(choice.logprobs) == len(choice.token_ids) == 4
    total = 0.0
    for token, entry in zip(choice.token_ids, choice.logprobs, strict=True):
        assert next(iter(entry)) == token
        assert sorted(item.rank for item in entry.values()) == [1, 2]
        assert entry[token].decoded_token == llm.tokenizer.decode([token], False)
        total += entry[token].logprob
    assert choice.cumulative_logprob == total


def test_logprobs_are_none_when_not_asked_for(llm: LLM) -> None:
    output = one(llm.generate([5], GREEDY))
    assert output.outputs[0].logprobs is None
    output = one(
        llm.generate([5], SamplingParams(temperature=0.0, max_tokens=2, logprobs=0, ignore_eos=True))
    )
    assert [len(entry) for entry in output.outputs[0].logprobs or ()] == [1, 1]


def test_prompt_logprobs_are_those_of_the_draws(llm: LLM) -> None:
    """What was reported when a token was drawn is reported again, bit for bit, when it is part of a prompt."""
    prompt = [5, 6, 7]
    params = SamplingParams(temperature=0.9, seed=3, max_tokens=9, logprobs=2, ignore_eos=True)
    drawn = one(llm.generate(prompt, params)).outputs[0]
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=2)
    scored = one(llm.generate([*prompt, *drawn.token_ids], params)).prompt_logprobs
    assert scored is not None
    assert scored[0] is None
    assert [next(iter(entry or {})) for entry in scored[1:]] == [6, 7, *drawn.token_ids]
    assert scored[3:] == drawn.logprobs


def test_metrics_tell_the_story_of_a_request(llm: LLM) -> None:
    prompt = [(i * 3) % 200 for i in range(30)]
    first = one(llm.generate(prompt, GREEDY)).metrics
    second = one(llm.generate(prompt, GREEDY)).metrics
    for metrics in (first, second):
        assert metrics.first_scheduled_s is not None
        assert metrics.first_token_s is not None
        assert metrics.finished_s is not None
        assert metrics.arrival_s <= metrics.first_scheduled_s <= metrics.first_token_s <= metrics.finished_s
        assert metrics.queued_s == metrics.first_scheduled_s - metrics.arrival_s
        assert metrics.preemptions == 0
        assert metrics.cache_miss_reason
    assert first.cached_prompt_tokens == 0
    assert second.cached_prompt_tokens == 29


def test_prefix_caching_can_be_switched_off(tiny: Path) -> None:
    prompt = [(i * 3) % 200 for i in range(30)]
    with engine(tiny, enable_prefix_caching=False) as llm:
        for _ in range(2):
            metrics = one(llm.generate(prompt, GREEDY)).metrics
            assert metrics.cached_prompt_tokens == 0
            assert "off" in (metrics.cache_miss_reason or "")


def test_a_seed_repeats_a_draw_and_none_does_not(llm: LLM) -> None:
    def draw(seed: int | None) -> list[int]:
        params = SamplingParams(temperature=1.0, seed=seed, max_tokens=12, ignore_eos=True)
        return one(llm.generate([9, 8, 7], params)).outputs[0].token_ids

    assert draw(4) == draw(4)
    assert draw(4) != draw(5)
    assert draw(None) != draw(None)


def test_the_engine_seed_repeats_a_whole_run(tiny: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        with engine(tiny, seed=seed) as llm:
            outputs = llm.generate([[1], [2]], SamplingParams(max_tokens=8, ignore_eos=True))
            found.append([output.outputs[0].token_ids for output in outputs])
    assert found[0] == found[1] != found[2]


# -- parallel choices -------------------------------------------------------------------------------------------


def test_n_choices(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.0, seed=2, max_tokens=5, ignore_eos=True, logprobs=1)
    output = one(llm.generate([1, 2, 3], params))
    assert [choice.index for choice in output.outputs] == [0, 1, 2]
    assert len({tuple(choice.token_ids) for choice in output.outputs}) == 3
    for choice in output.outputs:
        assert [next(iter(entry)) for entry in choice.logprobs or ()] == choice.token_ids


def test_best_of_returns_the_likeliest(llm: LLM) -> None:
    base = {"temperature": 1.0, "seed": 2, "max_tokens": 5, "ignore_eos": True, "logprobs": 0}
    drawn = one(llm.generate([1, 2, 3], SamplingParams(n=5, **base))).outputs  # type: ignore[arg-type]
    best = one(llm.generate([1, 2, 3], SamplingParams(n=2, best_of=5, **base))).outputs  # type: ignore[arg-type]
    ranked = sorted(drawn, key=lambda choice: -(choice.cumulative_logprob or 0) / len(choice.token_ids))
    assert [choice.token_ids for choice in best] == [choice.token_ids for choice in ranked[:2]]
    assert [choice.index for choice in best] == [0, 1]


def test_best_of_goes_by_the_mean_so_that_length_is_no_fault(llm: LLM) -> None:
    """A case in which the likeliest by sum is another: a short answer has few terms."""
    for seed in range(40):
        base: dict[str, Any] = {"temperature": 1.0, "seed": seed, "max_tokens": 9, "logprobs": 0}
        base["stop_token_ids"] = tuple(range(0, 250, 5))
        drawn = one(llm.generate([1, 2, 3], SamplingParams(n=5, **base))).outputs
        by_sum = max(drawn, key=lambda choice: choice.cumulative_logprob or 0.0)
        by_mean = max(drawn, key=lambda choice: (choice.cumulative_logprob or 0.0) / len(choice.token_ids))
        if by_sum is not by_mean:
            (best,) = one(llm.generate([1, 2, 3], SamplingParams(n=1, best_of=5, **base))).outputs
            assert best.token_ids == by_mean.token_ids
            return
    pytest.fail("no seed tells the two rankings apart")


def test_best_of_needs_no_logprobs_asked_for(llm: LLM) -> None:
    params = SamplingParams(n=1, best_of=4, temperature=1.0, seed=2, max_tokens=5, ignore_eos=True)
    output = one(llm.generate([1, 2, 3], params))
    assert len(output.outputs) == 1
    assert output.outputs[0].logprobs is None
    assert output.outputs[0].cumulative_logprob is not None


# -- ends -------------------------------------------------------------------------------------------------------


def test_stop_token_ids_end_the_output_and_are_named(llm: LLM) -> None:
    free = one(llm.generate([1, 2], SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True))).outputs[
        0
    ]
    stop = free.token_ids[5]
    first = free.token_ids.index(stop)
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, stop_token_ids=[stop])  # type: ignore[arg-type]
    output = one(llm.generate([1, 2], params)).outputs[0]
    assert output.token_ids == free.token_ids[: first + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert output.text == llm.tokenizer.decode(free.token_ids[:first])


def test_the_models_end_token_ends_the_output_unless_ignored(llm: LLM) -> None:
    bias = {END: 100.0}
    params = SamplingParams(temperature=0.0, max_tokens=3, logit_bias=bias)
    output = one(llm.generate([1, 2], params)).outputs[0]
    assert (output.token_ids, output.text) == ([END], "")
    assert (output.finish_reason, output.stop_reason) == ("stop", None)
    params = SamplingParams(temperature=0.0, max_tokens=3, logit_bias=bias, ignore_eos=True)
    output = one(llm.generate([1, 2], params)).outputs[0]
    assert (output.token_ids, output.finish_reason) == ([END] * 3, "length")


def test_no_end_before_min_tokens(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=9, min_tokens=4, logit_bias={END: 100.0})
    output = one(llm.generate([1, 2], params)).outputs[0]
    assert END not in output.token_ids[:4]
    assert output.token_ids[4:] == [END]


def test_logit_bias_forces_and_forbids(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=5, logit_bias={77: 100.0}, ignore_eos=True)
    assert one(llm.generate([1], params)).outputs[0].token_ids == [77] * 5
    free = one(llm.generate([1], GREEDY)).outputs[0].token_ids
    params = SamplingParams(
        temperature=0.0, max_tokens=6, logit_bias=dict.fromkeys(free, -100.0), ignore_eos=True
    )
    assert not set(one(llm.generate([1], params)).outputs[0].token_ids) & set(free)


# -- streams ----------------------------------------------------------------------------------------------------


def test_a_stream_adds_up_to_the_output(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=1, n=2, max_tokens=9, logprobs=1, ignore_eos=True)
    updates = list(llm.stream("hello", params))
    assert isinstance(updates[-1], RequestEnded)
    output = updates[-1].output
    for choice in output.outputs:
        deltas = [u for u in updates if isinstance(u, Delta) and u.index == choice.index]
        assert "".join(delta.text for delta in deltas) == choice.text
        assert [token for delta in deltas for token in delta.token_ids] == choice.token_ids
        assert [entry for delta in deltas for entry in delta.logprobs or ()] == choice.logprobs
        (end,) = [u for u in updates if isinstance(u, ChoiceEnded) and u.index == choice.index]
        assert end.finish_reason == choice.finish_reason == "length"
    assert sum(isinstance(update, RequestEnded) for update in updates) == 1
    expected = one(llm.generate("hello", params)).outputs
    assert [choice.token_ids for choice in expected] == [choice.token_ids for choice in output.outputs]


def test_a_stream_left_early_is_cancelled(llm: LLM) -> None:
    stream = llm.stream([1, 2, 3], SamplingParams(max_tokens=200, ignore_eos=True))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert_free(llm)
    assert len(one(llm.generate([1, 2, 3], GREEDY)).outputs[0].token_ids) == 6


def test_a_call_beside_an_open_stream_is_refused(llm: LLM) -> None:
    stream = llm.stream([1, 2, 3], SamplingParams(max_tokens=200, ignore_eos=True))
    next(stream)
    with pytest.raises(RequestError, match="still streaming"):
        llm.generate([1], GREEDY)
    stream.close()  # type: ignore[attr-defined]
    assert len(llm.generate([1], GREEDY)) == 1


def test_ranked_choices_are_not_shown_before_they_are_ranked(llm: LLM) -> None:
    params = SamplingParams(n=1, best_of=3, seed=1, max_tokens=4, ignore_eos=True)
    (update,) = list(llm.stream([1, 2], params))
    assert isinstance(update, RequestEnded)
    assert not update.was_streamed
    assert update.num_drawn_tokens == 12


# -- chat -------------------------------------------------------------------------------------------------------


def test_chat_renders_the_models_template(llm: LLM) -> None:
    output = one(llm.chat([{"role": "user", "content": "be"}], GREEDY))
    tokenizer = llm.tokenizer
    assert output.prompt_token_ids == [298, *tokenizer.encode("be"), ASSISTANT]
    assert len(output.outputs[0].token_ids) == 6


def test_chat_takes_several_conversations_and_other_templates(llm: LLM) -> None:
    conversations = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]
    outputs = llm.chat(
        conversations, GREEDY, add_generation_prompt=False, chat_template="{{ messages[0].content }}!"
    )
    assert [output.prompt_token_ids for output in outputs] == [
        llm.tokenizer.encode(text) for text in ("a!", "b!")
    ]


def test_chat_without_a_template_says_so(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(__import__("json").dumps(tiny_config()))
    with engine(config) as llm, pytest.raises(RequestError, match="template"):
        llm.chat([{"role": "user", "content": "hello"}])


def tiny_config() -> dict[str, Any]:
    from tests.engine.tiny import CONFIG

    return CONFIG


def test_what_a_template_refuses_is_a_request_error(llm: LLM) -> None:
    with pytest.raises(RequestError):
        llm.chat([{"role": "user", "content": "x"}], chat_template="{{ raise_exception('no such role') }}")
    with pytest.raises(RequestError):
        llm.chat([{"role": "user", "content": "x"}], chat_template="{% for %}")


# -- refusals ---------------------------------------------------------------------------------------------------

BAD_PROMPTS: list[tuple[Any, str]] = [
    ([[]], "empty"),
    ("", "empty"),
    ({"prompt_token_ids": []}, "empty"),
    ([VOCAB], "outside the vocabulary"),
    ([-1], "outside the vocabulary"),
    ([10**30], "outside the vocabulary"),
    ([1.5], "whole number|text, a list"),
    ([True, 1], "whole numbers"),
    ([1, "a"], "text, a list of token ids"),
    (None, "one prompt or several"),
    (5, "one prompt or several"),
    ([None], "text, a list of token ids"),
    ({"prompt_token_ids": 5}, "text, a list of token ids"),
    ({"prompt_token_ids": "12"}, "text, a list of token ids"),
    ({"prompt": 7}, "mapping"),
    ({"text": "x"}, "'prompt' or 'prompt_token_ids'"),
    ({"prompt": "x", "prompt_token_ids": [1]}, "'prompt' or 'prompt_token_ids'"),
    ([b"bytes"], "text, a list of token ids"),
    ("\ud800", "surrogate"),
]


@pytest.mark.parametrize(("prompt", "message"), BAD_PROMPTS, ids=[repr(prompt) for prompt, _ in BAD_PROMPTS])
def test_a_bad_prompt_is_refused_and_the_engine_goes_on(llm: LLM, prompt: Any, message: str) -> None:
    before = one(llm.generate([3, 4], GREEDY)).outputs[0].token_ids
    with pytest.raises(RequestError, match=message):
        llm.generate(prompt, GREEDY)
    assert one(llm.generate([3, 4], GREEDY)).outputs[0].token_ids == before


def test_a_prompt_too_long_names_its_length_and_the_window(llm: LLM) -> None:
    with pytest.raises(PromptTooLong, match=r"256 tokens and the window is 256 tokens"):
        llm.generate([1] * 256, GREEDY)
    assert len(one(llm.generate([1] * 255, GREEDY)).outputs[0].token_ids) == 1


def test_one_bad_prompt_among_many_means_nothing_has_run(llm: LLM) -> None:
    before = llm.engine.counts().num_steps
    with pytest.raises(RequestError, match="empty"):
        llm.generate([[1], [2], []], GREEDY)
    assert llm.engine.counts().num_steps == before


BAD_PARAMS: list[tuple[Any, str]] = [
    ({"temperature": 0.0}, "must be SamplingParams"),
    ("greedy", "must be SamplingParams"),
    ([GREEDY, GREEDY], "2 sampling_params for 1 prompts"),
    ([], "0 sampling_params for 1 prompts"),
    (SamplingParams(stop_token_ids=(VOCAB,)), "outside the vocabulary"),
    (SamplingParams(logit_bias={VOCAB: 1.0}), "outside the vocabulary"),
    (SamplingParams(n=9), "max_num_seqs"),
    (SamplingParams(beam_width=9), "max_num_seqs"),
]


@pytest.mark.parametrize(("params", "message"), BAD_PARAMS)
def test_bad_params_are_refused(llm: LLM, params: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        llm.generate([1], params)


@pytest.mark.parametrize("field", [{"stop": "x"}, {"logprobs": 1}])
def test_what_beams_cannot_do_is_refused(llm: LLM, field: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match="beam_width"):
        llm.generate([1], SamplingParams(beam_width=2, temperature=0.0, **field))


BAD_FIELDS: list[dict[str, Any]] = [
    {"n": 0}, {"n": 1.0}, {"n": True}, {"best_of": 0}, {"n": 3, "best_of": 2}, {"temperature": -0.1},
    {"temperature": float("nan")}, {"temperature": "hot"}, {"temperature": None}, {"top_p": 0.0}, {"top_p": 1.1},
    {"top_k": -2}, {"top_k": 1.5}, {"min_p": -0.1}, {"min_p": 1.1}, {"presence_penalty": 2.1},
    {"frequency_penalty": -2.1}, {"repetition_penalty": 0.0}, {"seed": 1.5}, {"seed": "x"}, {"stop": ""},
    {"stop": ["a", ""]}, {"stop": [5]}, {"stop": 5}, {"stop_token_ids": [-1]}, {"stop_token_ids": ["a"]},
    {"stop_token_ids": 5}, {"max_tokens": 0}, {"max_tokens": 2.0}, {"min_tokens": -1},
    {"min_tokens": 5, "max_tokens": 4}, {"logprobs": -1}, {"logprobs": 51}, {"prompt_logprobs": True},
    {"logit_bias": {-1: 1.0}}, {"logit_bias": {1: float("inf")}}, {"logit_bias": {"a": 1.0}}, {"logit_bias": [1]},
    {"beam_width": 0}, {"beam_width": 2, "n": 3}, {"beam_width": 2, "best_of": 2},
    {"beam_width": 2, "temperature": 0.7}, {"length_penalty": "x"}, {"ignore_eos": "yes"}, {"early_stopping": 3},
]  # fmt: skip


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=str)
def test_every_field_of_sampling_params_is_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**fields)
    assert caught.value.param in fields


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(TypeError, match="best_off"):
        SamplingParams(best_off=2)  # type: ignore[call-arg]


# -- settings ---------------------------------------------------------------------------------------------------

BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"max_num_seq": 4}, "did you mean 'max_num_seqs'"),
    ({"block_size": 12}, "power of two"),
    ({"dtype": "float64"}, "dtype must be"),
    ({"kv_cache_dtype": "int8"}, "does not store it yet"),
    ({"kv_cache_dtype": "bfloat16"}, "differs from the model's dtype"),
    ({"quantization": "gptq"}, "does not read it yet"),
    ({"quantization": "int8", "kernels": "reference"}, "needs compiled kernels"),
    ({"quantization": "int4", "dtype": "float16"}, "needs compiled kernels"),
    ({"kernels": "sse2"}, "kernels must be"),
    ({"kernels": "portable", "dtype": "float16"}, "take float32 and bfloat16, not float16"),
    ({"max_model_len": 257}, "exceeds the 256 positions"),
    ({"max_model_len": 0}, "max_model_len"),
    ({"max_num_batched_tokens": 4, "max_num_seqs": 8}, "below max_num_seqs"),
    ({"memory_limit": "2 florins"}, "memory_limit|florins"),
    ({"num_kv_blocks": 10}, "needs 33 KV blocks"),
    (
        {"num_kv_blocks": None, "max_num_batched_tokens": 2048, "memory_limit": "1MiB"},
        "room for 0: lower max_model_len, or raise memory_limit from 1.00 MiB",
    ),
    ({"device": "cuda:99"}, "cuda"),
    ({"num_threads": 0}, "num_threads"),
    ({"seed": -1}, "seed"),
]


@pytest.mark.parametrize(
    ("settings", "message"), BAD_SETTINGS, ids=[str(settings) for settings, _ in BAD_SETTINGS]
)
def test_a_bad_setting_is_refused_before_anything_is_loaded(
    tiny: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        engine(tiny, **settings)


@pytest.mark.parametrize("model", ["/no/such/folder", "no-such-model", 5])
def test_a_model_that_is_not_there_is_a_load_error(model: Any) -> None:
    with pytest.raises(LoadError, match=str(model)):
        engine(model)


def test_the_public_names_are_the_ones_scripts_use(tiny: Path) -> None:
    made = octavo.LLM(
        model=str(tiny), dtype="auto", quantization=None, kv_cache_dtype="auto", max_model_len=None, max_num_seqs=4,
        max_num_batched_tokens=None, enable_prefix_caching=True, block_size=None, memory_limit="1GiB", num_threads=1,
        seed=0,
    )  # fmt: skip
    with made as llm:
        outs = llm.generate(["a", "b"], octavo.SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True))
        assert all(out.outputs[0].token_ids and out.outputs[0].finish_reason == "length" for out in outs)


def test_a_whole_configuration_makes_the_same_engine(tiny: Path) -> None:
    config = EngineConfig.of(model=str(tiny), num_kv_blocks=64, block_size=8, num_threads=1, max_num_seqs=2)
    with LLM.from_config(config) as llm:
        found = one(llm.generate([3, 4], GREEDY)).outputs[0].token_ids
    with engine(tiny) as llm:
        assert one(llm.generate([3, 4], GREEDY)).outputs[0].token_ids == found


def test_nothing_is_remembered_of_requests_that_have_ended(llm: LLM) -> None:
    """Neither the engine nor the runner grows with the number of requests served."""
    for i in range(4):
        params = [
            SamplingParams(n=3, seed=i, max_tokens=3, ignore_eos=True),
            SamplingParams(beam_width=3, temperature=0.0, max_tokens=3),
            SamplingParams(stop_token_ids=tuple(range(200)), seed=i),
        ]
        llm.generate([[i, 2, 3]] * 3, params)
    llm.generate([[1]], GREEDY)
    made = llm.engine
    teller = made._teller
    assert not teller.tracked
    assert not teller.owner
    assert not teller.started
    assert len(made._executor._held) == 1  # type: ignore[attr-defined]


def test_seed_zero_is_a_seed(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=0, max_tokens=12, ignore_eos=True)
    first, second = (one(llm.generate([9, 8, 7], params)) for _ in range(2))
    assert first.metrics.seed == 0
    assert first.outputs[0].token_ids == second.outputs[0].token_ids


# -- recordings -------------------------------------------------------------------------------------------------


def test_what_it_did_can_be_saved_and_explained(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.recording"
    with engine(tiny, max_num_seqs=5) as made:
        prompts = [[number, *range(30 + number)] for number in range(12)]
        made.generate(prompts, GREEDY)
        num_bytes = made.save_recording(path)
        with pytest.raises(ConfigError, match="cannot be written: No such file"):
            made.save_recording(tmp_path / "nowhere" / "mine.recording")
    assert num_bytes == path.stat().st_size
    assert path.stat().st_mode & 0o077 == 0
    read = recording.read(path)
    assert (read.saved.model, read.saved.settings["max_num_seqs"]) == (tiny.name, "5")
    (one_engine,) = read.engines
    sent = [entry for entry in one_engine.entries if isinstance(entry, Submitted)]
    assert [entry.request_id for entry in sent] == [str(number) for number in range(12)]
    assert main(["explain", str(path), "--request", "7", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert sum(total["seconds"] for total in told["whole"]["totals"]) == pytest.approx(
        told["whole"]["seconds"]
    )
