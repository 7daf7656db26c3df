"""The official Anthropic client against /v1/messages: whole answers, streams, tools, reasoning, errors."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from tests.codec.templates import QWEN3
from tests.server.process import Served, serving
from tests.server.test_faults import children
from tests.server.test_tools import without_role

ADD = {
    "name": "add",
    "description": "Add two numbers.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
}
NOW = {"name": "now", "input_schema": {"type": "object"}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'


@pytest.fixture
def claude(server: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=20) as made:
        yield made


def fields_of(content: str, more: dict[str, Any]) -> dict[str, Any]:
    """What newer clients no longer name goes into the body beside the rest."""
    body = {name: more.pop(name) for name in ("temperature", "top_p", "top_k") if name in more}
    fields = {"model": "fake", "max_tokens": 500, "messages": [{"role": "user", "content": content}], **more}
    return {**fields, "extra_body": body}


def ask(claude: anthropic.Anthropic, content: str, **more: Any) -> anthropic.types.Message:
    return claude.messages.create(**fields_of(content, dict(more)))


def streamed(claude: anthropic.Anthropic, content: str, **more: Any) -> anthropic.types.Message:
    """The client's own sum of the events, whose order is checked on the way."""
    names, is_open = [], None
    with claude.messages.stream(**fields_of(content, dict(more))) as stream:
        for event in stream:
            names.append(event.type)
            if event.type == "content_block_start":
                assert is_open is None
                is_open = event.index
            elif event.type == "content_block_delta":
                assert is_open == event.index
            elif event.type == "content_block_stop":
                assert is_open == event.index
                is_open = None
        final = stream.get_final_message()
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    return final


@pytest.mark.parametrize("send", [ask, streamed])
def test_an_answer(claude, send):
    message = send(claude, "say:hello wörld €", system="Be brief.")
    assert (message.type, message.role, message.model) == ("message", "assistant", "fake")
    assert message.id.startswith("msg_")
    assert [(block.type, block.text) for block in message.content] == [("text", "hello wörld €")]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens == len("hello wörld €".encode())
    assert message.usage.cache_read_input_tokens == 3
    assert message.usage.input_tokens > len("Be brief.say:")


@pytest.mark.parametrize("send", [ask, streamed])
@pytest.mark.parametrize(
    ("fields", "text", "reason", "stop"),
    [
        ({"max_tokens": 5}, "one t", "max_tokens", None),
        ({"stop_sequences": ["two", "x"]}, "one ", "stop_sequence", "two"),
        ({"stop_sequences": ["zz"]}, "one two three", "end_turn", None),
        ({"temperature": 0.0, "top_p": 0.9, "top_k": 5, "service_tier": "auto"}, "one two three", "end_turn", None),
        ({"metadata": {"user_id": "u"}, "system": [
            {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}, "one two three", "end_turn", None),
    ],
)  # fmt: skip
def test_how_an_answer_ends(claude, send, fields, text, reason, stop):
    message = send(claude, "say:one two three", **fields)
    assert (message.content[0].text, message.stop_reason, message.stop_sequence) == (text, reason, stop)


@pytest.mark.parametrize("send", [ask, streamed])
def test_a_call(claude, send):
    message = send(claude, f"say:I add.\n{CALL}", tools=[ADD, NOW])
    text, call = message.content
    assert (text.type, text.text) == ("text", "I add.")
    assert (call.type, call.name, call.input) == ("tool_use", "add", {"a": 2, "b": 3})
    assert call.id.startswith("toolu_")
    assert message.stop_reason == "tool_use"


@pytest.mark.parametrize("send", [ask, streamed])
@pytest.mark.parametrize(
    ("choice", "num_calls"),
    [
        (None, 2),
        ({"type": "auto"}, 2),
        ({"type": "auto", "disable_parallel_tool_use": True}, 1),
        ({"type": "any"}, 2),
        ({"type": "tool", "name": "add"}, 1),
        ({"type": "none"}, 0),
    ],
)
def test_which_calls_may_come(claude, send, choice, num_calls):
    more = {} if choice is None else {"tool_choice": choice}
    message = send(claude, f"say:{CALL}\n{CALL}", tools=[ADD, NOW], **more)
    assert sum(block.type == "tool_use" for block in message.content) == num_calls
    assert message.stop_reason == ("tool_use" if num_calls else "end_turn")


def test_a_call_cut_short_is_no_call_in_one_piece(claude):
    message = ask(claude, f"say:{CALL}", tools=[ADD], max_tokens=50)
    assert message.stop_reason == "max_tokens"
    assert [block.type for block in message.content] == ["text"]


def test_results_and_earlier_turns_reach_the_model(claude, server):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "2+3?"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Add.", "signature": ""},
            {"type": "text", "text": "I add."},
            {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 2, "b": 3}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "5"}]},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no", "is_error": True},
            {"type": "text", "text": "say:and?"},
        ]},
    ]  # fmt: skip
    answer = ask(claude, "", messages=messages, tools=[ADD])
    assert answer.content[0].text == "and?"
    chat = [
        {"role": "user", "content": "2+3?"},
        {"role": "assistant", "content": "I add.", "reasoning_content": "Add.", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "5"},
        {"role": "tool", "tool_call_id": "2", "content": "Error: no"},
        {"role": "user", "content": "say:and?"},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {
        "name": "add", "description": ADD["description"], "parameters": ADD["input_schema"]}}]  # fmt: skip
    wanted = server.post("/tokenize", {"messages": chat, "tools": tools}).json()["count"]
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens == wanted
    assert claude.messages.count_tokens(model="fake", messages=messages, tools=[ADD]).input_tokens == wanted


