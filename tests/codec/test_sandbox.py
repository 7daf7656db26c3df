"""The sandbox: whatever a template tries, it is refused within the limits and reaches nothing outside."""

from datetime import datetime

import pytest

from octavo.codec.chat import ChatLimits, render
from octavo.errors import LoadError, RequestError

USER = {"role": "user", "content": " Hi <b>&amp;</b> 'there' 🙂 "}

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
