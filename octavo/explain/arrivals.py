"""The requests of a recording, to be sent again in the simulator: who came when, with what, and what it got.

What is shared stays shared, beginnings of prompts and earlier answers that prompts go on after: the names that a
recording has for tokens are the same at all engines of a server.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from octavo.explain.figures import Figures
from octavo.explain.trail import Life, Trail
from octavo.obs.flight import Served, Submitted
from octavo.obs.replay import Prompts
from octavo.sim.recorded import outputs_of, spelled_of
from octavo.sim.spelling import Spelled
from octavo.sim.traces import Replay, Row, Trace
from octavo.sim.workload import Job, Workload


@dataclass(frozen=True, slots=True)
class Came:
    """One request.

    row      as it came; times from the first one's arrival
    ttft_s, tpot_s, e2e_s, gap_s  what it took, and its longest pause between two tokens; None for what never
                                  happened, and for one that did not end well
    """

    request_id: str
    row: Row
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    gap_s: float | None = None


@dataclass(slots=True)
class _Draft:
    """A request that is being put together from what each engine knows of it."""

    came_s: float
    spelled: Spelled
    entry: Submitted
    life: Life
    num_begun: int
    tokens_s: list[float]


def arrivals(figures: Figures) -> list[Came]:
    """In order of time. Refused ones are left out; those that had not ended may take all they had asked for."""
    drafts: dict[str, _Draft] = {}
    for trail in figures.trails:
        for draft in _drafts(trail):
            request_id = draft.entry.request_id
            before = drafts.get(request_id)
            if before is not None:
                came_s, life_tokens = min(before.came_s, draft.came_s), draft.life.tokens_s
                draft = before if before.life.submitted_s > draft.life.submitted_s else draft
                draft.came_s = came_s
                draft.tokens_s = sorted([*before.life.tokens_s, *life_tokens])
            drafts[request_id] = draft
    served = figures.story.served
    found = [_came(draft, served.get(request_id)) for request_id, draft in drafts.items()]
    known = {id(served[request_id]) for request_id in drafts if request_id in served}
    found += [
        _elsewhere(one) for one in {id(one): one for one in served.values()}.values() if id(one) not in known
    ]
    found = [one for one in found if figures.begin_s <= one.row.arrival_s < figures.end_s]
    found.sort(key=lambda one: (one.row.arrival_s, one.request_id))
    first_s = found[0].row.arrival_s if found else 0.0
    return [replace(one, row=replace(one.row, arrival_s=one.row.arrival_s - first_s)) for one in found]


def _drafts(trail: Trail) -> Iterator[_Draft]:
    prompts, outputs = Prompts(), outputs_of(trail.entries)
    for entry in trail.entries:
        if isinstance(entry, Submitted) and entry.refused is None:
            begun = max((len(names) // 4 for _, names in entry.begun), default=0)
            life = trail.lives[entry.request_id]
            spelled = spelled_of(entry, prompts.whole(entry), outputs.get(entry.seq_id, array("I")))
            yield _Draft(entry.now_s, spelled, entry, life, begun, life.tokens_s)


def _came(draft: _Draft, served: Served | None) -> Came:
    entry, life = draft.entry, draft.life
    num_tokens = draft.num_begun + -(-len(life.tokens_s) // max(len(life.seq_ids), 1))
    is_whole = life.ended_s is not None and life.reason not in ("cancelled", "error") and num_tokens > 0
    wanted = num_tokens if is_whole else max(entry.asked.max_tokens or 0, num_tokens, 1)
    came_s = draft.came_s if served is None else min(served.received_s, draft.came_s)
    left_s = life.ended_s if life.reason == "cancelled" else None
    row = Row(
        arrival_s=came_s,
        prompt_tokens=len(draft.spelled.prompt),
        output_tokens=wanted,
        spelled=draft.spelled,
        client=entry.client,
        priority=entry.priority,
        cancel_after_s=None if left_s is None else max(left_s - came_s, 0.0),
    )
    if not is_whole:
        return Came(entry.request_id, row, None, None, None)
    tokens_s = draft.tokens_s
    is_known = len(tokens_s) >= num_tokens
    first_s = tokens_s[0] if tokens_s and is_known else None
    last_s = tokens_s[-1] if tokens_s else None
    gap_s = max((b - a for a, b in pairwise(tokens_s)), default=None) if is_known else None
    sent_s = last_s
    if served is not None and served.first_s and served.ended is None:
        first_s, sent_s = served.first_s, served.sent_s
    return Came(entry.request_id, row, *_took(came_s, first_s, last_s, sent_s, num_tokens), gap_s)


def _took(
    came_s: float, first_s: float | None, last_s: float | None, sent_s: float | None, num_tokens: int
) -> tuple[float | None, float | None, float | None]:
    ttft_s = None if first_s is None else first_s - came_s
    e2e_s = None if sent_s is None else sent_s - came_s
    tpot_s = None
    if first_s is not None and last_s is not None and num_tokens > 1:
        tpot_s = max(last_s - first_s, 0.0) / (num_tokens - 1)
    return ttft_s, tpot_s, e2e_s


def _elsewhere(served: Served) -> Came:
    """Of one whose engine has gone, and its trail with it: only the front knows of it."""
    row = Row(
        arrival_s=served.received_s,
        prompt_tokens=max(served.prompt_tokens, 1),
        output_tokens=max(served.output_tokens, 1),
        client=served.tenant,
    )
    if served.ended is not None or not served.first_s:
        return Came(served.request_id, row, None, None, None)
    took = _took(served.received_s, served.first_s, served.last_s, served.sent_s, served.output_tokens)
    return Came(served.request_id, row, *took)


def busiest(came: list[Came], most: int) -> list[Came]:
    """So many that came one after another, among them as many of the slowest tenth as possible."""
    if len(came) <= most:
        return came
    whole = sorted((one.e2e_s for one in came if one.e2e_s is not None), reverse=True)
    least_s = whole[max(len(whole) // 10 - 1, 0)] if whole else 0.0
    slow = [one.e2e_s is not None and one.e2e_s >= least_s for one in came]
    count = best = sum(slow[:most])
    place = 0
    for index in range(1, len(came) - most + 1):
        count += slow[index + most - 1] - slow[index - 1]
        if count > best:
            best, place = count, index
    return came[place : place + most]


def workload(came: list[Came], *, is_public: bool = False) -> Workload:
    """The same arrivals. `is_public`: all namespaces share what they have in common."""
    first_s = came[0].row.arrival_s if came else 0.0
    rows = [replace(one.row, arrival_s=one.row.arrival_s - first_s) for one in came]
    if is_public:
        rows = [
            row if row.spelled is None else replace(row, spelled=replace(row.spelled, space=""))
            for row in rows
        ]
    return Replay(Trace("recording", tuple(rows)))


class Bounded:
    """A workload in which one client has at most so many requests at a time; the others of it wait outside.

    They count as sent when they are let in.
    """

    def __init__(self, inner: Workload, client: str, most: int) -> None:
        self._inner, self._client, self._most = inner, client, most
        self._held: list[Job] = []
        self._num_in = 0

    @property
    def follows(self) -> bool:
        return True

    @property
    def shares(self) -> bool:
        return self._inner.shares

    def arrivals(self) -> Iterator[Job]:
        self._held, self._num_in = [], 0
        for job in self._inner.arrivals():
            if job.client != self._client:
                yield job
            elif self._num_in < self._most:
                self._num_in += 1
                yield job
            else:
                self._held.append(job)

    def after(self, job: Job, now_ns: int, *, is_answered: bool) -> Job | None:  # noqa: ARG002
        if job.client != self._client:
            return None
        if not self._held:
            self._num_in -= 1
            return None
        following = self._held.pop(0)
        following.at_ns = max(following.at_ns, now_ns)
        return following
