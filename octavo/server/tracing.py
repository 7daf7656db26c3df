"""The spans of one request, by the names of OpenTelemetry's HTTP and GenAI conventions.

POST /v1/chat/completions                 SERVER
  chat quire                              from admission to the last token
    octavo.queue, octavo.prefill, octavo.decode    one of each per prompt
"""

from __future__ import annotations

from octavo.link import frames
from octavo.obs.traces import Span, Value
from octavo.server.running import Running

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


def request_span(
    *,
    method: str,
    route: str,
    status: int,
    start_s: float,
    end_s: float,
    request_id: str,
    tenant_id: str,
    model: str,
    error: str | None,
    running: Running | None,
) -> Span:
    """All of a request that has ended. No text of it is in any span."""
    attributes: dict[str, Value] = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status,
        "octavo.request.id": request_id,
        "octavo.tenant": tenant_id,
    }
    children = (
        () if running is None else (_model_span(running, OPERATIONS.get(route, "chat"), model, end_s, error),)
    )
    return Span(f"{method} {route}", start_s, end_s, attributes, error, children)


def _model_span(running: Running, operation: str, model: str, end_s: float, error: str | None) -> Span:
    marks, params = running.marks, running.submits[0].params
    given: dict[str, Value | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "octavo",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.choice.count": params.n if params.n > 1 else None,
        "gen_ai.usage.input_tokens": running.num_prompt_tokens,
        "gen_ai.usage.output_tokens": marks.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": marks.cached_tokens,
        "gen_ai.response.time_to_first_chunk": None
        if marks.first_s is None
        else marks.first_s - marks.received_s,
    }
    attributes = {name: value for name, value in given.items() if value is not None}
    start_s = min(submit.arrival_s for submit in running.submits)
    children = tuple(span for ended in marks.ended for span in _engine_spans(ended))
    return Span(f"{operation} {model}", start_s, end_s, attributes, error, children)


def _engine_spans(ended: frames.Ended) -> list[Span]:
    """What the engine says of one prompt. Its clock is this machine's."""
    told, spans = ended.metrics, list[Span]()
    if told.first_scheduled_s is None:
        return spans
    spans.append(Span("octavo.queue", told.arrival_s, told.first_scheduled_s))
    if told.first_token_s is None or told.finished_s is None:
        return spans
    cached: dict[str, Value] = {"octavo.cached_tokens": ended.usage.cached_prompt_tokens}
    if told.cache_miss_reason is not None:
        cached["octavo.cache_miss_reason"] = told.cache_miss_reason
    spans.append(Span("octavo.prefill", told.first_scheduled_s, told.first_token_s, cached))
    decode: dict[str, Value] = {"octavo.preemptions": told.preemptions}
    spans.append(Span("octavo.decode", told.first_token_s, told.finished_s, decode))
    return spans
