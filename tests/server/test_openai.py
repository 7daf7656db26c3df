"""The official client against the server: whole answers, streams, choices, logprobs, stops, errors."""

from __future__ import annotations

import openai
import pytest

from tests.server.fake_engine import logprob_of
from tests.server.process import Served

HELLO = [{"role": "user", "content": "say:hello wörld"}]


def ask(client: openai.OpenAI, content: str, **more: object):
    return client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": content}],
        **more,  # type: ignore[call-overload]
    )


def test_chat_in_one_piece(client):
    answer = ask(client, "say:hello wörld")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "hello wörld")
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "fake"
    assert answer.system_fingerprint.startswith("fp_")
    prompt_tokens = 1 + 1 + len("say:hello wörld".encode()) + 1 + 1
    assert answer.usage.prompt_tokens == prompt_tokens
    assert answer.usage.completion_tokens == len("hello wörld".encode())
    assert answer.usage.total_tokens == prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


def test_chat_as_a_stream(client):
    chunks = list(ask(client, "say:hello wörld €", stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "hello wörld €"
    assert [c.choices[0].finish_reason for c in chunks][-1] == "stop"
    assert all(c.choices[0].finish_reason is None for c in chunks[:-1])
    assert {c.id for c in chunks} == {chunks[0].id}
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert all(c.usage is None for c in chunks)


def test_usage_of_a_stream_comes_last_and_alone(client):
    chunks = list(ask(client, "say:abc", stream=True, stream_options={"include_usage": True}))
    *rest, last = chunks
    assert last.choices == []
    assert last.usage.completion_tokens == 3
    assert last.usage.prompt_tokens_details.cached_tokens == 3
    assert all(c.usage is None and c.choices for c in rest)


def test_continuous_usage_grows_to_the_final_one(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(ask(client, "say:!slow abcd", stream=True, stream_options=options))
    counts = [c.usage.completion_tokens for c in chunks]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == len("!slow abcd")
    assert chunks[-1].choices == []


def test_system_and_developer_messages_reach_the_template_as_system(client):
    for role in ("system", "developer"):
        answer = client.chat.completions.create(
            model="fake",
            messages=[{"role": role, "content": "be kind"}, {"role": "user", "content": "hi"}],
        )
        assert answer.choices[0].message.content == "BE KINDHI"


def test_text_parts_are_joined_by_line_breaks(client):
    parts = [{"type": "text", "text": "say:one"}, {"type": "text", "text": "two"}]
    answer = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == "one\ntwo"


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices(client, stream):
    texts = ["", "", ""]
    if stream:
        for chunk in ask(client, "say:abc", n=3, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        for choice in ask(client, "say:abc", n=3).choices:
            texts[choice.index] = choice.message.content
    assert texts == ["abc", "#1 abc", "#2 abc"]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_chat(client, stream):
    if stream:
        entries = [
            entry
            for chunk in ask(client, "say:aé", logprobs=True, top_logprobs=2, stream=True)
            for choice in chunk.choices
            if choice.logprobs
            for entry in choice.logprobs.content
        ]
    else:
        entries = ask(client, "say:aé", logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [bytes(entry.bytes) for entry in entries] == [b"a", b"\xc3", b"\xa9"]
    assert [entry.token for entry in entries] == ["a", "bytes:\\xc3", "bytes:\\xa9"]
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    assert all(entry.logprob < 0 for entry in entries)


def test_logprobs_without_top(client):
    entries = ask(client, "say:ab", logprobs=True).choices[0].logprobs.content
    assert [entry.token for entry in entries] == ["a", "b"]
    assert all(entry.top_logprobs == [] for entry in entries)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_texts_end_the_answer_and_are_left_out(client, stream):
    got = ask(client, "say:one two three", stop=["wo t", "zz"], stream=stream)
    if stream:
        chunks = list(got)
        text, reason = "".join(c.choices[0].delta.content or "" for c in chunks), chunks[-1].choices[0]
        assert reason.finish_reason == "stop"
    else:
        text = got.choices[0].message.content
        assert got.choices[0].finish_reason == "stop"
        assert got.choices[0].stop_reason == "wo t"
    assert text == "one t"


def test_length_limit_of_chat_by_either_name(client):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(client, "say:abcdef", **{name: 3})
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("abc", "length")


def test_completion_of_a_text(client):
    answer = client.completions.create(model="fake", prompt="say:hello", max_tokens=50)
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hello", "stop")
    assert answer.usage.completion_tokens == 5


def test_completions_default_to_16_tokens(client):
    answer = client.completions.create(model="fake", prompt="say:" + "x" * 40)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("x" * 16, "length")


def token_ids(server: Served, text: str) -> list[int]:
    body = {"prompt": text, "max_tokens": 1, "return_token_ids": True}
    return list(server.post("/v1/completions", body).json()["choices"][0]["prompt_token_ids"])


def test_the_four_forms_of_a_prompt(client, server):
    one, two = "say:first", "say:second"
    ids = [token_ids(server, one), token_ids(server, two)]
    assert len(ids[0]) == len(one)
    for prompt in (one, ids[0]):
        answer = client.completions.create(model="fake", prompt=prompt)
        assert [choice.text for choice in answer.choices] == ["first"]
    for prompt in ([one, two], ids):
        answer = client.completions.create(model="fake", prompt=prompt, n=2)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert [choice.text for choice in answer.choices] == ["first", "#1 first", "second", "#1 second"]
        assert answer.usage.prompt_tokens == len(one) + len(two), "a prompt counts once, whatever n is"


def test_completion_stream_of_several_prompts(client):
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for chunk in client.completions.create(
        model="fake", prompt=["say:ab", "say:cd"], n=2, stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            reasons |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    assert texts == {0: "ab", 1: "#1 ab", 2: "cd", 3: "#1 cd"}
    assert reasons == dict.fromkeys(range(4), "stop")
    assert chunk.choices == []
    assert chunk.usage.completion_tokens == 4 + 10


def test_logprobs_of_completions(client):
    answer = client.completions.create(model="fake", prompt="say:aé?", logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == ["a", "bytes:\\xc3", "bytes:\\xa9", "?"]
    assert logprobs.text_offset == [0, 1, 1, 2]
    assert len(logprobs.token_logprobs) == 4
    assert all(len(top) == 3 for top in logprobs.top_logprobs), "two likeliest and the chosen one"
    assert logprobs.top_logprobs[0]["a"] == logprobs.token_logprobs[0]


def test_echo_puts_the_prompt_in_front(client):
    answer = client.completions.create(model="fake", prompt="say:hey", echo=True)
    assert answer.choices[0].text == "say:heyhey"
    streamed = client.completions.create(model="fake", prompt="say:hey", echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "say:heyhey"


def test_scoring_a_text_without_generating(client):
    """echo, logprobs and max_tokens 0 together, as evaluation harnesses ask."""
    answer = client.completions.create(model="fake", prompt="abc", echo=True, logprobs=1, max_tokens=0)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("abc", "length")
    assert choice.logprobs.tokens == ["a", "b", "c"]
    assert choice.logprobs.token_logprobs[0] is None
    ids = [ord(char) for char in "abc"]
    assert choice.logprobs.top_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1] < -0.25 + 0.01
    assert logprob_of(ids[1], 1) < 0
    assert choice.logprobs.text_offset == [0, 1, 2]
    assert answer.usage.completion_tokens == 0


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("fake", "model", "octavo")
    assert model.max_model_len == 4096
    assert client.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("some/other")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"temperature": -1}, "invalid_value", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": 129}, "invalid_value", "n"),
        ({"n": "two"}, "invalid_value", "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "invalid_value", "stop"),
        ({"stop": ""}, "invalid_value", "stop"),
        ({"seed": 2**70}, "invalid_value", "seed"),
        ({"top_logprobs": 21, "logprobs": True}, "invalid_value", "top_logprobs"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "invalid_value", "max_completion_tokens"),
        ({"logit_bias": {"x": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"5": 101}}, "invalid_value", "logit_bias"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "owner", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "function", "content": "x"}]}, "unsupported_parameter", "messages[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "unsupported_parameter",
            "messages[0].content[0]",
        ),
        ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions"),
        ({"stream": True, "stream_options": {"include_use": True}}, "invalid_value", "stream_options"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"beam_width": 2, "stream": True}, "unsupported_parameter", "beam_width"),
        ({"chat_template_kwargs": {"messages": "x"}}, "unsupported_parameter", "chat_template_kwargs"),
    ],
)
def test_a_bad_field_is_named(client, fields, code, param):
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    error = caught.value
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": ["a", 1]}, "invalid_value", "prompt"),
        ({"prompt": [1, [2]]}, "invalid_value", "prompt"),
        ({"prompt": [-1]}, "invalid_value", "prompt"),
        ({"prompt": [2**70]}, "invalid_value", "prompt"),
        ({"prompt": {"text": "x"}}, "invalid_value", "prompt"),
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"logprobs": 6}, "invalid_value", "logprobs"),
        ({"best_of": 21}, "invalid_value", "best_of"),
        ({"n": 3, "best_of": 2}, "invalid_value", "best_of"),
        ({"best_of": 2, "stream": True}, "unsupported_parameter", "best_of"),
        ({"suffix": "end"}, "unsupported_parameter", "suffix"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": -1}, "invalid_value", "max_tokens"),
        ({"echo": True, "logprobs": 1, "stream": True}, "unsupported_parameter", "echo"),
        ({"stop_token_ids": [2**70]}, "invalid_value", "stop_token_ids"),
        ({"priority": 2**70}, "invalid_value", "priority"),
    ],
)
def test_a_bad_field_of_a_completion_is_named(client, fields, code, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", body={"model": "fake", "prompt": "hi", **fields}, cast_to=object)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_a_missing_prompt_is_named(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", body={"model": "fake"}, cast_to=object)
    assert caught.value.param == "prompt"
    assert "missing" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_of_the_engine_comes_before_the_first_byte(client, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "!refuse", stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert "9999" in caught.value.message


def test_busy_says_when_to_come_back(client):
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client, "!busy")
    assert caught.value.code == "overloaded"
    assert caught.value.response.headers["retry-after"] == "8"
    assert caught.value.response.headers["x-dropped-reason"] == "queue_full"


def test_an_error_after_the_first_byte_raises_in_the_client(client):
    stream = ask(client, "!error abcdef", stream=True)
    with pytest.raises(openai.APIError, match="NaN") as caught:
        list(stream)
    assert caught.value.code == "engine_error"


def test_an_error_in_a_whole_answer(client):
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, "!error abcdef")
    assert caught.value.code == "engine_error"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="fakes", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert "'fake'" in caught.value.message
