"""From bytes to requests: nothing dropped in silence, nothing raised without a name."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.api.chat import ChatRequest
from octavo.api.completions import CompletionRequest
from octavo.api.faults import HttpError
from octavo.api.parse import FOR_THE_RECORD, NOT_BUILT, parse, warning
from octavo.core.sequence import SamplingParams
from octavo.errors import OctavoError, RequestError, Unsupported

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(**fields: object) -> ChatRequest:
    return parse(json.dumps({**CHAT, **fields}).encode(), ChatRequest)[0]


def completion(**fields: object) -> CompletionRequest:
    return parse(json.dumps({"model": "m", "prompt": "hi", **fields}).encode(), CompletionRequest)[0]


def test_defaults_are_those_of_the_wire():
    assert chat().params() == SamplingParams(max_tokens=None)
    assert completion().params() == SamplingParams(max_tokens=16)


def test_null_means_not_given():
    body = {
        **CHAT,
        **dict.fromkeys(["temperature", "top_p", "n", "stop", "seed", "max_tokens", "logit_bias", "stream"]),
    }
    asked, idle = parse(json.dumps(body).encode(), ChatRequest)
    assert asked.params() == SamplingParams(max_tokens=None)
    assert idle == []


def test_every_sampling_field_reaches_the_parameters():
    fields = {
        "n": 2, "temperature": 0.5, "top_p": 0.9, "seed": -4, "presence_penalty": 0.25, "frequency_penalty": -0.25,
        "max_tokens": 7, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "ignore_eos": True,
        "stop_token_ids": [1, 2], "prompt_logprobs": 1, "stop": ["x", "y"], "logit_bias": {"3": -1.5},
        "bad_words": ["no"], "allowed_token_ids": [3, 4], "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }  # fmt: skip
    expected = SamplingParams(**{**fields, "logit_bias": {3: -1.5}})
    assert completion(**fields).params() == expected
    assert chat(**fields).params() == expected
    beams = {"beam_width": 3, "length_penalty": 0.5, "early_stopping": True}
    assert chat(**beams).params() == SamplingParams(max_tokens=None, **beams)


def test_logprobs_of_both_routes():
    assert chat(logprobs=True).params().logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).params().logprobs == 20
    assert chat(logprobs=False).params().logprobs is None
    assert completion(logprobs=5).params().logprobs == 5
    assert completion(logprobs=2, echo=True).params().prompt_logprobs == 2
    assert completion(logprobs=2, echo=True, prompt_logprobs=4).params().prompt_logprobs == 4


def test_best_of_of_zero_means_not_given():
    assert completion(best_of=0).params().best_of is None
    assert completion(best_of=3, n=2).params().best_of == 3


def test_scoring_draws_one_token_that_nobody_sees():
    asked = completion(max_tokens=0, echo=True)
    assert asked.is_scoring
    assert asked.params().max_tokens == 1


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ([""], [""]),
    ],
)
def test_the_four_forms_of_a_prompt(prompt, prompts):
    assert completion(prompt=prompt).prompts() == prompts


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe{}", b'{"model": NaN}', b'{"a": Infinity}', b"{'a': 1}",
        b'{"a": 1,}', b'{"a": 1} x', b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"a": "\x00"}', b'{"a": "\xc3"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_what_is_no_json_object_is_refused_as_such(body, kind):
    with pytest.raises(HttpError) as caught:
        parse(body, kind)
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"stop": [1]}, "stop[0]"),
        ({"logit_bias": {"1": "x"}}, "logit_bias[...]"),
        ({"stream": "yes"}, "stream"),
        ({"n": 1.5}, "n"),
        ({"seed": True}, "seed"),
    ],
)
def test_a_wrong_type_is_named_by_its_place(fields, param):
    with pytest.raises(RequestError) as caught:
        chat(**fields)
    assert caught.value.param == param


BUILT = {"add_special_tokens", "tools", "tool_choice"}
"""For this route, or none."""


@pytest.mark.parametrize("name", [n for n in NOT_BUILT if n not in BUILT])
def test_what_is_not_built_is_refused_by_name(name):
    with pytest.raises(Unsupported) as caught:
        chat(**{name: {"some": "thing"}})
    assert caught.value.param == name
    assert name in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in NOT_BUILT.items() for v in values])
def test_a_value_that_asks_for_nothing_is_let_through(name, value):
    _, idle = parse(json.dumps({**CHAT, name: value}).encode(), ChatRequest)
    assert idle == []


@pytest.mark.parametrize(
    ("name", "value"), [("store", 0), ("functions", ""), ("audio", False), ("store", True)]
)
def test_a_value_that_only_looks_like_nothing_is_refused(name, value):
    with pytest.raises(Unsupported):
        chat(**{name: value})


def test_unknown_fields_are_named_and_those_for_the_record_are_not():
    body = {**CHAT, "verbosity": "low", "x_new": 1, **dict.fromkeys(FOR_THE_RECORD, None)}
    _, idle = parse(json.dumps(body).encode(), ChatRequest)
    assert idle == ["verbosity", "x_new"]
    assert warning(idle) == {"x-octavo-warning": "without effect: verbosity, x_new"}
    assert warning([]) == {}


@settings(deadline=None)
@given(st.lists(st.text(max_size=80), min_size=1, max_size=40))
def test_the_warning_is_a_sound_header_whatever_the_names(names):
    (value,) = warning(names).values()
    assert value.isascii()
    assert value.isprintable()
    assert value == value.strip()
    assert len(value) < 1500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    [*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__, *NOT_BUILT, "x"]
)


@settings(deadline=None)
@given(st.dictionaries(names, json_values, max_size=5), st.booleans())
def test_any_object_is_a_request_or_a_named_refusal(fields, is_chat):
    body = json.dumps({**(CHAT if is_chat else {"prompt": "a"}), **fields}).encode()
    try:
        asked, _ = parse(body, ChatRequest if is_chat else CompletionRequest)  # type: ignore[type-var]
        params = asked.params()
        if isinstance(asked, CompletionRequest):
            asked.prompts()
        else:
            asked.template_messages(knows_developer=False)
            asked.template_variables()
        code = ""
    except OctavoError as error:
        params, code = None, error.code
    assert isinstance(params, SamplingParams) != (
        code in ("invalid_json", "invalid_value", "unsupported_parameter")
    )


THREADS = """
from __future__ import annotations
import sys, threading
import msgspec
from octavo.api.parse import decode

sys.setswitchinterval(1e-6)
barrier = threading.Barrier(6)
for number in range(60):
    class Inner(msgspec.Struct):
        a: dict[str, list[int | None]] | None = None
        b: tuple[int, str] | None = None

    class Kind(msgspec.Struct):
        name: str
        first: list[Inner] | None = None
        second: dict[str, Inner] | None = None

    got = []

    def read(kind: type = Kind) -> None:
        barrier.wait()
        got.append(decode(b'{"name": "x", "first": [{"a": {"k": [1]}}]}', kind).name)

    threads = [threading.Thread(target=read) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert got == ["x"] * 6
"""


def test_threads_may_meet_a_type_for_the_first_time_together():
    """Requests are read in several threads; the first two of a server may come at once."""
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
