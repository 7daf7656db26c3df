"""A recording as a Chrome trace (ui.perfetto.dev): engines as processes; steps, requests by cause, load as counters.

Format: "Trace Event Format" of the Catapult project; times in microseconds from the first entry.
"""

from __future__ import annotations

import heapq
from typing import Any

from octavo.explain.story import Story
from octavo.explain.trail import Trail

STEPS = 0
"""The lane of an engine's steps; requests lie in those above."""


def trace_events(story: Story) -> dict[str, Any]:
    """The whole document."""
    from_s = min((trail.span_s[0] for trail in story.trails), default=0.0)
    for _, _, ledger in story.ended():
        from_s = min(from_s, ledger.from_s)
    events: list[dict[str, Any]] = []
    for trail in story.trails:
        events += _engine(trail, from_s)
    events += _requests(story, from_s)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _engine(trail: Trail, from_s: float) -> list[dict[str, Any]]:
    number = trail.engine
    events = [
        _named("process_name", number, 0, f"engine {number}"),
        _named("thread_name", number, STEPS, "steps"),
    ]
    for ran in trail.steps:
        chunks = sum(piece.num_tokens > 1 for piece in ran.slices)
        what = {"tokens": ran.num_tokens, "sequences": len(ran.slices), "prompts": chunks}
        events.append(_span(f"step {ran.number}", number, STEPS, ran.launched_s, ran.ended_s, from_s, what))
        for name, value in (("waiting", ran.num_waiting), ("free KV blocks", ran.num_free)):
            at_us = _us(ran.planned_s, from_s)
            events.append({"name": name, "ph": "C", "pid": number, "ts": at_us, "args": {name: value}})
    return events


def _requests(story: Story, from_s: float) -> list[dict[str, Any]]:
    """Each in a lane of its own while it lasts, with what it waited for or was computed in inside."""
    events: list[dict[str, Any]] = []
    free: dict[int, list[int]] = {}
    busy: dict[int, list[tuple[float, int]]] = {}
    count: dict[int, int] = {}
    for books, life, ledger in sorted(story.ended(), key=lambda one: one[2].from_s):
        number = books.trail.engine
        lanes, taken = free.setdefault(number, []), busy.setdefault(number, [])
        while taken and taken[0][0] <= ledger.from_s:
            heapq.heappush(lanes, heapq.heappop(taken)[1])
        if lanes:
            lane = heapq.heappop(lanes)
        else:
            lane = count[number] = count.get(number, STEPS) + 1
            events.append(_named("thread_name", number, lane, f"requests {lane}"))
        heapq.heappush(taken, (ledger.to_s, lane))
        what = {
            "prompt tokens": life.prompt_tokens,
            "output tokens": len(life.tokens_s),
            "client": life.client,
        }
        events.append(_span(life.request_id, number, lane, ledger.from_s, ledger.to_s, from_s, what))
        for line in ledger.lines:
            inside = {"detail": line.detail, "whose": line.who}
            to_s = line.from_s + line.seconds
            events.append(_span(line.cause, number, lane, line.from_s, to_s, from_s, inside))
    return events


def _span(
    name: str, process: int, lane: int, begin_s: float, end_s: float, from_s: float, what: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "ph": "X",
        "pid": process,
        "tid": lane,
        "ts": _us(begin_s, from_s),
        "dur": max((end_s - begin_s) * 1e6, 0.0),
        "args": {key: value for key, value in what.items() if value != ""},
    }


def _us(at_s: float, from_s: float) -> float:
    return (at_s - from_s) * 1e6


def _named(what: str, process: int, lane: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": process, "tid": lane, "args": {"name": name}}
