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


HOSTILE = {
    "endless range": "{% for i in range(10**9) %}{% endfor %}",
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "lazy filters": "{% for i in range(9999) %}{{ range(9999) | map('string') | list | length }}{% endfor %}",
    "recursive loop": "{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "static text": "{% for i in range(99999) %}{% for j in range(99999) %}"
    + "x" * 1000
    + "{% endfor %}{% endfor %}",
    "captured text": "{% set x %}{% for i in range(99999) %}"
    + "x" * 5000
    + "{% endfor %}{% endset %}{{ x }}",
    "times": "{{ 'a' * 10**12 }}",
    "times turned": "{{ 10**12 * 'a' }}",
    "list times": "{{ [1] * 10**12 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "big product": "{% set ns = namespace(x=9) %}{% for i in range(999) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubling +": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling ~": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling list": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "shared list": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "shared list as json": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "shared list formatted": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ '{!r}'.format(ns.x) }}",
    "shared list compared": "{% set a = namespace(x=[1]) %}{% set b = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}{% endfor %}{{ a.x == b.x }}",
    "shared dicts compared": "{% set a = namespace(x={'k': 1}) %}{% set b = namespace(x={'k': 1}) %}"
    "{% for i in range(60) %}{% set a.x = {'k': a.x, 'l': a.x} %}{% set b.x = {'k': b.x, 'l': b.x} %}{% endfor %}"
    "{{ a.x == b.x }}",
    "shared list searched": "{% set a = range(99999) | list %}{% for i in range(99999) %}{{ -1 in a }}{% endfor %}",
    "list method": "{% set a = range(99999) | list %}{% for i in range(99999) %}{{ a.count(-1) }}{% endfor %}",
    "slices": "{% set a = range(99999) | list %}{% for i in range(99999) %}{% set b = a[1:] %}{% endfor %}",
    "percent width": "{{ '%999999999d' % 1 }}",
    "percent precision": "{{ '%.999999999f' % 1 }}",
    "percent star": "{{ '%*d' % (999999999, 1) }}",
    "percent filter": "{{ '%999999999s' | format(1) }}",
    "format width": "{{ '{:>999999999}'.format(1) }}",
    "format nested width": "{{ '{:>{}}'.format(1, 999999999) }}",
    "format_map width": "{{ '{a:>999999999}'.format_map({'a': 1}) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ '1'.zfill(10**10) }}",
    "indent": "{{ 'a\nb' | indent(10**10) }}",
    "json indent": "{{ [1] | tojson(indent=10**9) }}",
    "json text indent": "{{ [1] | tojson(indent='x' * 100000) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "round": "{{ 5 | round(-10**9, 'floor') }}",
    "replace filter": "{% set a = 'a' * 10**6 %}{{ a | replace('a', a) }}",
    "replace method": "{% set a = 'a' * 10**6 %}{{ a.replace('a', a) }}",
    "replace nothing": "{% set a = 'a' * 10**6 %}{{ a.replace('', a) }}",
    "join filter": "{% set a = 'a' * 10**6 %}{{ range(1000) | join(a) }}",
    "join method": "{% set a = 'a' * 10**6 %}{{ a.join(a) }}",
    "sum of lists": "{% set a = [range(9999) | list] * 9999 %}{{ a | sum(start=[]) }}",
    "macro tree": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "block without end": "{% block a %}{{ self.a() }}{% endblock %}",
    "dates": "{{ strftime_now('%999999999d') }}",
    "escape tag": "{% autoescape true %}{% set a = '<' * 10**6 %}{% for i in range(9999) %}{{ a }}{% endfor %}"
    "{% endautoescape %}",
    "sort": "{% set a = range(99999) | list %}{% for i in range(99999) %}{% set b = a | sort %}{% endfor %}",
    "tests": "{% set a = range(99999) | list %}{% for i in range(99999) %}{% if -1 is in a %}{% endif %}{% endfor %}",
    "select": "{% set a = range(99999) | list %}{% for i in range(99999) %}"
    "{{ a | select('equalto', -1) | list }}{% endfor %}",
    "views": "{% set d = dict(range(9999) | map('string') | map('list') | map('first') | list | batch(2) | list) %}"
    "{% for i in range(999999) %}{% set x = d.items() | list %}{% endfor %}",
    "text scans": "{% set a = 'a' * 10**6 %}{% for i in range(99999) %}{{ a.count('b') }}{% endfor %}",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_in_a_refusal(name):
    """The limit counts work, so it is met on every machine; the timeout only guards the test."""
    with pytest.raises((RequestError, LoadError)):
        render(HOSTILE[name], [USER], now=datetime(2026, 1, 1), limits=ChatLimits(max_units=500_000))


NUM_ITEMS = 5000
GOES_THROUGH_ITEMS = [
    "{% for x in v %}{% endfor %}",
    "{% for x in v recursive %}{% endfor %}",
    "{% for x in v if x < 0 %}{% endfor %}",
    "{% for x in [1] recursive %}{% if x %}{{ loop(z) }}{% endif %}{% endfor %}",
    "{% for x in d %}{% endfor %}",
    "{% for x in d.items() %}{% endfor %}",
    "{% for x in range(5000) %}{% endfor %}",
    "{% set b = v[1:] %}",
    "{% set b = v + [1] %}",
    "{% set b = [1] + v %}",
    "{% set b = [0] * 5000 %}",
    "{% set b = 5000 * [0] %}",
    "{% set b = -1 in v %}",
    "{% set b = -1 not in v %}",
    "{% set b = -1 is in v %}",
    "{% set b = v == w %}",
    "{% set b = v is eq w %}",
    "{% set b = [1] < v %}",
    "{% set b = d == e %}",
    "{% set b = v.count(-1) %}",
    "{% set b = v.copy() %}",
    "{% set b = d.copy() %}",
    "{% set b = dict(d) %}",
    "{% set b = v ~ '' %}",
    "{% set b = '%s' % v %}",
    "{% set b = '%s' % d %}",
    "{% set b = '{}'.format(v) %}",
    "{% set b = '{!r}'.format(v) %}",
    "{% set b = '{a}'.format_map({'a': v}) %}",
    "{% set b = ','.join(v | map('string')) %}",
    "{% set b = d.items() | list %}",
    *(
        "{% set b = v | " + name + " %}"
        for name in (
            "list",
            "reverse | list",
            "map('string') | list",
            "select('equalto', -1) | list",
            "reject('none') | list",
            "batch(2) | list",
            "slice(2) | list",
            "sort",
            "unique | list",
            "groupby('x')",
            "map(attribute='x') | max",
            "join",
            "tojson",
            "string",
            "sum",
            "max",
            "min",
            "replace('x', 'y')",
            "upper",
            "trim",
        )
    ),
    "{% set b = d | dictsort %}",
    "{% set b = d | items | list %}",
    "{{ v }}",
    "{% set b %}{{ v }}{% endset %}",
]
GOES_THROUGH_TEXT = [
    "{{ t }}",
    "{% set b = t ~ 'x' %}",
    "{% set b = t + 'x' %}",
    "{% set b = 'x' + t %}",
    "{% set b = 'ab' * 160000 %}",
    "{% set b = t[1:] %}",
    "{% set b = 'b' in t %}",
    "{% set b = t == u %}",
    "{% set b = '%s' % t %}",
    "{% set b = t % () %}",
    "{% set b = '{}'.format(t) %}",
    "{% set b = t.format() %}",
    "{% set b = t.count('b') %}",
    "{% set b = t.split('b') %}",
    "{% set b = t.replace('b', 'c') %}",
    "{% set b = ''.join([t]) %}",
    "{% set b = t.startswith(t) %}",
    "{% set b = t | upper %}",
    "{% set b = t | trim %}",
    "{% set b = t | replace('b', 'c') %}",
    "{% set b = t | tojson %}",
    "{% set b = t | title %}",
    "{% set b = t | wordcount %}",
    "{% set b = t | indent %}",
    "{% set b = [t] | join %}",
    "{% for x in range(10) %}" + "static text " * 3000 + "{% endfor %}",
]


@pytest.mark.parametrize("template", GOES_THROUGH_ITEMS + GOES_THROUGH_TEXT)
def test_work_is_charged_by_the_size_it_goes_through(template):
    """5000 items, or 64 characters for each of 5000 units: one unit less than that is never enough."""
    items = list(range(NUM_ITEMS))
    table = {str(i): i for i in items}
    values = {
        "v": items,
        "w": [*items],
        "d": table,
        "e": {**table},
        "z": [0] * NUM_ITEMS,
        "t": "a" * 64 * NUM_ITEMS,
        "u": "a" * 64 * NUM_ITEMS,
    }
    if "'x')" in template and "replace" not in template:
        values["v"] = [{"x": i} for i in items]
    tight = ChatLimits(max_units=NUM_ITEMS - 1)
    assert render(
        "{{ v | length }} {{ t | length }} {{ d.get('1') }} {{ '1' in d }}", [USER], limits=tight, **values
    )
    with pytest.raises(RequestError, match="units of work"):
        render(template, [USER], limits=tight, **values)
    render(template, [USER], limits=ChatLimits(max_units=20 * NUM_ITEMS), **values)


def test_a_value_formatted_many_times_is_charged_each_time():
    limits = ChatLimits(max_units=20 * NUM_ITEMS)
    for pattern in ("{0}", "{0!r}"):
        template = "{% set b = ('" + pattern + "' * 60).format(v) %}"
        with pytest.raises(RequestError, match="units of work"):
            render(template, [USER], limits=limits, v=list(range(NUM_ITEMS)))


@pytest.mark.parametrize(
    "making",
    [
        "t + t",
        "t ~ t",
        "t * 2",
        "2 * t",
        "t.replace('a', 'bb')",
        "t | replace('a', 'bb')",
        "t.join('ab')",
        "[t, t] | join",
    ],
)
def test_texts_made_on_the_way_are_limited_too(making):
    limits = ChatLimits(max_chars=1000)
    template = "{% set b = " + making + " %}"
    render(template, [USER], limits=limits, t="a" * 333)
    with pytest.raises(RequestError, match="more than 1000 characters"):
        render(template, [USER], limits=limits, t="a" * 501)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__ }}{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ ('' | attr('__class__')).mro() }}",
        "{{ raise_exception.__globals__['meter'] }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ '{a.__class__.__mro__}'.format_map({'a': ''}) }}",
        "{{ range.__call__.__self__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages[0].pop('role') }}",
        "{% set messages[0].role = 'x' %}",
        "{{ 'a'.encode() }}",
        "{{ (1).to_bytes(9) }}",
        "{{ namespace(_x=1) }}",
        "{{ lipsum(5) }}",
        "{{ cycler(1) }}",
        "{{ messages | random }}",
        "{{ messages | pprint }}",
        "{{ '<a>' | striptags }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{{ nothing.there }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
    ],
)
def test_what_lies_outside_the_sandbox_is_not_reached(template):
    messages = [dict(USER)]
    with pytest.raises((RequestError, LoadError)):
        render(template, messages)
    assert messages == [USER]


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