def test_a_field_that_changes_nothing_is_named(claude):
    raw = claude.messages.with_raw_response.create(
        model="fake", max_tokens=2000, messages=[{"role": "user", "content": "say:x"}],
        thinking={"type": "enabled", "budget_tokens": 1024},
    )  # fmt: skip
    assert "thinking.budget_tokens" in raw.headers["x-octavo-warning"]


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"messages": []}, anthropic.BadRequestError, "messages is empty"),
        ({"messages": [{"role": "system", "content": "x"}]}, anthropic.BadRequestError, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, anthropic.BadRequestError, "content is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
         anthropic.BadRequestError, "'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
         anthropic.BadRequestError, "from the user"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
         anthropic.BadRequestError, "end with a user's"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]},
         anthropic.BadRequestError, "tool_use_id is missing"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
        ({"max_tokens": 2**40}, anthropic.BadRequestError, "max_tokens"),
        ({"temperature": 200}, anthropic.BadRequestError, "temperature"),
        ({"stop_sequences": ["x"] * 17}, anthropic.BadRequestError, "stop_sequences"),
        ({"stop_sequences": [""]}, anthropic.BadRequestError, "stop"),
        ({"model": "other"}, anthropic.NotFoundError, "'other' does not exist"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, anthropic.BadRequestError, r"tools\[0\]\.name"),
        ({"tools": [{"name": "a", "input_schema": {"type": "array"}}]}, anthropic.BadRequestError, "input_schema"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, anthropic.BadRequestError, "tools"),
        ({"tools": [NOW], "tool_choice": {"type": "tool", "name": "x"}}, anthropic.BadRequestError, "names 'x'"),
        ({"tool_choice": {"type": "any"}}, anthropic.BadRequestError, "send tools"),
        ({"messages": [{"role": "user", "content": "!refuse"}]}, anthropic.BadRequestError, "9999"),
    ],
)  # fmt: skip
def test_errors_have_the_shape_this_client_reads(claude, fields, kind, words):
    with pytest.raises(kind, match=words) as caught:
        ask(claude, "say:x", **fields)
    error = caught.value
    assert error.body["type"] == "error"
    assert error.body["error"]["type"] in ("invalid_request_error", "not_found_error")
    assert error.body["request_id"] == error.response.headers["x-request-id"]


