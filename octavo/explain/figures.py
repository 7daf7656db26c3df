"""What a recording shows, in numbers: the figures that causes are told by."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from octavo.core.cache import BEING_COMPUTED
from octavo.explain.ledger import WAITING, Books, Ledger, Line
from octavo.explain.story import Story
from octavo.explain.trail import Life, Ran, Trail
from octavo.obs.flight import Submitted
from octavo.obs.replay import Prompts

TAIL = 0.1
"""Of the requests, the slowest."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """Prompt tokens of one request that had been computed before, and had to be computed again.

    evicted  in its own namespace, and no longer in the cache
    foreign  only in the namespaces of others
    """

    prompt_tokens: int
    cached: int
    evicted: int
    foreign: int


class Figures:
    """Of a story, or of an interval of it, in seconds from its beginning."""

    def __init__(self, story: Story, from_s: float = 0.0, to_s: float = float("inf")) -> None:
        self.story = story
        starts = [trail.span_s[0] for trail in story.trails]
        starts += [served.received_s for served in story.served.values()]
        self.start_s = min(starts, default=0.0)
        self.begin_s, self.end_s = self.start_s + from_s, self.start_s + to_s
        cut = ((books, life, self._clipped(ledger)) for books, life, ledger in story.ended())
        self.rows = [row for row in cut if row[2].lines]
        walls = sorted((ledger.wall_s for _, _, ledger in self.rows), reverse=True)
        self.slowest_s = walls[max(int(len(walls) * TAIL) - 1, 0)] if walls else 0.0

    def _clipped(self, ledger: Ledger) -> Ledger:
        if self.begin_s <= ledger.from_s and ledger.to_s <= self.end_s:
            return ledger
        cut = Ledger(ledger.request_id, max(ledger.from_s, self.begin_s), min(ledger.to_s, self.end_s))
        for line in ledger.lines:
            cut.add(
                line.cause,
                max(line.from_s, self.begin_s),
                min(line.from_s + line.seconds, self.end_s),
                line.detail,
                line.who,
            )
        return cut

    @property
    def trails(self) -> Sequence[Trail]:
        return self.story.trails

    @property
    def lives(self) -> list[Life]:
        return [life for _, life, _ in self.rows]

    def share(self, counts: Callable[[Line], bool]) -> tuple[float, float]:
        """Of the time of all requests, and of that of the slowest tenth, what went into such lines."""
        return self.share_by(lambda _, line: counts(line))

    def share_by(self, counts: Callable[[Life, Line], float | bool]) -> tuple[float, float]:
        """The same, where it matters whose line it is; `counts` may be a part of it."""
        part = whole = tail_part = tail = 0.0
        for _, life, ledger in self.rows:
            seconds = sum(line.seconds * counts(life, line) for line in ledger.lines)
            part, whole = part + seconds, whole + ledger.wall_s
            if ledger.wall_s >= self.slowest_s:
                tail_part, tail = tail_part + seconds, tail + ledger.wall_s
        return part / (whole or 1.0), tail_part / (tail or 1.0)

    def waiting(self) -> tuple[float, float]:
        return self.share(lambda line: line.cause == WAITING)

    def steps(self, trail: Trail) -> list[tuple[int, Ran]]:
        """Of the interval, with their places in the trail."""
        return [
            (place, ran)
            for place, ran in enumerate(trail.steps)
            if self.begin_s <= ran.launched_s < self.end_s and ran.took_s > 0
        ]

    @cached_property
    def median_prompt(self) -> float:
        return float(np.median([life.prompt_tokens for life in self.lives])) if self.rows else 0.0

    @cached_property
    def fixed_share(self) -> float:
        """Of the time in steps, what every step takes, whatever is in it: the model of steps says so."""
        fixed_s = busy_s = 0.0
        for books in self.story.books:
            for _, ran in self.steps(books.trail):
                busy_s += ran.took_s
                fixed_s += 0.0 if books.model is None else min(books.model.overhead_s, ran.took_s)
        return fixed_s / (busy_s or 1.0)

    def free_share(self, reason: str = "") -> float:
        """Blocks that are free when steps are planned, the median; only while the head waits for `reason`."""
        found = [
            ran.num_free / max(trail.opened.limits.num_blocks - 1, 1)
            for trail in self.trails
            for _, ran in self.steps(trail)
            if not reason or reason in (trail.head_at(ran.planned_s)[1] or "")
        ]
        return float(np.median(found)) if found else 0.0

    @cached_property
    def stored_share(self) -> float:
        """Tokens in the blocks that sequences hold, per token that fits there; over time. Shared ones count once."""
        stored = held = 0.0
        for trail in self.trails:
            limits, ends = trail.opened.limits, dict[int, int]()
            leaves = sorted(_leaves(trail))
            place = 0
            for _, ran in self.steps(trail):
                while place < len(leaves) and leaves[place][0] <= ran.launched_s:
                    ends.pop(leaves[place][1], None)
                    place += 1
                for piece in ran.slices:
                    if piece.samples or piece.num_tokens > 1:
                        ends[piece.seq_id] = piece.end
                room = (limits.num_blocks - 1 - ran.num_free) * limits.block_tokens
                stored += min(sum(ends.values()), room) * ran.took_s
                held += room * ran.took_s
        return stored / (held or 1.0)

    @cached_property
    def padding_share(self) -> float:
        """Of what is computed, by slices: for sequences that had ended before it was planned."""
        padded = every = 0
        for trail in self.trails:
            ended_s = {
                seq_id: life.ended_s
                for life in trail.lives.values()
                if life.ended_s is not None
                for seq_id in life.seq_ids
            }
            for _, ran in self.steps(trail):
                every += len(ran.slices)
                padded += sum(ended_s.get(piece.seq_id, self.end_s) <= ran.planned_s for piece in ran.slices)
        return padded / (every or 1)

    @cached_property
    def stretch(self) -> float:
        """How many times the median the 99th percentile of steps in which sequences decode is."""
        took = [
            ran.took_s
            for trail in self.trails
            for _, ran in self.steps(trail)
            if any(piece.num_tokens == 1 for piece in ran.slices)
        ]
        return float(np.percentile(took, 99) / np.median(took)) if took else 1.0

    @cached_property
    def growth(self) -> tuple[float, float]:
        """Mean of the requests aboard in the first and in the last third of the time that requests came in."""
        came = sorted(life.submitted_s for life in self.lives)
        if not came:
            return 0.0, 0.0
        third_s = (came[-1] - came[0]) / 3
        early, late = [0.0], [0.0]
        for at_s in came:
            num_aboard = sum(self.aboard_at(place, at_s) for place in self.aboard)
            if at_s <= came[0] + third_s:
                early.append(num_aboard)
            elif at_s >= came[-1] - third_s:
                late.append(num_aboard)
        return float(np.mean(early)), float(np.mean(late))

    @cached_property
    def services(self) -> dict[str, float]:
        """Tokens computed for each client, prompts and outputs, the largest first."""
        found: dict[str, float] = {}
        for life in self.lives:
            found[life.client] = found.get(life.client, 0.0) + life.prompt_tokens + len(life.tokens_s)
        return dict(sorted(found.items(), key=lambda one: -one[1]))

    @cached_property
    def aboard(self) -> dict[int, tuple[list[float], list[int]]]:
        """Of each trail, by its place: when the number of requests there changed, and what it was from then on."""
        found = {}
        for place, trail in enumerate(self.trails):
            changes = [(life.submitted_s, 1) for life in trail.lives.values() if life.refused is None]
            changes += [(life.ended_s, -1) for life in trail.lives.values() if life.ended_s is not None]
            changes.sort()
            times, levels, level = [], [], 0
            for at_s, change in changes:
                level += change
                times.append(at_s)
                levels.append(level)
            found[place] = (times, levels)
        return found

    def aboard_at(self, place: int, at_s: float) -> int:
        times, levels = self.aboard[place]
        index = bisect_right(times, at_s) - 1
        return levels[index] if index >= 0 else 0

    @cached_property
    def reuse(self) -> dict[str, Reuse]:
        """What of each request's prompt had been computed before, by request id."""
        wanted = {life.request_id for life in self.lives}
        found: dict[str, Reuse] = {}
        for trail in self.trails:
            for request_id, one in _reuse(trail).items():
                if request_id in wanted:
                    found[request_id] = one
        return found

    def busy_share(self, books: Books) -> float:
        """Of the time from the first step to the last, what steps took."""
        steps = [ran for _, ran in self.steps(books.trail)]
        if not steps:
            return 0.0
        return sum(ran.took_s for ran in steps) / max(steps[-1].ended_s - steps[0].launched_s, 1e-9)


