"""A run as a Chrome trace (ui.perfetto.dev): replicas as processes, requests as spans, load as counters.

Format: "Trace Event Format" of the Catapult project; times in microseconds.
"""

from __future__ import annotations

import heapq
from typing import Any

from octavo.sim.served import Served
from octavo.sim.world import Outcome

NS_PER_US = 1000


def trace_events(outcome: Outcome) -> dict[str, Any]:
    """The whole document. Requests of a replica lie in as few lanes as do not overlap."""
    events: list[dict[str, Any]] = []
    for tally in outcome.tallies:
        events.append(_name("process_name", tally.replica, 0, f"replica {tally.replica}"))
        for at_ns, seqs, used, waiting in tally.samples:
            for name, value in (("sequences", seqs), ("KV blocks", used), ("waiting", waiting)):
                events.append(
                    {
                        "name": name,
                        "ph": "C",
                        "pid": tally.replica,
                        "ts": at_ns / NS_PER_US,
                        "args": {name: value},
                    }
                )
    free: dict[int, list[int]] = {}
    busy: dict[int, list[tuple[int, int]]] = {}
    lanes: dict[int, int] = {}
    for served in sorted(outcome.served, key=lambda one: (one.job.at_ns, one.job.number)):
        replica = served.replica
        lane = _lane(served, free.setdefault(replica, []), busy.setdefault(replica, []), lanes)
        events += _spans(served, lane)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _lane(served: Served, free: list[int], busy: list[tuple[int, int]], lanes: dict[int, int]) -> int:
    """The lowest lane of its replica in which nothing lies any more."""
    while busy and busy[0][0] <= served.job.at_ns:
        heapq.heappush(free, heapq.heappop(busy)[1])
    if free:
        lane = heapq.heappop(free)
    else:
        lane = lanes[served.replica] = lanes.get(served.replica, 0) + 1
    heapq.heappush(busy, (served.ended_ns or served.last_ns, lane))
    return lane


def _spans(served: Served, lane: int) -> list[dict[str, Any]]:
    ended_ns = served.ended_ns if served.ended_ns is not None else served.last_ns
    scheduled_ns = ended_ns if served.scheduled_ns is None else served.scheduled_ns
    first_ns = ended_ns if served.first_ns is None else served.first_ns
    spans = [
        ("queue", served.job.at_ns, scheduled_ns),
        ("prefill", scheduled_ns, first_ns),
        ("decode", first_ns, ended_ns),
    ]
    args = {
        "request": served.request_id,
        "prompt_tokens": served.num_prompt_tokens,
        "output_tokens": served.num_tokens,
        "cached_tokens": served.num_cached_tokens,
        "preemptions": served.preemptions,
        "reason": served.reason,
    }
    return [
        {
            "name": name,
            "ph": "X",
            "pid": served.replica,
            "tid": lane,
            "ts": begin / NS_PER_US,
            "dur": (end - begin) / NS_PER_US,
            "args": args,
        }
        for name, begin, end in spans
        if end > begin
    ]


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
