"""Every metric there is, by name. What each one says is its help text; `docs/operations.md` lists them.

Names begin with `octavo_`; counters end in `_total`, times in `_seconds`. Values a client chooses never become labels,
apart from tenants, of which the first `MAX_TENANTS` have their own and the rest are `other`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

disable_created_metrics()  # type: ignore[no-untyped-call]

PREFIX = "octavo_"
MAX_TENANTS = 200
TEXT = "text/plain; version=0.0.4; charset=utf-8"

FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640,
)  # fmt: skip
TOKEN_BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5,
)  # fmt: skip
LATENCY_BUCKETS = (
    0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 240, 480, 960, 1920,
)  # fmt: skip
LENGTH_BUCKETS = (*(digit * 10**power for power in range(6) for digit in (1, 2, 5)), 1_000_000)

VLLM_NAMES = {
    "ttft_seconds": "vllm:time_to_first_token_seconds",
    "itl_seconds": "vllm:inter_token_latency_seconds",
    "tpot_seconds": "vllm:request_time_per_output_token_seconds",
    "e2e_seconds": "vllm:e2e_request_latency_seconds",
    "queue_seconds": "vllm:request_queue_time_seconds",
    "prefill_seconds": "vllm:request_prefill_time_seconds",
    "decode_seconds": "vllm:request_decode_time_seconds",
    "request_prompt_tokens": "vllm:request_prompt_tokens",
    "request_output_tokens": "vllm:request_generation_tokens",
}


class Several:
    """One histogram under two names."""

    def __init__(self, histograms: Sequence[Histogram]) -> None:
        self._histograms = histograms

    def observe(self, value: float) -> None:
        for histogram in self._histograms:
            histogram.observe(value)


class Metrics:
    """The metrics the front process counts itself. What engines count is collected when somebody asks.

    compat  "vllm" gives histograms a second name
    """

    def __init__(self, *, compat: str | None = None) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._compat = compat
        self._tenants: set[str] = set()
        counter, histogram = self._counter, self._histogram
        self.requests = counter(
            "requests",
            "HTTP requests by route and how they ended: ok, refused, failed, cancelled",
            "endpoint",
            "outcome",
            "code",
        )
        self.tokens = counter(
            "tokens", "Tokens of requests that ran: input, of these cached, and output", "direction"
        )
        self.output_tokens_now = self.tokens.labels("output")
        self.tenant_tokens = counter("tenant_service_tokens", "Input and output tokens by tenant", "tenant")
        self.throttled = counter("tenant_throttled", "Requests refused for their tenant's rate", "tenant")
        self.dropped = counter(
            "gateway_dropped", "Requests turned away or given up, by the code they were told", "reason"
        )
        self.client_retries = counter("client_retries", "Requests that their client says are repetitions")
        self.batch_lines = counter("batch_lines", "Lines of batches that have a result", "result")
        self.ttft = histogram(
            "ttft_seconds", "From a request's arrival to its first token", FIRST_TOKEN_BUCKETS
        )
        self.tpot = histogram("tpot_seconds", "Mean time per output token after the first", TOKEN_BUCKETS)
        self.itl = histogram("itl_seconds", "Time between two arrivals of tokens", TOKEN_BUCKETS)
        self.e2e = histogram("e2e_seconds", "From a request's arrival to its last token", LATENCY_BUCKETS)
        self.queue = histogram("queue_seconds", "From admission to the first computed token", LATENCY_BUCKETS)
        self.prefill = histogram("prefill_seconds", "From there to the first drawn token", LATENCY_BUCKETS)
        self.decode = histogram("decode_seconds", "From the first drawn token to the last", LATENCY_BUCKETS)
        self.prompt_tokens = histogram("request_prompt_tokens", "Prompt tokens of a request", LENGTH_BUCKETS)
        self.output_tokens = histogram("request_output_tokens", "Output tokens of a request", LENGTH_BUCKETS)
        self.cached_tokens = histogram(
            "request_cached_tokens", "Prompt tokens of a request read from the cache", LENGTH_BUCKETS
        )
        self.overhead = histogram(
            "gateway_overhead_seconds",
            "From a request's arrival to when it is sent to an engine: read, rendered, tokenized, let in",
            FIRST_TOKEN_BUCKETS,
        )
        self.grammar_compile = histogram(
            "grammar_compile_seconds",
            "Trying a grammar out, the wait for others included",
            FIRST_TOKEN_BUCKETS,
        )
        self.objectives = counter(
            "slo_requests",
            "Requests with a deadline by whether the whole answer was there in time; refused ones were not",
            "class",
            "met",
        )
        self.stall = histogram(
            "stream_stall_seconds",
            "Waits of 0.1 s or more for a client to take what was sent",
            LATENCY_BUCKETS,
        )
        self.resume_gap = histogram(
            "gateway_resume_gap_seconds",
            "From the end of an engine to the next token of an answer it had begun",
            LATENCY_BUCKETS,
        )
        self.retry_after = histogram(
            "retry_after_seconds", "When refused requests were told to come back", LATENCY_BUCKETS
        )
        self.loop_lag = Gauge(
            PREFIX + "event_loop_lag_seconds",
            "How late the event loop last came back to a timer",
            registry=self.registry,
        )

    def tenant(self, tenant_id: str) -> str:
        """The label of a tenant."""
        if tenant_id not in self._tenants:
            if len(self._tenants) >= MAX_TENANTS:
                return "other"
            self._tenants.add(tenant_id)
        return tenant_id

    def shown(self, accept: str) -> tuple[bytes, str]:
        """All of it, and its content type: OpenMetrics for those who ask for it, else Prometheus' text."""
        if "application/openmetrics-text" in accept:
            return generate_openmetrics(self.registry), OPENMETRICS  # type: ignore[no-untyped-call]
        return generate_latest(self.registry), TEXT

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: Sequence[float]) -> Any:
        made = [Histogram(PREFIX + name, help, buckets=buckets, registry=self.registry)]
        if self._compat == "vllm" and name in VLLM_NAMES:
            made.append(Histogram(VLLM_NAMES[name], help, buckets=buckets, registry=self.registry))
        return made[0] if len(made) == 1 else Several(made)
