"""An engine's entries as steps and lives: who computed what in which step, and what happened to each request."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from octavo.core.step import Slice
from octavo.errors import LoadError
from octavo.obs.flight import (
    Advanced,
    Cancelled,
    Closed,
    Committed,
    EngineEntry,
    Opened,
    Planned,
    Submitted,
)

NOT_PLANNED = "nothing was planned since it came"


@dataclass(slots=True)
class Ran:
    """One step that was committed. Times on the recording's clock.

    slices   what it computed; `start` is 0 where the recording does not reach back far enough to know it
    num_free, num_waiting  when it was planned
    """

    number: int
    planned_s: float
    slices: tuple[Slice, ...]
    num_free: int
    num_waiting: int
    launched_s: float = 0.0
    ended_s: float = 0.0
    committed_s: float = 0.0

    @property
    def num_tokens(self) -> int:
        return sum(piece.num_tokens for piece in self.slices)

    @property
    def took_s(self) -> float:
        return self.ended_s - self.launched_s


@dataclass(frozen=True, slots=True)
class Began:
    """A sequence of a request got memory, with so many tokens from the cache, and why not more."""

    at_s: float
    step: int
    seq_id: int
    num_cached: int
    why_not_more: str


@dataclass(slots=True)
class Life:
    """One request on one engine.

    prompt_tokens  how many; seq_ids: its sequences so far
    tokens_s       when tokens were committed, of all its sequences
    lost           when and why sequences gave their memory up
    ended_s        when the last sequence ended, and `reason`; None while any lives
    """

    request_id: str
    client: str
    priority: int
    namespace: bytes
    submitted_s: float
    prompt_tokens: int
    seq_ids: set[int]
    live: set[int] = field(default_factory=set)
    began: list[Began] = field(default_factory=list)
    lost: list[tuple[float, int, str]] = field(default_factory=list)
    tokens_s: list[float] = field(default_factory=list)
    refused: str | None = None
    ended_s: float | None = None
    reason: str | None = None

    @property
    def first_s(self) -> float | None:
        """When its first token was committed."""
        return self.tokens_s[0] if self.tokens_s else None

    def waits(self) -> list[tuple[float, float]]:
        """When no sequence of it had memory, in order of time; the last end may be infinite."""
        changes = [(one.at_s, 1, one.seq_id) for one in self.began]
        changes += [(at_s, 0, seq_id) for at_s, seq_id, _ in self.lost]
        had, since_s, found = set[int](), self.submitted_s, list[tuple[float, float]]()
        for at_s, begins, seq_id in sorted(changes):
            if begins:
                if not had:
                    found.append((since_s, at_s))
                had.add(seq_id)
            elif had:
                had.discard(seq_id)
                since_s = at_s
        return found if had else [*found, (since_s, math.inf)]


@dataclass(slots=True)
class Trail:
    """What one engine's entries tell.

    lives     by request id; a request that came before the recording begins is not there
    heads     when the head of the queue, or its reason, changed: (time, sequence, reason); -1 is nobody
    """

    engine: int
    opened: Opened
    entries: Sequence[EngineEntry]
    steps: list[Ran] = field(default_factory=list)
    lives: dict[str, Life] = field(default_factory=dict)
    owner: dict[int, str] = field(default_factory=dict)
    heads: list[tuple[float, int, str | None]] = field(default_factory=list)

    def head_at(self, at_s: float) -> tuple[int, str | None]:
        """Who was first in the queue at that time, and why it waited."""
        place = bisect_right(self.heads, at_s, key=lambda one: one[0]) - 1
        return self.heads[place][1:] if place >= 0 else (-1, None)

    @property
    def span_s(self) -> tuple[float, float]:
        """From the first thing that is known to the last."""
        times = [entry.now_s for entry in self.entries if hasattr(entry, "now_s")]
        return (min(times), max(times)) if times else (0.0, 0.0)


def follow(engine: int, entries: Sequence[EngineEntry]) -> Trail:
    """Read an engine's entries. Raises LoadError where they do not begin as they should."""
    opened = entries[0] if entries else None
    if not isinstance(opened, Opened):
        raise LoadError(f"the entries of engine {engine} do not say what they are of")
    trail = Trail(engine, opened, entries)
    _Follower(trail).follow()
    return trail


