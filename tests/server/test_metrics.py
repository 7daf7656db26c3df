"""Numbers that agree with what clients have counted themselves, and are what Prometheus reads."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as families

from tests.server import jobs
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


def test_deadlines_kept_and_missed_are_counted(fresh):
    def ask(prompt: str, **more: Any) -> int:
        return send(fresh, "/v1/completions", {"prompt": prompt, **more}).status_code

    assert ask("say:abc", deadline_ms=60_000) == 200
    assert ask("say:abc", deadline_ms=60_000, stream=True) == 200
    assert ask("say:abc") == 200
    assert ask("!wait", deadline_ms=100) == 504
    assert ask("!refuse", deadline_ms=60_000) == 400
    send(fresh, "/v1/completions", {"prompt": "!error say:abcdef", "deadline_ms": 60_000})
    with fresh.client.stream(
        "POST", "/v1/completions", json={"prompt": "!wait", "stream": True, "deadline_ms": 60_000}
    ) as left:
        assert left.status_code == 200
    fresh.until(lambda health: health["requests"] == 0)
    found = samples(fresh)
    assert summed(found, "octavo_slo_requests_total", met="true") == 2
    assert summed(found, "octavo_slo_requests_total", met="false") == 3
    assert summed(found, "octavo_slo_requests_total", **{"class": "online"}) == 5


def test_a_client_that_stops_reading_is_seen(fresh):
    messages = [{"role": "user", "content": "!forever"}]
    asked = {"messages": messages, "stream": True, "max_tokens": 3000, "logprobs": True, "top_logprobs": 20}
    body = json.dumps(asked).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    url = httpx.URL(fresh.url)
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect((url.host, url.port))
        one.settimeout(30)
        one.sendall(head.encode() + body)
        fresh.until(lambda health: health["requests"] == 1)
        time.sleep(2)
        read = b""
        while part := one.recv(1 << 16):
            read = (read + part)[-100:]
        assert b"[DONE]" in read
    fresh.until(lambda health: health["requests"] == 0)
    found = samples(fresh)
    assert summed(found, "octavo_stream_stall_seconds_count") >= 1
    assert summed(found, "octavo_stream_stall_seconds_sum") > 0.5


def test_open_batches_are_counted_by_state(fresh):
    assert summed(samples(fresh), "octavo_batch_jobs") == 0
    assert not [name for name, _ in samples(fresh) if name == "octavo_batch_oldest_deadline_seconds"]
    batch = jobs.start(fresh.client, jobs.jsonl([jobs.chat_line(0, "!wait")]))
    fresh.until(lambda _: jobs.look(fresh.client, batch["id"])["status"] == "in_progress")
    found = samples(fresh)
    assert summed(found, "octavo_batch_jobs", state="in_progress") == 1
    assert summed(found, "octavo_batch_jobs") == 1
    assert 86_000 < summed(found, "octavo_batch_oldest_deadline_seconds") <= 86_400
    assert fresh.post(f"/v1/batches/{batch['id']}/cancel").status_code == 200
    jobs.ended(fresh.client, batch["id"])
    fresh.until(lambda _: summed(samples(fresh), "octavo_batch_jobs") == 0)


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
