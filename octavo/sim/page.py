"""A run as one HTML page: its figures and charts, drawn into it; nothing is fetched from anywhere."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from octavo.errors import ConfigError
from octavo.planner.page import html_figure, html_page, html_table
from octavo.sim.report import Line, lines
from octavo.sim.timing import NS_PER_S
from octavo.sim.world import Outcome
from octavo.units import format_seconds


def page(outcome: Outcome, document: dict[str, Any], title: str) -> str:
    """The whole page. `document` is what `report.summary` made of the outcome.

    Raises ConfigError when matplotlib is not installed.
    """
    found = lines(outcome)
    figures = [
        ("Time to first token, share of requests", _curve(found, "ttft_s")),
        ("Time per output token, share of requests", _curve(found, "tpot_s")),
        ("End to end, share of requests", _curve(found, "e2e_s")),
        ("Sequences in the step, replica by replica", _over_time(outcome, 1)),
        ("KV blocks in use", _over_time(outcome, 2)),
        ("Sequences waiting", _over_time(outcome, 3)),
    ]
    drawn = "".join(html_figure(svg, text) for text, svg in figures if svg)
    return html_page(title, _tables(document) + drawn)


def _tables(document: dict[str, Any]) -> str:
    columns = ("mean", "p50", "p90", "p95", "p99", "max")
    rows = [
        (text, *(format_seconds(spread[column]) for column in columns))
        for name, text in (
            ("ttft_s", "first token"),
            ("tpot_s", "per output token"),
            ("itl_s", "between tokens"),
            ("e2e_s", "end to end"),
            ("queue_s", "queue"),
        )
        if (spread := document[name]) is not None
    ]
    return html_table(rows, ("", *columns)) + html_table(facts_of(document))


def facts_of(document: dict[str, Any]) -> list[tuple[str, str]]:
    """What is no distribution, as (name, text)."""
    requests, rate = document["requests"], document["throughput"]
    facts = [
        ("requests", f"{requests['sent']} sent, {requests['answered']} answered"),
        (
            "cancelled, refused, resumed",
            f"{requests['cancelled']}, {requests['refused']}, {requests['resumed']}",
        ),
        ("duration", format_seconds(document["duration_s"])),
        (
            "throughput",
            f"{rate['output_tokens_per_s']:.1f} output tokens/s, {rate['requests_per_s']:.3f} requests/s",
        ),
        (
            "batch",
            f"{document['batch']['mean_seqs']:.2f} sequences, {document['batch']['mean_waiting']:.2f} waiting",
        ),
        ("KV use", f"{document['kv']['mean_use']:.1%} on average, {document['kv']['peak_use']:.1%} at most"),
        ("time in steps", f"{document['busy_share']:.1%}"),
        ("preemptions", str(document["preemptions"])),
        ("prompt tokens from the cache", f"{document['cache_hit_rate']:.1%}"),
    ]
    goodput, cost = document.get("goodput"), document.get("cost")
    if goodput is not None:
        verdict = "met" if goodput["is_met"] else "missed"
        facts.append(
            (
                "objective",
                f"{verdict}: {goodput['share']:.2%} good, {goodput['requests_per_s']:.3f} good requests/s",
            )
        )
    if cost is not None:
        facts.append(("cost", f"${cost['usd']:.2f}"))
        if cost["usd_per_million_output_tokens"] is not None:
            facts.append(("per million output tokens", f"${cost['usd_per_million_output_tokens']:.2f}"))
    return facts


def _curve(found: Sequence[Line], name: str) -> str:
    """Share of requests with at most so many seconds."""
    values = sorted(value for line in found if (value := getattr(line, name)) is not None)
    if not values:
        return ""
    shares = [(index + 1) / len(values) for index in range(len(values))]

    def draw(axes: Any) -> None:
        axes.step(values, shares, where="post", linewidth=1.2)
        axes.set_xlabel("seconds")
        axes.set_ylim(0, 1)

    return _svg(draw, name)


def _over_time(outcome: Outcome, column: int) -> str:
    def draw(axes: Any) -> None:
        for tally in outcome.tallies:
            if tally.samples:
                at = [sample[0] / NS_PER_S for sample in tally.samples]
                axes.step(at, [sample[column] for sample in tally.samples], where="post", linewidth=0.7)
        axes.set_xlabel("seconds")

    return _svg(draw, f"over time {column}")


def _svg(draw: Callable[[Any], None], salt: str) -> str:
    """One chart as SVG text; the same numbers give the same bytes."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            'charts need matplotlib: pip install "octavo[plan]", or leave --html out'
        ) from error
    with mpl.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 2.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.grid(visible=True, linewidth=0.3)
        draw(axes)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()
