"""What the host adds to steps, from a recording that has been played again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from octavo.errors import ConfigError
from octavo.obs.flight import Served
from octavo.sim.recorded import Rehearsal
from octavo.sim.timing import Host

LEAST_IDLE = 5
"""Requests that found the engine idle: so few say nothing by themselves."""
QUICK = 10
"""Percentile of all that is taken instead: whoever comes while a step runs waits for its end."""


@dataclass(frozen=True, slots=True)
class Mark:
    """When a request was sent, and when its first token was there, on the clock of the recording."""

    request_id: str
    sent_s: float
    first_s: float


def host_of(rehearsal: Rehearsal) -> Host:
    """Medians of the pauses between steps, and of what lies between a step's end and its commit."""
    ahead = [one.gap_s for one in rehearsal.ran if one.was_ahead]
    behind = [one.gap_s for one in rehearsal.ran if not one.was_ahead]
    if not ahead and not behind:
        raise ConfigError("the recording holds no step that was carried out: there is nothing to measure")
    turn_s = max(median(ahead), 0.0) if ahead else 0.0
    return Host(
        turn_s=turn_s,
        plan_s=max(median(behind) - turn_s, 0.0) if behind else 0.0,
        reply_s=max(median(one.committed_s - one.ended_s for one in rehearsal.ran), 0.0),
    )


def front_of(rehearsal: Rehearsal, marks: Iterable[Mark]) -> tuple[float, float]:
    """(`Host.front_s`, `Host.reply_s`): medians over requests that a recording and their client both know.

    Raises ConfigError where there is none.
    """
    drawn_s = {request_id: one.ended_s for one in rehearsal.ran for request_id in one.firsts}
    known = [mark for mark in marks if mark.request_id in drawn_s and mark.request_id in rehearsal.submitted]
    if not known:
        raise ConfigError(
            "no request is in the recording and known to a client: the front cannot be measured"
        )
    ways = [(rehearsal.submitted[mark.request_id], mark) for mark in known]
    idle = [came_s - mark.sent_s for (came_s, was_idle), mark in ways if was_idle]
    front_s = (
        median(idle)
        if len(idle) >= LEAST_IDLE
        else float(np.percentile([came_s - mark.sent_s for (came_s, _), mark in ways], QUICK))
    )
    reply_s = median(mark.first_s - drawn_s[mark.request_id] for mark in known)
    return max(front_s, 0.0), max(reply_s, 0.0)


def marks_of(served: Iterable[Served]) -> list[Mark]:
    """Of a server's own answers to requests with one prompt each: from its receiving to the engine's first token."""
    return [
        Mark(one.prompts[0], one.received_s, one.first_s)
        for one in served
        if len(one.prompts) == 1 and one.first_s > 0 and len(one.placed) <= 1
    ]


def lone_marks(rehearsal: Rehearsal, sent: Sequence[tuple[float, float]], num_later: int = 0) -> list[Mark]:
    """Of requests sent one after another: (sent, first token) of each, in order; `num_later` others came after them."""
    ids = sorted(rehearsal.submitted, key=lambda one: rehearsal.submitted[one])
    ids = ids[: len(ids) - num_later][-len(sent) :] if sent else []
    return [Mark(request_id, *times) for request_id, times in zip(ids, sent, strict=False)]
