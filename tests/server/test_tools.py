"""Tool calls and reasoning in chat, as the official client sees them.

The engine of the tests says what it is told to, so calls are written into the question; that forced calls are right
is shown with the real engine, in test_end_to_end.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.codec.templates import QWEN3
from tests.server.process import serving

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'


def ask(client: openai.OpenAI, content: str, **more: Any) -> Any:
    messages = more.pop("messages", [{"role": "user", "content": content}])
    return client.chat.completions.create(model="fake", messages=messages, **{"tools": [ADD, NOW], **more})


def streamed(
    client: openai.OpenAI, content: str, **more: Any
) -> tuple[str, str, dict[int, list[Any]], str, Any]:
    """Content, reasoning, calls as [id, name, arguments], finish reason, usage."""
    text = reasoning = reason = ""
    calls: dict[int, list[Any]] = {}
    usage = None
    for chunk in ask(client, content, stream=True, stream_options={"include_usage": True}, **more):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            for call in choice.delta.tool_calls or []:
                if call.index not in calls:
                    assert call.type == "function"
                    calls[call.index] = [call.id, call.function.name, ""]
                else:
                    assert call.id is None
                    assert call.function.name is None
                calls[call.index][2] += call.function.arguments or ""
            reason = choice.finish_reason or reason
    return text, reasoning, calls, reason, usage


def test_a_call_in_one_piece(client):
    (choice,) = ask(client, f"say:{CALL}").choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "add")
    assert json.loads(call.function.arguments) == {"a": 2, "b": 3}
    assert call.id.startswith("call_")
    assert len(call.id) >= 5 + 32


def test_a_call_as_a_stream(client):
    text, _, calls, reason, usage = streamed(client, f"say:Let me add. {CALL}")
    assert (text, reason) == ("Let me add.", "tool_calls")
    ((call_id, name, arguments),) = calls.values()
    assert (call_id[:5], name, json.loads(arguments)) == ("call_", "add", {"a": 2, "b": 3})
    assert usage.completion_tokens == len(f"Let me add. {CALL}")


def test_several_calls_and_only_one(client):
    two = f"say:{CALL}\n{CALL}"
    assert len(ask(client, two).choices[0].message.tool_calls) == 2
    assert len(ask(client, two, parallel_tool_calls=False).choices[0].message.tool_calls) == 1
    assert list(streamed(client, two)[2]) == [0, 1]
    assert list(streamed(client, two, parallel_tool_calls=False)[2]) == [0]


def test_several_choices_with_numbers(client):
    answer = ask(client, f"say:{CALL}", n=2, logprobs=True)
    assert [choice.finish_reason for choice in answer.choices] == ["tool_calls"] * 2
    assert answer.choices[1].message.content == "#1"
    assert len(answer.choices[0].logprobs.content) == len(CALL)
    entries = 0
    for chunk in ask(client, f"say:{CALL}", logprobs=True, stream=True):
        entries += len(chunk.choices[0].logprobs.content) if chunk.choices[0].logprobs else 0
    assert entries == len(CALL), "each token's numbers come once"


def test_no_call_is_an_answer(client):
    (choice,) = ask(client, "say:Just words.").choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (
        "Just words.",
        None,
        "stop",
    )


@pytest.mark.parametrize("more", [{"tool_choice": "none"}, {"tools": None}, {"tools": []}])
def test_without_tools_nothing_is_a_call(client, more):
    (choice,) = ask(client, f"say:{CALL}", **more).choices
    assert (choice.message.content, choice.finish_reason) == (CALL, "stop")
    assert choice.message.tool_calls is None


def test_a_call_cut_short_says_so(client):
    (choice,) = ask(client, f"say:{CALL}", max_tokens=45).choices
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments == CALL[42:45] or choice.message.tool_calls


def test_the_model_is_told_of_tools_calls_and_results(client, server):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+3?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'},
                },
                {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "5"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "noon"}]},
    ]
    tokens = server.post("/tokenize", {"messages": messages, "tools": [ADD, NOW]}).json()["tokens"]
    prompt = server.post("/detokenize", {"tokens": tokens}).json()["prompt"]
    assert prompt.startswith("<bos><system>Be brief.\n\nYou can call functions.")
    assert '{"name": "add", "description": "Add two numbers.", "parameters":' in prompt
    assert f"<assistant>{CALL}\n" in prompt
    assert '{"name": "now", "arguments": {}}' in prompt
    assert (
        "<user><tool_response>\n5\n</tool_response>\n<tool_response>\nnoon\n</tool_response><end><assistant>"
        in prompt
    )
    assert ask(client, "", messages=[*messages, {"role": "user", "content": "say:done"}]).choices


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": "add"}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [NOW, NOW]}, "tools[1].function.name"),
        ({"tools": [NOW] * 129}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
         "tools[0].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
         "tools[0].function.parameters"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tool_choice": "required", "tools": None}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "add"}}, "tools": []}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tools": [{**NOW, "function": {"name": "f", "strict": True, "parameters": {
            "type": "object", "properties": {"a": {"not": {}}}}}}]}, "tools"),
        ({"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:1/x"}}}}}]}, "tools"),
        ({"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": 7}}}]}, "tools"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}]},
         "messages[0].tool_calls"),
        ({"messages": [{"role": "tool", "content": "5"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[1"}}]}]},
         "messages[0].tool_calls[0].function.arguments"),
        ({"structured_outputs": {"regex": "a"}}, "tools"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_tools_is_named_and_the_engine_goes_on(client, server, fields, param):
    before = server.health()["engine"]["epoch"]
    body = {"model": "fake", "messages": [{"role": "user", "content": "say:x"}], "tools": [ADD], **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.param == param, caught.value
    assert ask(client, f"say:{CALL}").choices[0].finish_reason == "tool_calls"
    assert server.health()["engine"]["epoch"] == before


@pytest.fixture(scope="module")
def thinker(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A server whose model may reason, with Qwen3's template."""
    made = tmp_path_factory.mktemp("thinker")
    (made / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config = {"bos_token": "<bos>", "eos_token": "<end>", "chat_template": QWEN3}
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    with (
        serving([str(made)]) as served,
        openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=20) as client,
    ):
        yield client


