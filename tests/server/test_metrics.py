"""Numbers that agree with what clients have counted themselves, and are what Prometheus reads."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as families

from tests.server.process import Served, serving

OPERATIONS = Path(__file__).resolve().parents[2] / "docs/operations.md"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(served: Served, **more: Any) -> Samples:
    found: Samples = {}
    for family in families(served.get("/metrics", **more).text):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def summed(found: Samples, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (one, given), value in found.items() if one == name and wanted <= set(given))


@pytest.fixture
def fresh(folder):
    with serving([str(folder), "--metrics-compat", "vllm"]) as served:
        served.until(lambda health: "steps" in health["engine"])
        yield served


def send(served: Served, path: str, body: dict[str, Any], **more: Any) -> httpx.Response:
    return served.post(path, {"model": "fake", **body}, **more)


def test_counters_equal_what_the_client_has_counted(fresh):
    ledger = {"input": 0, "output": 0, "cached": 0}
    for number in range(12):
        body = {"prompt": "say:" + "x" * number, "max_tokens": 5, "n": 1 + number % 3}
        usage = send(fresh, "/v1/completions", body).json()["usage"]
        ledger["input"] += usage["prompt_tokens"]
        ledger["output"] += usage["completion_tokens"]
        ledger["cached"] += usage["prompt_tokens_details"]["cached_tokens"]
    for _ in range(3):
        body = {"messages": [{"role": "user", "content": "say:abc"}], "stream": True}
        options = {"stream_options": {"include_usage": True}}
        text = send(fresh, "/v1/chat/completions", {**body, **options}).text
        ledger["input"] += int(re.findall(r'"prompt_tokens":(\d+)', text)[-1])
        ledger["output"] += int(re.findall(r'"completion_tokens":(\d+)', text)[-1])
        ledger["cached"] += int(re.findall(r'"cached_tokens":(\d+)', text)[-1])
    assert send(fresh, "/v1/completions", {"prompt": "x", "n": 0}).status_code == 400
    assert send(fresh, "/v1/completions", {"prompt": "!refuse"}).status_code == 400
    assert send(fresh, "/v1/completions", {"prompt": "!busy"}).status_code == 429
    retried = {"x-stainless-retry-count": "1"}
    failed = send(fresh, "/v1/completions", {"prompt": "!error say:abcdef", "stream": True}, headers=retried)
    assert "engine_error" in failed.text
    ledger["input"] += len("!error say:abcdef")
    ledger["output"] += 2
    ledger["cached"] += 3
    with fresh.client.stream("POST", "/v1/completions", json={"prompt": "!wait", "stream": True}) as left:
        assert left.status_code == 200
    fresh.until(lambda health: health["requests"] == 0)
    ledger["input"] += len("!wait")
    assert fresh.get("/nowhere").status_code == 404
    assert fresh.client.put("/v1/models").status_code == 405

    found = samples(fresh)
    name = "octavo_requests_total"
    assert summed(found, name, endpoint="/v1/completions", outcome="ok") == 12
    assert summed(found, name, endpoint="/v1/chat/completions", outcome="ok", code="ok") == 3
    assert summed(found, name, endpoint="/v1/completions", outcome="refused", code="invalid_value") == 1
    assert (
        summed(found, name, endpoint="/v1/completions", outcome="refused", code="context_length_exceeded")
        == 1
    )
    assert summed(found, name, endpoint="/v1/completions", outcome="refused", code="overloaded") == 1
    assert summed(found, name, endpoint="/v1/completions", outcome="failed", code="engine_error") == 1
    assert summed(found, name, endpoint="/v1/completions", outcome="cancelled", code="client_gone") == 1
    assert summed(found, name, endpoint="other", code="not_found") == 1
    assert summed(found, name, endpoint="/v1/models", code="method_not_allowed") == 1
    assert summed(found, "octavo_client_retries_total") == 1
    for direction, count in ledger.items():
        assert summed(found, "octavo_tokens_total", direction=direction) == count, direction
    assert (
        summed(found, "octavo_tenant_service_tokens_total", tenant="public")
        == ledger["input"] + ledger["output"]
    )
    ran = 12 + 3 + 1 + 1
    for histogram in ("request_prompt_tokens", "request_output_tokens", "request_cached_tokens"):
        assert summed(found, f"octavo_{histogram}_count") == ran
    assert summed(found, "octavo_request_output_tokens_sum") == ledger["output"]
    assert summed(found, "octavo_ttft_seconds_count") == ran - 2, "one had no token to draw, one got none"
    assert summed(found, "vllm:prompt_tokens_total") == ledger["input"]
    assert summed(found, "vllm:time_to_first_token_seconds_count") == ran - 2
    assert summed(found, "octavo_replica_up", replica="0") == 1
    assert summed(found, "octavo_engine_state", replica="0", state="ready") == 1
    assert summed(found, "octavo_engine_steps_total") > 0
    assert summed(found, "process_resident_memory_bytes") > 0


def test_a_restart_shows(fresh):
    send(fresh, "/v1/completions", {"prompt": "!die say:abcdef"})
    fresh.until(lambda health: health["status"] == "ready")
    found = samples(fresh)
    assert summed(found, "octavo_engine_restarts_total") == 2
    assert summed(found, "octavo_requests_total", code="request_quarantined", outcome="failed") == 1
    assert summed(found, "octavo_gateway_resumed_total") == 1


def test_names_are_ours_alone_unless_asked_and_both_formats_parse(server):
    text = server.get("/metrics").text
    assert "vllm:" not in text
    names = {family.name for family in families(text)}
    assert all(name.startswith(("octavo_", "process_", "python_")) for name in names)
    answer = server.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert {family.name for family in openmetrics(answer.text)} >= {"octavo_requests", "octavo_ttft_seconds"}


def test_a_key_guards_them_unless_the_operator_opens_them(folder):
    with serving([str(folder), "--api-key", "a-key-of-ours"]) as served:
        assert served.get("/metrics").status_code == 401
        assert served.get("/metrics", headers={"x-api-key": "a-key-of-ours"}).status_code == 200
    with serving([str(folder), "--api-key", "a-key-of-ours", "--open-metrics"]) as served:
        assert served.get("/metrics").status_code == 200
        assert served.get("/v1/models").status_code == 401


def test_no_content_becomes_a_label(fresh):
    send(fresh, "/v1/completions", {"prompt": "say:canary-text", "user": "canary-user"})
    fresh.get("/v1/canary-path")
    fresh.get("/v1/models/canary-model")
    assert "canary" not in fresh.get("/metrics").text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_promtool_finds_nothing_wrong(server):
    text = server.get("/metrics").text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
    )
    problems = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("octavo_")]
    assert not problems, problems


def test_the_table_of_metrics_is_what_there_is(fresh):
    fresh.post("/v1/completions", {"prompt": "say:a", "stream": False})
    rows = []
    for family in families(fresh.get("/metrics").text):
        if family.name.startswith("octavo_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            rows.append(f"| `{name}` | {family.type} | {family.documentation} |")
    table = OPERATIONS.read_text(encoding="utf-8").splitlines()
    assert [line for line in table if line.startswith("| `octavo_")] == sorted(rows)
