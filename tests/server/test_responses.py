"""The official client against /v1/responses: whole answers, events, tools, reasoning, what is kept, errors."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.codec.templates import QWEN3
from tests.server.process import serving
from tests.server.test_faults import children
from tests.server.test_tools import CALL, without_role

ADD = {
    "type": "function",
    "name": "add",
    "description": "Add two numbers.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    "strict": False,
}
NOW = {"type": "function", "name": "now", "parameters": None, "strict": None}


def ask(client: openai.OpenAI, asked: Any, **more: Any) -> Any:
    return client.responses.create(model="fake", input=asked, **more)


def streamed(client: openai.OpenAI, asked: Any, **more: Any) -> Any:
    """The response of the last event; numbers, ids and texts of the others are checked on the way."""
    last, texts, kinds = None, {}, []
    for number, event in enumerate(client.responses.create(model="fake", input=asked, stream=True, **more)):
        assert event.sequence_number == number
        kinds.append(event.type)
        if event.type.endswith(".delta"):
            texts[event.item_id] = texts.get(event.item_id, "") + event.delta
        elif event.type in ("response.output_text.done", "response.reasoning_text.done"):
            assert texts[event.item_id] == event.text
        elif event.type == "response.function_call_arguments.done":
            assert texts[event.item_id] == event.arguments
        elif event.type == "response.output_item.done":
            assert event.output_index == kinds.count("response.output_item.done") - 1
        last = event
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done")
    assert [item.id for item in last.response.output] == list(dict.fromkeys(texts))
    return last.response


BOTH = pytest.mark.parametrize("send", [ask, streamed])


@BOTH
def test_an_answer(client, send):
    got = send(client, "say:hello wörld €", instructions="Be brief.", metadata={"a": "b"}, user="u")
    assert got.id.startswith("resp_")
    assert (got.object, got.status, got.model, got.error) == ("response", "completed", "fake", None)
    assert got.output_text == "hello wörld €"
    (item,) = got.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert item.content[0].annotations == []
    assert got.usage.output_tokens == len("hello wörld €".encode())
    assert got.usage.input_tokens_details.cached_tokens == 3
    assert got.usage.total_tokens == got.usage.input_tokens + got.usage.output_tokens
    assert (got.instructions, got.metadata, got.user) == ("Be brief.", {"a": "b"}, "u")
    assert got.parallel_tool_calls is True


@BOTH
def test_an_answer_cut_short_is_incomplete(client, send):
    got = send(client, "say:abcdef", max_output_tokens=3)
    assert (got.status, got.incomplete_details.reason, got.output_text) == (
        "incomplete",
        "max_output_tokens",
        "abc",
    )
    assert got.output[0].status == "incomplete"


@BOTH
def test_items_in_and_calls_out(client, send):
    asked = [
        {"role": "developer", "content": "Be brief."},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": f"say:I add. {CALL}"}],
        },
    ]
    got = send(client, asked, tools=[ADD, NOW])
    text, call = got.output
    assert text.content[0].text == "I add."
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "add", {"a": 2, "b": 3})
    assert call.call_id.startswith("call_")
    assert call.id.startswith("fc_")
    assert got.tools[0].name == "add"


@BOTH
@pytest.mark.parametrize(
    ("more", "num_calls"),
    [
        ({}, 2),
        ({"parallel_tool_calls": False}, 1),
        ({"tool_choice": "none"}, 0),
        ({"tool_choice": "required"}, 2),
        ({"tool_choice": {"type": "function", "name": "add"}}, 1),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "add"}],
                }
            },
            2,
        ),
    ],
)
def test_which_calls_may_come(client, send, more, num_calls):
    got = send(client, f"say:{CALL}\n{CALL}", tools=[ADD], **more)
    assert sum(item.type == "function_call" for item in got.output) == num_calls


@BOTH
def test_numbers_of_the_tokens(client, send):
    got = send(client, "say:abc", include=["message.output_text.logprobs"], top_logprobs=2)
    entries = got.output[0].content[0].logprobs
    assert [entry.token for entry in entries] == ["a", "b", "c"]
    assert [len(entry.top_logprobs) for entry in entries] == [2, 2, 2]


@BOTH
def test_an_answer_goes_on_from_one_that_was_kept(client, server, send):
    first = send(client, "say:one", instructions="Not for later.")
    second = send(client, "say:two", previous_response_id=first.id)
    third = send(client, "say:three", previous_response_id=second.id)
    assert third.previous_response_id == second.id
    messages = [
        {"role": "user", "content": "say:one"}, {"role": "assistant", "content": "one"},
        {"role": "user", "content": "say:two"}, {"role": "assistant", "content": "two"},
        {"role": "user", "content": "say:three"},
    ]  # fmt: skip
    assert third.usage.input_tokens == server.post("/tokenize", {"messages": messages}).json()["count"]
    counted = client.responses.input_tokens.count(
        model="fake", input="say:three", previous_response_id=second.id
    )
    assert counted.input_tokens == third.usage.input_tokens


def test_results_of_tools_go_back_with_what_was_kept(client):
    first = ask(client, f"say:I add. {CALL}", tools=[ADD])
    call = first.output[1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "5"}
    again = ask(
        client, [result, {"role": "user", "content": "say:so"}], previous_response_id=first.id, tools=[ADD]
    )
    itself = ask(
        client,
        [
            {"role": "user", "content": f"say:I add. {CALL}"},
            *[item.to_dict() for item in first.output],
            result,
            {"role": "user", "content": "say:so"},
        ],
        tools=[ADD],
    )
    assert again.output_text == itself.output_text == "so"
    assert again.usage.input_tokens == itself.usage.input_tokens


def test_what_is_kept_can_be_read_listed_and_deleted(client):
    asked = [{"role": "user", "content": f"say:{i}"} for i in range(3)]
    made = ask(client, asked)
    assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
    listed = client.responses.input_items.list(made.id, order="asc", limit=2)
    assert [item.content for item in listed.data] == ["say:0", "say:1"]
    assert listed.has_more
    assert [item.content for item in listed] == ["say:0", "say:1", "say:2"], "the client turns pages"
    client.responses.delete(made.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "x", previous_response_id=made.id)
    assert caught.value.param == "previous_response_id"


def test_what_is_not_to_be_kept_is_not(client, folder):
    assert ask(client, "say:x", store=False).store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(ask(client, "say:x", store=False).id)
    with serving([str(folder), "--no-store-responses"]) as served:
        own = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0)
        assert ask(own, "say:x").store is False
        assert own.responses.retrieve(ask(own, "say:x", store=True).id).output_text == "x"


def test_nobody_elses_is_there(folder):
    with serving([str(folder), "--api-key", "first-key,second-key"]) as served:
        one, other = (
            openai.OpenAI(base_url=served.url + "/v1", api_key=key, max_retries=0)
            for key in ("first-key", "second-key")
        )
        made = ask(one, "say:mine")
        assert one.responses.retrieve(made.id).output_text == "mine"
        for call in (
            lambda: other.responses.retrieve(made.id),
            lambda: other.responses.delete(made.id),
            lambda: other.responses.cancel(made.id),
            lambda: other.responses.input_items.list(made.id),
            lambda: ask(other, "x", previous_response_id=made.id),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        assert one.responses.retrieve(made.id).output_text == "mine"


def test_what_was_kept_outlives_the_server(folder, tmp_path):
    with serving([str(folder), "--data-dir", str(tmp_path)]) as served:
        client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0)
        made = ask(client, "say:still here")
        served.process.kill()
        served.process.wait()
    with serving([str(folder), "--data-dir", str(tmp_path)]) as served:
        client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0)
        assert client.responses.retrieve(made.id).output_text == "still here"


def test_what_has_no_effect_is_named(client):
    raw = client.responses.with_raw_response.create(
        model="fake", input="say:x", tools=[{"type": "web_search"}, ADD], text={"verbosity": "low"},
        reasoning={"summary": "auto"},
    )  # fmt: skip
    warning = raw.headers["x-octavo-warning"]
    assert all(name in warning for name in ("tools.web_search", "text.verbosity", "reasoning.summary"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        (
            {"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{"}]},
            "input[0].arguments",
        ),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [ADD, ADD]}, "tools[1].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "sub"}, "tools": [ADD]}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"model": "other"}, "model"),
        ({"input": "!refuse"}, "prompt"),
    ],
)
def test_what_is_wrong_is_named(client, fields, param):
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/responses", body={"model": "fake", "input": "say:x", **fields}, cast_to=object)
    assert caught.value.param == param, caught.value
    assert caught.value.status_code in (400, 404)


@pytest.mark.parametrize("query", ["stream=true", "stream=1"])
def test_old_events_are_refused_by_name(server, client, query):
    made = ask(client, "say:x")
    answer = server.get(f"/v1/responses/{made.id}?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")
    assert server.post(f"/v1/responses/{made.id}/cancel", {}).status_code == 400


def test_a_stream_that_fails_says_so_twice(client):
    kinds = []

    def read() -> None:
        for event in client.responses.create(model="fake", input="!error say:abcdef", stream=True):
            kinds.append(event.type)

    with pytest.raises(openai.APIError, match="NaN"):
        read()
    assert kinds[-1] == "response.failed"


def test_a_stream_outlives_its_engine(folder):
    with serving([str(folder)]) as served:
        client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=30)
        text = ""
        stream = client.responses.create(model="fake", input="!slow say:over and out", stream=True)
        for number, event in enumerate(stream):
            assert event.sequence_number == number
            if number == 7:
                for pid in children(served.process.pid):
                    os.kill(pid, signal.SIGKILL)
            text += event.delta if event.type == "response.output_text.delta" else ""
        assert event.type == "response.completed"
        assert text == event.response.output_text == "over and out"


@pytest.fixture(scope="module")
def thinker(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    made = tmp_path_factory.mktemp("thinker")
    (made / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config = {"bos_token": "<bos>", "eos_token": "<end>", "chat_template": QWEN3}
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    with (
        serving([str(made)]) as served,
        openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=20) as client,
    ):
        yield client


@BOTH
def test_reasoning_is_an_item_of_its_own(thinker, send):
    got = send(thinker, f"say:<think>\nHm.\n</think>\n\nI add.\n{CALL}", tools=[ADD])
    assert [item.type for item in got.output][:3] == ["reasoning", "message", "function_call"]
    assert got.output[0].content[0].text == "Hm."
    assert without_role(got.output[1].content[0].text) == "I add."
    assert got.usage.output_tokens_details.reasoning_tokens == len("<think>\nHm.\n</think>")


def test_effort_reaches_the_template(thinker):
    long = ask(thinker, "say:x", reasoning={"effort": "none"}).usage.input_tokens
    assert long > ask(thinker, "say:x", reasoning={"effort": "high"}).usage.input_tokens


def test_lines_of_a_batch_may_ask_for_responses(client, server):
    line = {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/responses",
        "body": {"model": "fake", "input": "say:x"},
    }
    file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    server.until(lambda _: client.batches.retrieve(batch.id).status == "completed", 30)
    batch = client.batches.retrieve(batch.id)
    (result,) = client.files.content(batch.output_file_id).text.splitlines()
    assert json.loads(result)["response"]["body"]["output"][0]["content"][0]["text"] == "x"
    assert batch.usage.output_tokens == 1
