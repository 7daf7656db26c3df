"""Spans as a collector gets them, and that a collector that hangs costs nothing but spans (F23)."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from octavo.core.sequence import SamplingParams
from octavo.link import frames
from octavo.server.running import Running
from octavo.server.tracing import request_span
from tests.server.process import Served, serving
from tests.server.test_metrics import families

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector(ThreadingHTTPServer):
    """Takes spans in."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = ExportTraceServiceRequest()
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                asked.ParseFromString(body)
                for resource in asked.resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        super().__init__(("127.0.0.1", 0), Handler)

    def until(self, count: int) -> list[Any]:
        deadline_s = time.monotonic() + 30
        while len(self.spans) < count:
            assert time.monotonic() < deadline_s, [span.name for span in self.spans]
            time.sleep(0.05)
        return self.spans


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()


def attributes(span: Any) -> dict[str, Any]:
    kinds = {"string_value", "int_value", "double_value", "bool_value"}
    return {
        one.key: next(getattr(one.value, kind) for kind in kinds if one.value.HasField(kind))
        for one in span.attributes
    }


def test_a_request_is_a_tree_of_spans_without_its_text(folder, collector):
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    with serving([str(folder), "--otlp-endpoint", endpoint]) as served:
        body = {"messages": [{"role": "user", "content": "say:canary"}], "max_tokens": 9, "seed": 3}
        answer = served.post("/v1/chat/completions", body, headers={"traceparent": PARENT})
        assert answer.status_code == 200
        served.get("/health")
        refused = served.post("/v1/completions", {"prompt": "!refuse canary"})
        assert refused.status_code == 400
        served.process.terminate()
        served.process.wait(20)
        spans = {span.name: span for span in collector.until(4)}
    server, chat = spans["POST /v1/chat/completions"], spans["chat fake"]
    assert server.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert server.parent_span_id.hex() == "b7ad6b7169203331"
    assert chat.parent_span_id == server.span_id
    assert server.start_time_unix_nano <= chat.start_time_unix_nano <= chat.end_time_unix_nano
    assert abs(server.end_time_unix_nano / 1e9 - time.time()) < 60
    told = attributes(server)
    assert (told["http.route"], told["http.response.status_code"]) == ("/v1/chat/completions", 200)
    assert told["octavo.request.id"] == answer.headers["x-request-id"]
    said = attributes(chat)
    assert (said["gen_ai.operation.name"], said["gen_ai.request.seed"]) == ("chat", 3)
    assert (said["gen_ai.request.max_tokens"], said["gen_ai.usage.output_tokens"]) == (9, len("canary"))
    assert attributes(spans["POST /v1/completions"])["error.type"] == "context_length_exceeded"
    assert "canary" not in str(collector.spans)
    assert not any("/health" in name for name in spans)


def values(served: Served) -> dict[str, float]:
    (family,) = [one for one in families(served.get("/metrics").text) if one.name == "octavo_trace_spans"]
    return {sample.labels["result"]: sample.value for sample in family.samples}


@contextlib.contextmanager
def hanging() -> Iterator[int]:
    """A port that takes connections in and never says anything."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


def test_f23_a_collector_that_hangs_costs_spans_and_nothing_else(folder):
    with hanging() as port, serving([str(folder), "--otlp-endpoint", f"http://127.0.0.1:{port}"]) as served:
        slowest_s = 0.0
        for _ in range(1100):
            began_s = time.monotonic()
            assert served.get("/v1/models").status_code == 200
            slowest_s = max(slowest_s, time.monotonic() - began_s)
        assert served.post("/v1/completions", {"prompt": "say:x"}).status_code == 200
        assert slowest_s < 2
        deadline_s = time.monotonic() + 30
        while values(served)["dropped"] < 512:
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
        assert values(served)["sent"] == 0
        began_s = time.monotonic()
        served.process.terminate()
        assert served.process.wait(20) == 0
        assert time.monotonic() - began_s < 10


def test_a_collector_that_is_not_there_is_no_reason_not_to_serve(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving([str(folder), "--otlp-endpoint", f"http://127.0.0.1:{port}"]) as served:
        assert served.post("/v1/completions", {"prompt": "say:x"}).status_code == 200


def test_what_the_engine_says_of_a_prompt_is_below_the_model():
    submit = frames.Submit(
        request_id="r", prompt_token_ids=(1, 2, 3), params=SamplingParams(max_tokens=2), arrival_s=10.0
    )
    running = Running([submit])
    metrics = frames.Metrics(
        arrival_s=10.0,
        first_scheduled_s=10.5,
        first_token_s=11.0,
        finished_s=12.0,
        preemptions=1,
        cache_miss_reason="never_seen",
    )
    usage = frames.Usage(prompt_tokens=3, completion_tokens=2, cached_prompt_tokens=1)
    running.deliver(frames.Ended(request_id="r", usage=usage, metrics=metrics))
    span = request_span(
        method="POST",
        route="/v1/completions",
        status=200,
        start_s=9.5,
        end_s=12.5,
        request_id="req",
        tenant_id="a",
        model="m",
        error=None,
        running=running,
    )
    (model,) = span.children
    assert (model.name, model.start_s, model.end_s) == ("text_completion m", 10.0, 12.5)
    assert [(one.name, one.start_s, one.end_s) for one in model.children] == [
        ("octavo.queue", 10.0, 10.5),
        ("octavo.prefill", 10.5, 11.0),
        ("octavo.decode", 11.0, 12.0),
    ]
    assert model.children[1].attributes == {
        "octavo.cached_tokens": 1,
        "octavo.cache_miss_reason": "never_seen",
    }
    assert span.count == 5
