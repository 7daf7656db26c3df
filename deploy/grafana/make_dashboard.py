"""Writes dashboards/octavo.json: python deploy/grafana/make_dashboard.py

The board is written down here, because its JSON is too long to be read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("dashboards") / "octavo.json"
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT = 8, 8
PER_ROW = 24 // WIDTH
OF = '{instance=~"$instance"}'
RATE = "[$__rate_interval]"

Query = tuple[str, str]
Panel = tuple[str, str, str, list[Query]]


def quantiles(name: str, *wanted: float) -> list[Query]:
    """Quantiles of one of our histograms."""
    buckets = f"sum by (le) (rate(octavo_{name}_seconds_bucket{OF}{RATE}))"
    return [(f"histogram_quantile({q}, {buckets})", f"p{q * 100:g}") for q in wanted]


def rate(name: str, *by: str, only: str = "") -> str:
    labels = OF[:-1] + (f",{only}" if only else "") + "}"
    return f"sum by ({', '.join(by)}) (rate(octavo_{name}{labels}{RATE}))"


def mean(name: str) -> Query:
    total, count = (f"sum(rate(octavo_{name}_seconds_{part}{OF}{RATE}))" for part in ("sum", "count"))
    return f"{total} / {count}", name


def now(name: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) (octavo_{name}{OF})"


ROWS: dict[str, list[Panel]] = {
    "Service": [
        ("Requests", "reqps", "by how they ended", [(rate("requests_total", "outcome"), "{{outcome}}")]),
        (
            "Refused and failed",
            "reqps",
            "by code",
            [(rate("requests_total", "code", only='outcome=~"refused|failed"'), "{{code}}")],
        ),
        ("Tokens", "short", "per second", [(rate("tokens_total", "direction"), "{{direction}}")]),
        ("Time to first token", "s", "from a request's arrival", quantiles("ttft", 0.5, 0.95, 0.99)),
        ("Time per output token", "s", "after the first", quantiles("tpot", 0.5, 0.95, 0.99)),
        ("Gaps between tokens", "s", "", quantiles("itl", 0.5, 0.95, 0.99)),
        ("Whole answers", "s", "from arrival to the last token", quantiles("e2e", 0.5, 0.95, 0.99)),
        ("Queue, prefill, decode", "s", "means", [mean("queue"), mean("prefill"), mean("decode")]),
        (
            "Turned away",
            "reqps",
            "for want of room or time, and for rates",
            [
                (rate("gateway_dropped_total", "reason"), "{{reason}}"),
                (rate("tenant_throttled_total"), "rate limits"),
            ],
        ),
    ],
    "Engines": [
        (
            "Sequences",
            "short",
            "with memory, and waiting",
            [
                (now("requests_running", "replica"), "{{replica}} running"),
                (now("requests_waiting", "replica"), "{{replica}} waiting"),
            ],
        ),
        ("Steps", "s", "one forward pass", quantiles("engine_step", 0.5, 0.99)),
        (
            "Computed",
            "short",
            "positions per second",
            [(rate("computed_tokens_total", "replica"), "{{replica}}")],
        ),
        (
            "Tokens in a step",
            "short",
            "mean",
            [
                (
                    f"{rate('batch_tokens_sum', 'replica')} / {rate('batch_tokens_count', 'replica')}",
                    "{{replica}}",
                )
            ],
        ),
        ("KV blocks", "short", "by state", [(now("kv_blocks", "state"), "{{state}}")]),
        ("KV memory in use", "percentunit", "", [(f"octavo_kv_usage_ratio{OF}", "{{replica}}")]),
        (
            "Found in the cache",
            "percentunit",
            "of the prompt tokens that were looked up",
            [
                (
                    f"{rate('prefix_cache_hit_tokens_total', 'replica')} / "
                    f"{rate('prefix_cache_query_tokens_total', 'replica')}",
                    "{{replica}}",
                )
            ],
        ),
        (
            "Evicted, preempted",
            "short",
            "per second",
            [
                (rate("prefix_cache_evicted_blocks_total", "replica"), "{{replica}} blocks evicted"),
                (rate("preemptions_total", "replica"), "{{replica}} sequences preempted"),
            ],
        ),
        (
            "State",
            "short",
            "1 while an engine takes requests",
            [
                (f"octavo_replica_up{OF}", "{{replica}} up"),
                (f"increase(octavo_engine_restarts_total{OF}{RATE})", "{{replica}} restarts"),
            ],
        ),
        ("Since the last step", "s", "", [(f"octavo_engine_last_step_age_seconds{OF}", "{{replica}}")]),
    ],
    "Tenants and the front": [
        (
            "Tokens by tenant",
            "short",
            "per second",
            [(rate("tenant_service_tokens_total", "tenant"), "{{tenant}}")],
        ),
        ("Fairness gap", "short", "weighted tokens", [(f"octavo_fairness_gap_tokens{OF}", "{{replica}}")]),
        ("Batch lines", "short", "per second", [(rate("batch_lines_total", "result"), "{{result}}")]),
        ("Batches", "short", "that have not ended", [(now("batch_jobs", "state"), "{{state}}")]),
        (
            "Deadlines",
            "reqps",
            "requests that had one",
            [(rate("slo_requests_total", "class", "met"), "{{class}}, met: {{met}}")],
        ),
        (
            "In the front",
            "short",
            "requests",
            [
                (now("gateway_inflight"), "in flight"),
                (now("gateway_queue_depth"), "waiting for an engine"),
                (rate("gateway_resumed_total"), "resumed per second"),
            ],
        ),
        ("Event loop lag", "s", "", [(f"octavo_event_loop_lag_seconds{OF}", "{{instance}}")]),
        (
            "The front's process",
            "bytes",
            "memory",
            [(f"process_resident_memory_bytes{OF}", "{{instance}}")],
        ),
    ],
}


def board() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    top = 0
    for row, members in ROWS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row,
                "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
            }
        )
        top += 1
        for place, (title, unit, description, queries) in enumerate(members):
            x, y = place % PER_ROW * WIDTH, top + place // PER_ROW * HEIGHT
            panels.append(_panel(len(panels) + 1, title, unit, description, queries, x, y))
        top += -(-len(members) // PER_ROW) * HEIGHT
    instances = {
        "name": "instance",
        "label": "Server",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": "label_values(octavo_build_info, instance)", "refId": "instance"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }
    return {
        "uid": "octavo",
        "title": "Octavo",
        "schemaVersion": 39,
        "tags": ["octavo"],
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {"list": [instances]},
        "panels": panels,
    }


def _panel(
    number: int, title: str, unit: str, description: str, queries: list[Query], x: int, y: int
) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 8}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend}
            for place, (expr, legend) in enumerate(queries)
        ],
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(board(), indent=1) + "\n", encoding="utf-8")