class _Follower:
    """Positions, epochs and steps in flight while a trail is followed."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail
        self._ends: dict[int, int] = {}
        self._epochs: dict[int, int] = {}
        self._flying: deque[Ran] = deque()

    def follow(self) -> None:
        for entry in self._trail.entries:
            match entry:
                case Submitted():
                    self._submitted(entry)
                case Planned():
                    self._planned(entry)
                case Committed():
                    self._committed(entry)
                case Cancelled():
                    for seq_id in entry.ended:
                        self._ended(seq_id, "cancelled", entry.now_s)
                case Closed():
                    if entry.was_live:
                        self._ended(entry.seq_id, entry.reason, entry.now_s)
                case Advanced():
                    self._advanced(entry)

    def _submitted(self, entry: Submitted) -> None:
        seq_ids = set(range(entry.seq_id, entry.seq_id + max(len(entry.begun), 1)))
        life = Life(
            request_id=entry.request_id,
            client=entry.client,
            priority=entry.priority,
            namespace=entry.namespace,
            submitted_s=entry.now_s,
            prompt_tokens=entry.num_known + len(entry.names) // 4,
            seq_ids=seq_ids,
            live=set(seq_ids),
            refused=entry.refused,
        )
        if entry.refused is not None:
            life.ended_s, life.reason, life.live = entry.now_s, "refused", set()
        else:
            self._trail.owner |= dict.fromkeys(seq_ids, entry.request_id)
        self._trail.lives[entry.request_id] = life

    def _planned(self, entry: Planned) -> None:
        trail = self._trail
        if entry.head is not None:
            trail.heads.append((entry.now_s, entry.head, entry.why))
        for seq_id in entry.preempted:
            self._epochs[seq_id] = self._epochs.get(seq_id, 0) + 1
            life = self._life(seq_id)
            if life is not None:
                life.lost.append((entry.now_s, seq_id, ""))
        if entry.number < 0:
            return
        slices = [
            Slice(seq_id, self._epochs.get(seq_id, 0), self._ends.get(seq_id, 0), 1, samples=1)
            for seq_id in entry.decodes
        ]
        for place, seq_id, epoch, start, num_tokens, blocks, samples, replaced, num_drafts in entry.pieces:
            piece = Slice(seq_id, epoch, start, num_tokens, blocks, (0,) * num_drafts, samples, replaced)
            slices.insert(place, piece)
            self._epochs[seq_id] = epoch
        for piece in slices:
            self._ends[piece.seq_id] = piece.end
        for seq_id, num_cached, why in entry.began:
            life = self._life(seq_id)
            if life is not None:
                life.began.append(Began(entry.now_s, entry.number, seq_id, num_cached, why))
        self._flying.append(Ran(entry.number, entry.now_s, tuple(slices), entry.num_free, entry.num_waiting))

    def _committed(self, entry: Committed) -> None:
        while self._flying and self._flying[0].number < entry.number:
            self._flying.popleft()
        for seq_id, why in entry.lost:
            life = self._life(seq_id)
            for place, (at_s, one, known) in enumerate(life.lost if life is not None else ()):
                if one == seq_id and not known:
                    assert life is not None
                    life.lost[place] = (at_s, seq_id, why)
        for parent, child in entry.forks:
            self._forked(parent, child)
        if self._flying and self._flying[0].number == entry.number:
            ran = self._flying.popleft()
            ran.launched_s, ran.ended_s, ran.committed_s = entry.launched_s, entry.ended_s, entry.now_s
            self._trail.steps.append(ran)
            self._drawn(ran, entry)
        for seq_id, reason in entry.ended:
            self._ended(seq_id, reason, entry.now_s)

    def _drawn(self, ran: Ran, entry: Committed) -> None:
        failed = {seq_id for seq_id, _ in entry.errors}
        for piece in ran.slices:
            life = self._life(piece.seq_id)
            is_stale = piece.epoch != self._epochs.get(piece.seq_id, 0)
            if life is None or not piece.samples or is_stale or piece.seq_id in failed:
                continue
            if piece.seq_id in life.live and piece.seq_id not in entry.held:
                life.tokens_s += [entry.now_s] * piece.samples

    def _advanced(self, entry: Advanced) -> None:
        life = self._trail.lives.get(entry.request_id)
        for parent, child in entry.forks:
            self._forked(parent, child)
        if life is not None:
            life.tokens_s += [entry.now_s] * len(entry.beams)
        for seq_id, reason in entry.ended:
            self._ended(seq_id, reason, entry.now_s)

    def _forked(self, parent: int, child: int) -> None:
        life = self._life(parent)
        if life is not None:
            self._trail.owner[child] = life.request_id
            life.seq_ids.add(child)
            life.live.add(child)
            self._ends[child] = self._ends.get(parent, 0)
            self._epochs[child] = 0

    def _ended(self, seq_id: int, reason: str, at_s: float) -> None:
        life = self._life(seq_id)
        if life is None:
            return
        life.live.discard(seq_id)
        if not life.live:
            life.ended_s, life.reason = at_s, reason

    def _life(self, seq_id: int) -> Life | None:
        request_id = self._trail.owner.get(seq_id)
        return None if request_id is None else self._trail.lives.get(request_id)
