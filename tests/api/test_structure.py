"""The fields that say what an answer looks like: each becomes the grammar it asks for, or a refusal that names it."""

from __future__ import annotations

import json

import pytest

from octavo.api.chat import ChatRequest
from octavo.api.completions import CompletionRequest
from octavo.api.parse import parse
from octavo.core.sequence import Grammar
from octavo.errors import RequestError

SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"const": 1.5}}, "title": "süß"}
TEXT = '{"type":"object","properties":{"z":{"type":"integer"},"a":{"const":1.5}},"title":"süß"}'


def asked(**fields: object) -> ChatRequest:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    return parse(json.dumps(body).encode(), ChatRequest)[0]


def open_ai(**parts: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, **parts}}


FORMS = [
    ({"response_format": {"type": "text"}}, None, None),
    ({"response_format": None, "guided_json": None, "structured_outputs": None}, None, None),
    ({"response_format": {"type": "json_object"}}, Grammar(kind="json_object"), "response_format"),
    *(
        ({"response_format": open_ai(**parts)}, Grammar(kind="json_schema", source=TEXT),
         "response_format.json_schema.schema")
        for parts in ({}, {"strict": True}, {"strict": False}, {"description": "what it is"})
    ),
    ({"structured_outputs": {"json": SCHEMA}}, Grammar(kind="json_schema", source=TEXT), "structured_outputs.json"),
    ({"structured_outputs": {"json": TEXT}}, Grammar(kind="json_schema", source=TEXT), "structured_outputs.json"),
    ({"structured_outputs": {"json": True}}, Grammar(kind="json_schema", source="true"), "structured_outputs.json"),
    ({"structured_outputs": {"json_object": True}}, Grammar(kind="json_object"), "structured_outputs.json_object"),
    ({"structured_outputs": {"regex": "a+"}}, Grammar(kind="regex", source="a+"), "structured_outputs.regex"),
    ({"structured_outputs": {"choice": ["a", "ü"]}}, Grammar(kind="choice", source='["a", "ü"]'),
     "structured_outputs.choice"),
    ({"structured_outputs": {"grammar": "root ::= \"a\""}}, Grammar(kind="lark", source='root ::= "a"'),
     "structured_outputs.grammar"),
    ({"guided_json": SCHEMA}, Grammar(kind="json_schema", source=TEXT), "guided_json"),
    ({"guided_json": TEXT}, Grammar(kind="json_schema", source=TEXT), "guided_json"),
    ({"guided_regex": "a+"}, Grammar(kind="regex", source="a+"), "guided_regex"),
    ({"guided_choice": ["a"]}, Grammar(kind="choice", source='["a"]'), "guided_choice"),
    ({"guided_grammar": "start: \"a\""}, Grammar(kind="lark", source='start: "a"'), "guided_grammar"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "grammar", "param"), FORMS, ids=[json.dumps(form[0])[:60] for form in FORMS]
)
def test_each_form_is_the_grammar_it_asks_for(fields, grammar, param):
    chat = asked(**fields)
    assert chat.params().grammar == chat.grammar() == grammar
    assert chat.grammar_param == param
    completion = parse(json.dumps({"prompt": "x", **fields}).encode(), CompletionRequest)[0]
    assert completion.params().grammar == grammar


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_json": {}, "guided_choice": ["a"]}, "guided_choice"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
        ),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": open_ai(name="two words")}, "response_format.json_schema.name"),
        ({"response_format": open_ai(name="")}, "response_format.json_schema.name"),
        ({"guided_regex": 5}, "guided_regex"),
        ({"guided_choice": {"a": 1}}, "guided_choice"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(fields, param):
    with pytest.raises(RequestError) as caught:
        asked(**fields).params()
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 10**9}, "n"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"max_completion_tokens": 2**63}, "max_tokens"),
        ({"min_tokens": 2**40}, "min_tokens"),
        ({"top_k": 2**40}, "top_k"),
        ({"seed": 2**64}, "seed"),
        ({"stop": [str(i) for i in range(10**5)]}, "stop"),
        ({"stop": "x" * 5000}, "stop"),
        ({"logit_bias": {str(i): 1 for i in range(10**5)}}, "logit_bias"),
        ({"stop_token_ids": list(range(10**5))}, "stop_token_ids"),
        ({"stop_token_ids": [2**40]}, "stop_token_ids"),
        ({"bad_words": ["x"] * 10**5}, "bad_words"),
        ({"bad_words": ["x" * 5000]}, "bad_words"),
        ({"allowed_token_ids": [1] * (2**18 + 1)}, "allowed_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"top_logprobs": 10**6, "logprobs": True}, "top_logprobs"),
        ({"prompt_logprobs": 10**6}, "prompt_logprobs"),
        ({"beam_width": 10**6}, "beam_width"),
    ],
)
def test_absurd_sizes_are_refused_by_name(fields, param, monkeypatch):
    """Those of lists before any SamplingParams is made of them."""
    with pytest.raises(RequestError) as caught:
        asked(**fields).params()
    assert caught.value.param == param
    assert len(str(caught.value)) < 300
    if any(isinstance(value, list | dict) and len(value) > 1000 for value in fields.values()):
        monkeypatch.setattr("octavo.api.common.SamplingParams", None)
        with pytest.raises(RequestError):
            asked(**fields).params()


def test_what_is_at_the_limits_is_taken():
    fields = {
        "logit_bias": {str(i): 1 for i in range(1024)}, "stop": ["x" * 1024] * 4, "bad_words": ["y" * 32] * 128,
        "allowed_token_ids": list(range(4000)), "max_tokens": 2**31 - 1, "seed": 2**64 - 1,
    }  # fmt: skip
    params = asked(**fields).params()
    assert len(params.logit_bias or ()) == 1024
    assert params.max_tokens == 2**31 - 1