def test_overload_and_failures(claude):
    with pytest.raises(anthropic.APIStatusError) as caught:
        ask(claude, "!busy")
    assert caught.value.status_code == 529
    assert caught.value.body["error"]["type"] == "overloaded_error"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    with pytest.raises(anthropic.InternalServerError) as failed:
        ask(claude, "!error say:abcdef")
    assert failed.value.body["error"]["type"] == "api_error"
    with pytest.raises(anthropic.APIStatusError, match="NaN"):
        streamed(claude, "!error say:abcdef")


def test_keys_routes_and_methods_speak_the_same_language(folder):
    with serving([str(folder), "--api-key", "a-key-of-ours"]) as served:
        for path, status, kind in [
            ("/v1/messages", 401, "authentication_error"),
            ("/v1/messages/count_tokens", 401, "authentication_error"),
        ]:
            answer = served.post(path, {})
            assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
        with anthropic.Anthropic(base_url=served.url, api_key="a-key-of-ours", max_retries=0) as known:
            assert ask(known, "say:in").content[0].text == "in"
        headers = {"x-api-key": "a-key-of-ours"}
        assert served.get("/v1/messages", headers=headers).json()["error"]["type"] == "invalid_request_error"
        assert served.get("/v1/messages/x", headers=headers).json()["error"]["type"] == "not_found_error"
        assert served.get("/v1/messagesx", headers=headers).json()["error"]["code"] == "not_found"


def test_silence_is_broken_by_pings(server):
    body = {"max_tokens": 5, "stream": True, "messages": [{"role": "user", "content": "!wait"}]}
    with server.client.stream("POST", "/v1/messages", json=body) as answer:
        names = [
            line
            for line, _ in zip(
                (x for x in answer.iter_lines() if x.startswith("event:")), range(3), strict=False
            )
        ]
    assert names == ["event: message_start", "event: ping", "event: ping"]


def test_a_stream_outlives_its_engine(folder):
    with (
        serving([str(folder)]) as served,
        anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0, timeout=30) as claude,
    ):
        wanted = streamed(claude, f"!slow say:{CALL}", tools=[ADD]).content[0].input
        fields = {"model": "fake", "max_tokens": 500, "tools": [ADD]}
        with claude.messages.stream(
            messages=[{"role": "user", "content": f"!slow say:{CALL}"}], **fields
        ) as stream:
            for number, _ in enumerate(stream):
                if number == 6:
                    for pid in children(served.process.pid):
                        os.kill(pid, signal.SIGKILL)
            assert stream.get_final_message().content[0].input == wanted == {"a": 2, "b": 3}


@pytest.fixture(scope="module")
def thinker(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[anthropic.Anthropic]:
    made = tmp_path_factory.mktemp("thinker")
    (made / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config = {"bos_token": "<bos>", "eos_token": "<end>", "chat_template": QWEN3}
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    with (
        serving([str(made)]) as served,
        anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0, timeout=20) as claude,
    ):
        yield claude


@pytest.mark.parametrize("send", [ask, streamed])
def test_thinking_is_a_block_of_its_own(thinker, send):
    message = send(thinker, f"say:<think>\nHm.\n</think>\n\nI add.\n{CALL}", tools=[ADD])
    kinds = [block.type for block in message.content]
    assert kinds[:3] == ["thinking", "text", "tool_use"]
    assert message.content[0].thinking == "Hm."
    assert without_role(message.content[1].text) == "I add."


def test_thinking_can_be_turned_off(thinker):
    off = ask(thinker, "say:x", thinking={"type": "disabled"}).usage.input_tokens
    assert off > ask(thinker, "say:x", thinking={"type": "adaptive"}).usage.input_tokens


def test_a_batch_may_not_name_this_route(server):
    line = json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/messages", "body": {}})
    files = {"file": ("in.jsonl", line.encode()), "purpose": (None, "batch")}
    file_id = httpx.post(server.url + "/v1/files", files=files).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/messages", "completion_window": "24h"}
    answer = server.post("/v1/batches", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "endpoint")
