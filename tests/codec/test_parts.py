"""Text to content, reasoning and calls; the same however it is cut into pieces."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.codec.parts import (
    HERMES,
    LLAMA,
    MISTRAL,
    CallArguments,
    CallStart,
    Content,
    Markers,
    Part,
    Reasoning,
    Splitter,
)

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "}\\"{"}}\n</tool_call>'
ARGUMENTS = '{"a": 1, "b": "}\\"{"}'


def told(parts: list[Part]) -> tuple[str, str, list[list[str]]]:
    """Content, reasoning, and [name, arguments] of each call."""
    content = "".join(part.text for part in parts if isinstance(part, Content))
    reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
    calls: list[list[str]] = []
    for part in parts:
        if isinstance(part, CallStart):
            assert part.number == len(calls)
            calls.append([part.name, ""])
        elif isinstance(part, CallArguments):
            calls[part.number][1] += part.text
    return content, reasoning, calls


def split(text: str, cuts: list[int], markers: Markers | None, **thinking: bool) -> list[Part]:
    splitter = Splitter(markers, **thinking)
    parts: list[Part] = []
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(places):
        parts += splitter.push(text[start:end])
    return parts + splitter.close()


CASES = {
    "plain": (HERMES, {}, "just  text\n", ("just  text\n", "", [])),
    "a call": (HERMES, {}, CALL, ("", "", [["add", ARGUMENTS]])),
    "content, then a call": (HERMES, {}, f"Let me see.\n{CALL}", ("Let me see.", "", [["add", ARGUMENTS]])),
    "two calls": (HERMES, {}, f"{CALL}\n{CALL}\n", ("", "", [["add", ARGUMENTS]] * 2)),
    "a call, then content": (HERMES, {}, f"{CALL}\nDone.", ("Done.", "", [["add", ARGUMENTS]])),
    "arguments first": (
        HERMES, {}, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', ("", "", [["f", '{"a": 1}']]),
    ),
    "arguments as text": (
        HERMES, {}, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', ("", "", [["f", '{"a": 1}']]),
    ),
    "no arguments": (HERMES, {}, '<tool_call>{"name": "f"}</tool_call>', ("", "", [["f", "{}"]])),
    "more keys": (
        HERMES, {}, '<tool_call>{"name":"f","arguments":{},"id":["x"]}</tool_call>x', ("x", "", [["f", "{}"]]),
    ),
    "no closing mark": (HERMES, {}, '<tool_call>{"name": "f", "arguments": {}}', ("", "", [["f", "{}"]])),
    "cut short in its arguments": (
        HERMES, {}, '<tool_call>{"name": "f", "arguments": {"a": "b', ("", "", [["f", '{"a": "b']]),
    ),
    "cut short before it has a name": (HERMES, {}, 'x<tool_call>{"na', ('x<tool_call>{"na', "", [])),
    "an object that is no call": (
        HERMES, {}, '<tool_call>{"a": 1}</tool_call>', ('<tool_call>{"a": 1}</tool_call>', "", []),
    ),
    "no object": (HERMES, {}, "<tool_call>words</tool_call>", ("<tool_call>words</tool_call>", "", [])),
    "half a mark": (HERMES, {}, "a <tool_", ("a <tool_", "", [])),
    "a list": (
        MISTRAL, {}, '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
        ("", "", [["f", '{"a": 1}'], ["g", "{}"]]),
    ),
    "all of it": (LLAMA, {}, '{"name": "f", "parameters": {"a": [1]}}', ("", "", [["f", '{"a": [1]}']])),
    "behind a tag": (LLAMA, {}, '<|python_tag|>{"name": "f", "parameters": {}}', ("", "", [["f", "{}"]])),
    "several with semicolons": (
        LLAMA, {}, '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
        ("", "", [["f", "{}"], ["g", "{}"]]),
    ),
    "JSON that is an answer": (LLAMA, {}, '{"a": {"b": 1}}', ('{"a": {"b": 1}}', "", [])),
    "words, then braces": (LLAMA, {}, 'so {"name": "f"}', ('so {"name": "f"}', "", [])),
    "reasoning": (
        None, {"thinks": True}, "<think>\nWell.\n\nSo.\n</think>\n\nYes.", ("Yes.", "Well.\n\nSo.", []),
    ),
    "no reasoning": (None, {"thinks": True}, "<thin ice>", ("<thin ice>", "", [])),
    "nothing at all": (HERMES, {"thinks": True}, "", ("", "", [])),
    "opened by the prompt": (None, {"is_thinking": True}, "\nHm.</think>Yes.", ("Yes.", "Hm.", [])),
    "reasoning cut short": (None, {"is_thinking": True}, "Hm. </thi", ("", "Hm. </thi", [])),
    "a mark later on": (None, {"thinks": True}, "a <think> b", ("a <think> b", "", [])),
    "reasoning and a call": (
        HERMES, {"thinks": True}, f"<think>I add.</think>\n\n{CALL}", ("", "I add.", [["add", ARGUMENTS]]),
    ),
    "a call inside reasoning is none": (
        HERMES, {"is_thinking": True}, f"{CALL}</think>ok", ("ok", CALL, []),
    ),
    "no marks asked for": (None, {}, f"<think>{CALL}", (f"<think>{CALL}", "", [])),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_cut_tells_the_same(case):
    markers, thinking, text, wanted = CASES[case]
    assert told(split(text, [], markers, **thinking)) == wanted
    for cut in range(len(text)):
        assert told(split(text, [cut], markers, **thinking)) == wanted, f"cut at {cut}"
    assert told(split(text, list(range(len(text))), markers, **thinking)) == wanted, "one by one"


@given(st.data())
def test_any_text_in_any_pieces_tells_the_same_and_loses_nothing(data):
    pieces = [
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        '{"name": "f", "arguments": ',
        "{",
        "}",
        '"',
        "\n",
    ]
    pieces += [" ", "a", "[TOOL_CALLS]", "[", "]", "\\", '{"name": "g"}', ","]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=14)))
    markers = data.draw(st.sampled_from([None, HERMES, MISTRAL, LLAMA]))
    thinking = {"thinks": data.draw(st.booleans()), "is_thinking": data.draw(st.booleans())}
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    whole = told(split(text, [], markers, **thinking))
    assert told(split(text, cuts, markers, **thinking)) == whole
    content, reasoning, calls = whole
    if not calls:
        said = (reasoning + content).replace("<think>", "").replace("</think>", "")
        meant = text.replace("<think>", "").replace("</think>", "").replace("<|python_tag|>", "")
        assert "".join(said.split()) == "".join(meant.split()), "only marks and blanks are left out"


def test_arguments_come_as_they_are_written():
    splitter = Splitter(HERMES)
    parts = [part for char in CALL for part in splitter.push(char)]
    assert sum(isinstance(part, CallArguments) for part in parts) > 10
    assert json.loads(told(parts)[2][0][1]) == {"a": 1, "b": '}"{'}


def test_content_is_not_kept_waiting():
    splitter = Splitter(HERMES)
    assert splitter.push("Hello") == [Content("Hello")]
    assert splitter.push(" you <b") == [Content(" you <b")]
    assert splitter.push(" <tool") == []
    assert splitter.push("s> ") == [Content(" <tools>")]
