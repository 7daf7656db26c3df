"""Errors on the wire: one shape, the right status, hints that clients obey."""

from __future__ import annotations

import json

import msgspec
import pytest

from octavo import errors
from octavo.api import sse
from octavo.api.faults import ROWS, HttpError, fault


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.RequestError("bad", param="n"), 400),
        (errors.Unsupported("no tools", param="tools"), 400),
        (errors.PromptTooLong("5000 tokens, at most 4096"), 400),
        (errors.UnknownModel("no 'x'"), 404),
        (errors.InvalidGrammar("not", param="response_format"), 400),
        (errors.GrammarTooComplex("large", param="response_format"), 400),
        (errors.Busy("full", retry_after_s=3), 429),
        (errors.Bug("broken"), 500),
        (HttpError("request_too_large", "big"), 413),
        (HttpError("invalid_api_key", "wrong"), 401),
        (HttpError("shutting_down", "bye", retry_after_s=5), 503),
        (HttpError("engine_error", "NaN"), 500),
    ],
)
def test_status_and_shape(error, status):
    answer = fault(error)
    assert answer.status == status
    body = json.loads(msgspec.json.encode(answer.body))
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"] == str(error)
    assert body["error"]["code"] == error.code
    assert body["error"]["param"] == getattr(error, "param", None)


@pytest.mark.parametrize(
    ("seconds", "header"), [(0.01, "1"), (1.0, "1"), (1.2, "2"), (119.5, "120"), (5000.0, "120")]
)
def test_retry_after_is_a_whole_number_clients_accept(seconds, header):
    assert fault(errors.Busy("full", retry_after_s=seconds)).headers["retry-after"] == header


def test_what_a_second_try_cannot_mend_says_so():
    for code in ("engine_error", "internal_error", "request_too_large", "request_timeout"):
        assert fault(HttpError(code, "x")).headers["x-should-retry"] == "false"
    for code in ("overloaded", "model_loading", "invalid_value"):
        assert "x-should-retry" not in fault(HttpError(code, "x")).headers


def test_an_unknown_code_reads_as_a_defect_of_ours():
    answer = fault(errors.OctavoError("odd"))
    assert (answer.status, answer.body.error.code) == (500, "internal_error")


def test_every_retried_status_is_decided_upon():
    """The official clients repeat 408, 409, 429 and every 5xx unless told otherwise."""
    for code, row in ROWS.items():
        if row.status in (408, 409, 500):
            assert row.retry is False, code


def test_events_are_one_line_whatever_the_text():
    event = sse.event({"text": "a\nb\r\n\u2028data: [DONE]\n\n"})
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    assert b"\r" not in event


def test_an_error_event_is_the_error_body():
    event = sse.error_event(HttpError("engine_error", "NaN"))
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "engine_error"
    assert b"[DONE]" not in event
