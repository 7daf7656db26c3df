"""Chat templates: the same prompts as transformers, within limits whatever the template tries."""

import json
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.codec.chat import ChatLimits, ChatTemplate, chat_prompt, compiled, render
from octavo.codec.tokenizer import Tokenizer
from octavo.errors import LoadError, RequestError, Unsupported
from tests.codec import templates

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["°C", "<F>"]}},
            "required": ["city"],
        },
    },
}
USER = {"role": "user", "content": " Hi <b>&amp;</b> 'there' 🙂 "}
ASSISTANT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello.\n"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Köln"}},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": "12 °C"}
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ASSISTANT, USER],
    "long": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT, USER],
    "tools": [USER, CALL, RESULT, ASSISTANT, USER],
}
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def by_transformers(template, messages, **variables):
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template([messages], chat_template=template, **variables)
    return rendered[0]


def by_transformers_or_fault(template, messages, **variables):
    try:
        return by_transformers(template, messages, **variables), None
    except Exception as error:
        return None, str(error)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("tools", [None, [WEATHER, WEATHER]], ids=["plain", "tools"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", templates.ALL)
def test_prompts_equal_those_of_transformers(name, conversation, tools, add_generation_prompt):
    template, messages = templates.ALL[name], CONVERSATIONS[conversation]
    variables = {**NAMES, "date_string": "1 Jan 2026", "enable_thinking": False}
    want, fault = by_transformers_or_fault(
        template, messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables
    )
    if fault is None:
        assert render(template, messages, add_generation_prompt, tools=tools, **variables) == want
    else:
        with pytest.raises(RequestError) as refusal:
            render(template, messages, add_generation_prompt, tools=tools, **variables)
        assert fault in str(refusal.value)


@pytest.mark.parametrize("name", ["gemma", "macros"])
def test_content_in_parts_goes_to_templates_that_read_parts(name):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "user", "content": parts}]
    template = templates.ALL[name]
    assert compiled(template).reads_parts
    assert render(template, messages, **NAMES) == by_transformers(
        template, messages, add_generation_prompt=True, **NAMES
    )


def test_content_in_parts_is_joined_for_templates_that_read_text():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert not compiled(templates.CHATML).reads_parts
    got = render(templates.CHATML, [{"role": "user", "content": parts}])
    assert got == render(templates.CHATML, [{"role": "user", "content": "one\ntwo"}])


def test_parts_other_than_text_are_refused():
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    with pytest.raises(Unsupported, match=r"messages\[0\].content holds a part of kind 'image_url'"):
        render(templates.GEMMA, [message], **NAMES)


def test_arguments_given_as_json_text_are_printed_as_an_object():
    call = json.loads(json.dumps(CALL))
    call["tool_calls"][0]["function"]["arguments"] = '{"city": "Köln"}'
    for name in ("llama3", "qwen3", "mistral"):
        template = templates.ALL[name]
        assert render(template, [USER, call], **NAMES) == render(template, [USER, CALL], **NAMES)
    assert isinstance(call["tool_calls"][0]["function"]["arguments"], str), (
        "the caller's messages are left alone"
    )


def test_the_time_comes_from_outside():
    now = datetime(2026, 3, 9, 12, 0)
    assert "Today Date: 09 Mar 2026" in render(templates.LLAMA3, [USER], now=now, **NAMES)
    assert "Today Date: 26 Jul 2024" in render(templates.LLAMA3, [USER], **NAMES)


def test_a_template_refuses_bad_roles_in_its_own_words():
    with pytest.raises(RequestError, match="Conversation roles must alternate") as error:
        render(templates.GEMMA, [USER, USER], **NAMES)
    assert error.value.param == "messages"


SANE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(max_size=8)
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(SANE)
def test_json_and_text_of_any_value_equal_those_of_transformers(value):
    template = (
        "{{ v | tojson }} {{ v }} {{ [v] | string }} {{ v ~ '' }} {{ v == v }} {{ v | tojson(indent=2) }}"
    )
    got = render(template, [USER], v=value)
    assert got == by_transformers(template, [USER], v=value)


