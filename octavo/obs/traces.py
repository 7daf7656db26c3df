"""Spans over OTLP, by the OpenTelemetry SDK: the extra `octavo[traces]`.

Spans are made when a request has ended, from the times it has noted, so nothing waits for them. A collector that is
slow or gone costs spans, which are counted, and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

MAX_PENDING = 2048
EXPORT_TIMEOUT_S = 5.0
CLOSING_S = 2.0

Value = str | bool | int | float | Sequence[str]


@dataclass(frozen=True, slots=True)
class Span:
    """One interval of a request's life.

    start_s, end_s  on the monotonic clock
    error           a code, where it ended with one
    children        within it
    """

    name: str
    start_s: float
    end_s: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    error: str | None = None
    children: tuple[Span, ...] = ()

    @property
    def count(self) -> int:
        return 1 + sum(child.count for child in self.children)


class Traces:
    """Sends spans to a collector.

    endpoint     of OTLP over HTTP, such as http://127.0.0.1:4318
    num_made     spans; of these num_sent have arrived, and num_dropped never will
    Raises ConfigError where the extra is not installed.
    """

    def __init__(self, endpoint: str, version: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError("otlp_endpoint needs OpenTelemetry: pip install 'octavo[traces]'") from error
        self.num_made = self.num_dropped = self.num_sent = 0
        url = endpoint.rstrip("/") + "/v1/traces"
        exporter = _counting(self, OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S))
        resource = Resource.create({"service.name": "octavo", "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=2 * MAX_PENDING))
        self._tracer = self._provider.get_tracer("octavo", version)

    def note(self, span: Span, headers: Mapping[str, str], epoch_s: float) -> None:
        """A request has ended; `headers` are its own, where `traceparent` may name what it belongs to.

        epoch_s  what the monotonic clock's zero is in Unix seconds
        """
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.num_made += span.count
        if self.num_made - self.num_sent - self.num_dropped > MAX_PENDING:
            self.num_dropped += span.count
            return
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        self._emit(span, TraceContextTextMapPropagator().extract(carrier), epoch_s)

    def _emit(self, span: Span, context: Any, epoch_s: float, *, is_inner: bool = False) -> None:
        from opentelemetry import trace

        made = self._tracer.start_span(
            span.name,
            context,
            kind=trace.SpanKind.INTERNAL if is_inner else trace.SpanKind.SERVER,
            attributes=dict(span.attributes),
            start_time=_ns(span.start_s + epoch_s),
        )
        if span.error is not None:
            made.set_attribute("error.type", span.error)
            made.set_status(trace.StatusCode.ERROR)
        for child in span.children:
            self._emit(child, trace.set_span_in_context(made), epoch_s, is_inner=True)
        made.end(_ns(span.end_s + epoch_s))

    def close(self) -> None:
        """Send what is left, unless that takes too long."""
        flushing = threading.Thread(target=self._provider.force_flush, daemon=True)
        flushing.start()
        flushing.join(CLOSING_S)


def _ns(at_s: float) -> int:
    return int(at_s * 1e9)


def _counting(traces: Traces, inner: SpanExporter) -> SpanExporter:
    """The exporter, counting what arrives and what does not."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Counting(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = SpanExportResult.FAILURE
            try:
                result = inner.export(spans)
            finally:
                if result is SpanExportResult.SUCCESS:
                    traces.num_sent += len(spans)
                else:
                    traces.num_dropped += len(spans)
            return result

        def shutdown(self) -> None:
            inner.shutdown()

    return Counting()