THOUGHT = "say:<think>\nTwo and three.\n</think>\n\n"


def without_role(text: str) -> str:
    """The template ends in the assistant's role, which this engine repeats."""
    return text.partition("<|im_end|>")[0]


def test_reasoning_comes_apart_from_content(thinker):
    answer = ask(thinker, f"{THOUGHT}Five.", tools=None)
    message = answer.choices[0].message
    assert message.reasoning_content == "Two and three."
    assert without_role(message.content) == "Five."
    details = answer.usage.completion_tokens_details
    assert details.reasoning_tokens == len("<think>\nTwo and three.\n</think>")
    text, reasoning, _, reason, usage = streamed(thinker, f"{THOUGHT}Five.", tools=None)
    assert (reasoning, without_role(text), reason) == ("Two and three.", "Five.", "stop")
    assert usage.completion_tokens_details.reasoning_tokens == details.reasoning_tokens


def test_reasoning_before_a_call(thinker):
    _, reasoning, calls, reason, _ = streamed(thinker, f"{THOUGHT}{CALL}")
    assert reasoning == "Two and three."
    assert [call[1] for call in calls.values()] == ["add"]
    assert reason == "tool_calls"


@pytest.mark.parametrize(
    ("effort", "thinks"), [("none", False), ("minimal", False), ("high", True), (None, True)]
)
def test_reasoning_effort_reaches_the_template(thinker, effort, thinks):
    more = {} if effort is None else {"reasoning_effort": effort}
    long = ask(thinker, "say:x", tools=None, **more).usage.prompt_tokens
    bare = ask(thinker, "say:x", tools=None).usage.prompt_tokens
    assert (long == bare) == thinks, "Qwen3 is told not to think by an empty thought"