def test_a_template_cannot_change_what_it_is_given():
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}], "extra": {"a": [1]}}]
    before = json.dumps(messages)
    render("{% set messages = [] %}{{ messages | length }}", messages)
    assert json.dumps(messages) == before


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for x in %}", "not valid, line 1"),
        ("a\n{{ }}\n", "not valid, line 2"),
        ("{% endfor %}", "not valid"),
        ("{{ x | no_such_filter }}", "no_such_filter"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "cannot be compiled"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "cannot be compiled"),
        ("x" * (2**20 + 1), "at most 1048576"),
    ],
)
def test_an_invalid_template_is_a_load_error(template, says):
    with pytest.raises(LoadError, match=says):
        ChatTemplate(template)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "at least one message"),
        ("hello", "list of at least one message"),
        ([{"content": "x"}], r"messages\[0\] must be an object with a text 'role'"),
        ([USER, "x"], r"messages\[1\]"),
        ([{"role": "user", "content": object()}], "holds a object"),
        ([{"role": "user", "content": {1: 2}}], "key that is not text"),
        ([{"role": "user", "content": b"x"}], "holds a bytes"),
    ],
)
def test_messages_that_are_none_are_refused(messages, says):
    with pytest.raises(RequestError, match=says):
        render(templates.CHATML, messages)


def test_messages_nested_without_end_are_refused():
    deep: list[object] = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(RequestError, match="64 deep"):
        render(templates.CHATML, [{"role": "user", "content": "", "x": deep}])


def test_a_prompt_longer_than_the_limit_is_refused():
    limits = ChatLimits(max_chars=1000)
    assert (
        len(render("{{ messages[0].content }}", [{"role": "user", "content": "x" * 1000}], limits=limits))
        == 1000
    )
    with pytest.raises(RequestError, match="1000 characters"):
        render("{{ messages[0].content }}!", [{"role": "user", "content": "x" * 1000}], limits=limits)


def test_a_long_honest_conversation_fits_the_limits():
    messages = [USER if i % 2 == 0 else ASSISTANT for i in range(2001)]
    for name in ("chatml", "llama3", "qwen3", "gemma"):
        assert render(templates.ALL[name], messages, **NAMES).count("there") == 1001
    big = "x" * 2**21
    assert big in render(templates.QWEN3, [{"role": "user", "content": big}])


def test_the_models_own_template_is_used(folder):
    assert chat_prompt(Tokenizer.from_path(folder), [{"role": "user", "content": "hi"}]) == "hi"


def test_special_tokens_reach_the_template(folder):
    (folder / "chat_template.jinja").write_text("{{ bos_token }}|{{ eos_token }}|{{ pad_token }}")
    assert chat_prompt(Tokenizer.from_path(folder), [USER]) == "<s>|</s>|"


def test_templates_by_name_and_from_the_request(folder):
    config = {"chat_template": [{"name": n, "template": n} for n in ("default", "tool_use", "rag")]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_path(folder)
    assert chat_prompt(tokenizer, [USER]) == "default"
    assert chat_prompt(tokenizer, [USER], tools=[WEATHER]) == "tool_use"
    assert chat_prompt(tokenizer, [USER], template="rag") == "rag"
    assert chat_prompt(tokenizer, [USER], template="{{ 1 + 1 }}") == "2"
    with pytest.raises(RequestError, match="not valid"):
        chat_prompt(tokenizer, [USER], template="{{")


def test_without_a_template_the_error_says_what_to_pass(folder):
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(RequestError, match="no chat template; pass chat_template"):
        chat_prompt(Tokenizer.from_path(folder), [USER])


def test_a_broken_template_of_the_model_is_a_load_error(folder):
    (folder / "chat_template.jinja").write_text("{{")
    with pytest.raises(LoadError):
        chat_prompt(Tokenizer.from_path(folder), [USER])