def _leaves(trail: Trail) -> list[tuple[float, int]]:
    """When sequences gave their memory back."""
    found = []
    for life in trail.lives.values():
        found += [(at_s, seq_id) for at_s, seq_id, _ in life.lost]
        if life.ended_s is not None:
            found += [(life.ended_s, seq_id) for seq_id in life.seq_ids]
    return found


def _reuse(trail: Trail) -> dict[str, Reuse]:
    """Follows who had computed which beginnings when a request began. A beginning counts once it has been computed."""
    size, prompts = trail.opened.limits.block_tokens, Prompts()
    moments: list[tuple[float, int, Life, list[int]]] = []
    for entry in trail.entries:
        if not isinstance(entry, Submitted) or entry.refused is not None:
            continue
        borders = list(prompts.whole(entry)[size - 1 :: size])
        life = trail.lives[entry.request_id]
        if life.began:
            moments.append((life.began[0].at_s, 0, life, borders))
        if life.first_s is not None:
            moments.append((life.first_s, 1, life, borders))
    moments.sort(key=lambda one: one[:2])
    seen: dict[int, set[bytes]] = {}
    found: dict[str, Reuse] = {}
    for _, is_computed, life, borders in moments:
        if is_computed:
            for border in borders:
                seen.setdefault(border, set()).add(life.namespace)
            continue
        began = life.began[0]
        own = _known(borders, seen, life.namespace) * size
        every = _known(borders, seen, None) * size
        most = max(own, began.num_cached)
        is_evicted = began.why_not_more != BEING_COMPUTED
        found[life.request_id] = Reuse(
            life.prompt_tokens,
            began.num_cached,
            max(min(own, life.prompt_tokens - 1) - began.num_cached, 0) if is_evicted else 0,
            max(min(every, life.prompt_tokens - 1) - most, 0),
        )
    return found


def _known(borders: Sequence[int], seen: dict[int, set[bytes]], namespace: bytes | None) -> int:
    """Leading blocks that have been computed in a namespace, or in any."""
    known = 0
    for border in borders:
        spaces = seen.get(border)
        if not spaces or (namespace is not None and namespace not in spaces):
            break
        known += 1
    return known
