"""The bench of the server: it asks what it says, and refuses what goes wrong."""

from __future__ import annotations

import pytest

from benches.harness import GateFailed, Settings
from benches.serving import http, trace
from octavo.cli.load import Ask, Outcome


def test_every_question_can_be_asked_without_the_trace(monkeypatch, tmp_path):
    monkeypatch.setenv("OCTAVO_SHARED_DATA", str(tmp_path))
    for make in http.QUESTIONS.values():
        bench = make(Settings())
        assert len(bench.subjects) >= 1
    lengths = trace.lengths(http.LONGEST_PROMPT, http.LONGEST_OUTPUT)
    assert http.s1(Settings()).shape["trace"] == "drawn"
    assert all(
        1 <= prompt <= http.LONGEST_PROMPT and 2 <= out <= http.LONGEST_OUTPUT for prompt, out in lengths
    )
    assert 800 < sum(prompt for prompt, _ in lengths) / len(lengths) < 1300


def test_chunks_are_counted_against_the_time_of_the_front(monkeypatch):
    monkeypatch.setattr(http, "STREAMS", 3)
    monkeypatch.setattr(http, "STREAM_TOKENS", 200)
    monkeypatch.setattr(http, "LONE_REQUESTS", 5)
    figures = http._streams(0)
    assert 0 < figures["chunks_per_core_s"] <= figures["tokens_per_core_s"]
    assert 0 < figures["added_ttft_s"] <= figures["added_ttft_p99_s"]


def test_a_request_that_failed_is_no_measurement():
    good, bad = (Outcome(Ask(0.0, [1], 2), 0.0, code=code) for code in (None, "overloaded"))
    http._refuse_failures([good])
    with pytest.raises(GateFailed, match="overloaded"):
        http._refuse_failures([good, bad])
