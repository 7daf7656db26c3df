"""Whose turn it is, when requests of several clients wait: the client's that has been served least.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2): each
client has a count of the service it has had, in weighted tokens. The next turn of the best waiting priority goes to
the client with the lowest count; its requests go in order of arrival. Whoever comes back after having had nothing
waiting is lifted to the lowest count of those who wait, so that nobody saves service up.

A turn is given when the request begins (or steps aside for a prefix) and never taken back: from then on its place is
fixed, as `planning.py` needs it to be. So that long answers of one client do not hold every seat until they end, a
client gets no turn while it has an equal share of the seats and another has been served less lately, counting those who
have asked lately for something of its priority or a better one; and never the last eighth of the seats, where others
have been seen at all. What was served lately fades, and nobody is lifted there: it tells who asks for little.
With one client the turns are the order of arrival.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.core.roster import Group
    from octavo.core.sequence import Request

INPUT_COST = 1.0
CACHED_COST = 0.1
"""Of an input token read from the prefix cache: it takes memory, and next to no computing."""
OUTPUT_COST = 2.0
"""An output token takes a share of a whole step. Section 4.1 of the paper has 1 and 2, after the prices of services."""


KEPT_SEATS = 8
"""One of so many seats is for others than the client that has the rest."""
SOON_S = 2.0
"""Whoever asked within that time, or has something here, may well ask again before a long step ends."""
LATELY_S = 10.0
"""Whoever asked within that time counts as somebody who asks; and what was served that long ago counts half."""


@dataclass(slots=True)
class Client:
    """One client's requests that wait for their turn, by priority, and the seats it has.

    best    priority of what it has asked for
    served  the service it has had, for turns
    lately  what of it had not faded when it was last charged, at `charged_s`
    """

    best: int | None = None
    served: float = 0.0
    lately: float = 0.0
    charged_s: float = 0.0
    num_seats: int = 0
    lines: dict[int, deque[Group]] = field(default_factory=dict)


class Turns:
    """Requests that wait for their turn. Clients are remembered; their number is the caller's to bound.

    now_s  the latest time the scheduler was told
    """

    def __init__(self, num_seats: int) -> None:
        self.now_s = float("-inf")
        self._num_seats = num_seats
        self._asked: dict[int, OrderedDict[str, float]] = {}
        self._known: Counter[int] = Counter()
        self.clients: dict[str, Client] = {}
        self._num_waiting: dict[int, int] = {}
        self._level = 0.0
        self._in_line: dict[str, Client] = {}
        self._is_for_all = False

    @contextmanager
    def for_all(self) -> Iterator[None]:
        """Meanwhile nobody's seats are held against him: nothing runs that could give one back."""
        self._is_for_all = True
        try:
            yield
        finally:
            self._is_for_all = False

    def __len__(self) -> int:
        """Requests that wait here."""
        return sum(self._num_waiting.values()) if self._num_waiting else 0

    @property
    def num_sequences(self) -> int:
        if not self._in_line:
            return 0
        lines = (line for client in self._in_line.values() for line in client.lines.values())
        return sum(len(group.members) for line in lines for group in line)

    @property
    def best_priority(self) -> int | None:
        """Of those that wait and may have a turn; None when nobody does."""
        if not self._in_line:
            return None
        return min((priority for _, priority in self._eligible()), default=None)

    @property
    def has_rivals(self) -> bool:
        """Whether more than one client has ever asked for anything."""
        return sum(self._known.values()) > 1

    @property
    def oldest_s(self) -> float:
        """When whoever asked longest ago did; nothing changes here by time alone until LATELY_S after it."""
        return min((next(iter(asked.values())) for asked in self._asked.values()), default=math.inf)

    def may_begin(self, request: Request) -> bool:
        """Whether its client's seats let it have a turn."""
        client = self.clients[request.client]
        return client.num_seats < self._limit(client, self._measure(request.priority))

    def _measure(self, priority: int) -> tuple[int, float] | None:
        """How many have asked lately for something that good or better, and the least that one has had lately.

        None where there has never been but one of them.
        """
        if sum(count for best, count in self._known.items() if best <= priority) < 2:
            return None
        asking = [name for other, asked in self._asked.items() if other <= priority for name in asked]
        return len(asking), min((self._lately(self.clients[name]) for name in asking), default=0.0)

    def _lately(self, client: Client) -> float:
        """The service it has had lately, as of now. Changes nothing, so that who only looks changes no decision."""
        if not client.lately:
            return 0.0
        return client.lately * math.exp2((client.charged_s - self.now_s) / LATELY_S)

    def _limit(self, client: Client, measure: tuple[int, float] | None) -> int:
        """Seats with which it gets no turn."""
        if measure is None or self._is_for_all:
            return self._num_seats + 1
        num_asking, least = measure
        most = self._num_seats - self._num_seats // KEPT_SEATS
        return max(min(most, self._num_seats // num_asking), 1) if self._lately(client) > least else most

    def _eligible(self) -> list[tuple[Client, int]]:
        """Clients that wait and may have a turn, each with the priorities of what may."""
        if not self._in_line:
            return []
        measures = {priority: self._measure(priority) for priority in self._num_waiting}
        return [
            (client, priority)
            for client in self._in_line.values()
            for priority in client.lines
            if client.num_seats < self._limit(client, measures[priority])
        ]

    def tell(self, now_s: float) -> None:
        """It is later now: those who have not asked lately, and have nothing here, are no longer counted."""
        self.now_s = now_s
        for priority, asked in list(self._asked.items()):
            while asked:
                name, since_s = next(iter(asked.items()))
                if self.now_s - since_s <= LATELY_S:
                    break
                client = self.clients[name]
                if client.num_seats or client.lines:
                    asked[name] = self.now_s
                    asked.move_to_end(name)
                else:
                    del asked[name]
            if not asked:
                del self._asked[priority]

    @property
    def gap(self) -> float:
        """Between the most and the least served client of those that wait, in weighted tokens."""
        served = [client.served for client in list(self._in_line.values())]
        return max(served) - min(served) if served else 0.0

    def add(self, group: Group) -> None:
        """Wait for a turn, behind the client's others of that priority."""
        client = self.clients.setdefault(group.request.client, Client())
        if not client.lines:
            waiting = [other.served for other in self._in_line.values()]
            client.served = max(client.served, min(waiting, default=self._level))
            self._in_line[group.request.client] = client
        priority = group.request.priority
        if client.best is None or priority < client.best:
            self._known[priority] += 1
            if client.best is not None:
                self._known[client.best] -= 1
            client.best = priority
        asked = self._asked.setdefault(priority, OrderedDict())
        asked[group.request.client] = self.now_s
        asked.move_to_end(group.request.client)
        client.lines.setdefault(priority, deque()).append(group)
        self._num_waiting[priority] = self._num_waiting.get(priority, 0) + 1

    def head(self) -> Group | None:
        """Whose turn is next; None when nobody waits that may have one.

        Of those who tie, and whoever has been lifted does, it is who has been served less lately; then who came first.
        """
        if not self._in_line:
            return None
        eligible = self._eligible()
        best = min((priority for _, priority in eligible), default=None)
        if best is None:
            return None
        ready = [client for client, priority in eligible if priority == best]
        first = min(ready, key=lambda one: (one.served, self._lately(one), one.lines[best][0].arrival))
        return first.lines[best][0]

    def remove(self, group: Group) -> None:
        """It waits here no longer: its turn has come, or it has ended."""
        client, priority = self.clients[group.request.client], group.request.priority
        line = client.lines[priority]
        line.remove(group)
        if not line:
            del client.lines[priority]
        if not client.lines:
            self._level = client.served
            del self._in_line[group.request.client]
        self._num_waiting[priority] -= 1
        if not self._num_waiting[priority]:
            del self._num_waiting[priority]

    def is_behind(self, request: Request, other: Request) -> bool:
        """Whether the client of `request` has been served less than that of `other`."""
        return self.clients[request.client].served < self.clients[other.client].served

    def num_eligible(self, priority: int) -> int:
        """Clients that wait for something of that priority and may have a turn."""
        return sum(other == priority for _, other in self._eligible())

    def has_had_more(self, request: Request) -> bool:
        """Whether it has been served more lately than somebody who may ask again any moment."""
        had = self._lately(self.clients[request.client])
        return any(had > self._lately(other) for other in self._near(request))

    def is_outranked(self, request: Request) -> bool:
        """Whether somebody who may ask again any moment has a better priority."""
        return any(True for _ in self._near(request, only_better=True))

    def _near(self, request: Request, *, only_better: bool = False) -> Iterator[Client]:
        """Those that asked a moment ago or, if it is another, have something here: others for that priority or a
        better one, the client itself for a better one.
        """
        for priority, asked in self._asked.items():
            if priority > request.priority or (only_better and priority == request.priority):
                continue
            for name, asked_s in asked.items():
                other, is_other = self.clients[name], name != request.client
                is_here = is_other and (other.num_seats > 0 or bool(other.lines))
                may_ask = (is_other or priority < request.priority) and self.now_s - asked_s <= SOON_S
                if is_here or may_ask:
                    yield other

    def seated(self, request: Request, change: int) -> None:
        """So many seats more, or less, are taken by this request."""
        self.clients[request.client].num_seats += change

    def charge(self, request: Request, cost: float) -> None:
        """Add `cost` weighted tokens, times the request's own weight; what is negative is given back."""
        client = self.clients[request.client]
        weighted = cost * request.cost_weight
        client.served += weighted
        if client.charged_s != self.now_s:
            client.lately = self._lately(client)
            client.charged_s = self.now_s
        client.lately += weighted
