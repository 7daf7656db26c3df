"""A recording as a whole: its engines' trails, what the front noted, and requests by the names people know them by."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.explain.ledger import Books, Ledger, served_by_prompt
from octavo.explain.trail import Life, Trail, follow
from octavo.obs.flight import Departed, Served
from octavo.obs.recording import Recording
from octavo.units import format_seconds


@dataclass(frozen=True, slots=True)
class Explained:
    """One prompt of a request on one engine. `first` is the ledger up to its first token, where it had one."""

    request_id: str
    facts: list[str]
    whole: Ledger
    first: Ledger | None

    def document(self) -> dict[str, Any]:
        return {
            "request": self.request_id,
            "facts": self.facts,
            "whole": _ledger_document(self.whole),
            "to_first_token": None if self.first is None else _ledger_document(self.first),
        }


class Story:
    """What a recording tells."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.trails = [follow(one.number, one.entries) for one in recording.engines if one.entries]
        self.books = [Books(trail) for trail in self.trails]
        self.served = served_by_prompt(recording.front)
        self.departed = [entry for entry in recording.front if isinstance(entry, Departed)]
        self._ended: list[tuple[Books, Life, Ledger]] | None = None

    def lives(self) -> Iterator[tuple[Books, Life]]:
        """Every request of every engine."""
        for books in self.books:
            for life in books.trail.lives.values():
                yield books, life

    def ended(self) -> list[tuple[Books, Life, Ledger]]:
        """Those whose end is known, with their ledgers; the reasons of waiting are those of the queue's head."""
        if self._ended is None:
            self._ended = [
                (books, life, books.ledger(life.request_id, self.served.get(life.request_id), exact=False))
                for books, life in self.lives()
                if life.ended_s is not None and life.refused is None
            ]
        return self._ended

    def request(self, name: str) -> list[Explained]:
        """Its prompts, on each engine that had them. Raises RequestError for one that had not ended."""
        wanted = {name} | {prompt for prompt, served in self.served.items() if served.request_id == name}
        return [self._explained(books, life) for books, life in self.lives() if life.request_id in wanted]

    def nearest(self, name: str) -> str | None:
        known = {served.request_id for served in self.served.values()} | {
            life.request_id for _, life in self.lives()
        }
        close = difflib.get_close_matches(name, sorted(known), n=1)
        return close[0] if close else None

    def _explained(self, books: Books, life: Life) -> Explained:
        served = self.served.get(life.request_id)
        whole = books.ledger(life.request_id, served)
        first = None if life.first_s is None else whole.until(life.first_s)
        return Explained(life.request_id, _facts(books.trail, life, served), whole, first)

    def overview(
        self, num_slowest: int, some: Sequence[tuple[Books, Life, Ledger]] | None = None
    ) -> dict[str, Any]:
        """What it holds, what the time of its requests went into, and those that took longest.

        some  requests to look at, with their ledgers; None for all that have ended
        """
        saved = self.recording.saved
        sums: dict[str, float] = {}
        rows: list[tuple[float, Life, Ledger]] = []
        for _, life, ledger in self.ended() if some is None else some:
            for line in ledger.lines:
                what = line.cause + (f": {line.detail}" if line.detail else "")
                sums[what] = sums.get(what, 0.0) + line.seconds
            rows.append((ledger.wall_s, life, ledger))
        total_s = sum(sums.values()) or 1.0
        rows.sort(key=lambda one: -one[0])
        spans = [trail.span_s for trail in self.trails]
        covers_s = max((end for _, end in spans), default=0.0) - min(
            (start for start, _ in spans), default=0.0
        )
        return {
            "about": {
                "saved because": saved.why,
                "model": saved.model,
                "engines": len(self.recording.engines),
                "covers": format_seconds(covers_s),
                "requests": sum(1 for _ in self.lives()),
                "steps": sum(len(trail.steps) for trail in self.trails),
                "from start": "yes"
                if all(trail.opened.is_whole for trail in self.trails)
                else "no, the beginning is overwritten",
                "batch invariant": "yes"
                if all(trail.opened.batch_invariant for trail in self.trails)
                else "no, tokens depend on what ran beside them",
            },
            "time": [
                {"what": what, "seconds": seconds, "share": seconds / total_s}
                for what, seconds in sorted(sums.items(), key=lambda one: -one[1])
            ],
            "slowest": [self._row(*row) for row in rows[:num_slowest]],
        }

    def _row(self, wall_s: float, life: Life, ledger: Ledger) -> dict[str, Any]:
        most = ledger.totals()[0]
        served = self.served.get(life.request_id)
        return {
            "request": life.request_id if served is None else served.request_id,
            "seconds": wall_s,
            "prompt_tokens": life.prompt_tokens,
            "output_tokens": len(life.tokens_s),
            "mostly": most.cause + (f": {most.detail}" if most.detail else ""),
        }


def _facts(trail: Trail, life: Life, served: Served | None) -> list[str]:
    """In sentences: whose it was, how long, what was cached and why not more, what it lost."""
    whose = f" of {life.client}" if life.client else ""
    facts = [
        f"request {life.request_id}{whose} on engine {trail.engine}: {life.prompt_tokens} prompt tokens,"
        f" {len(life.tokens_s)} output tokens, ended by {life.reason}"
    ]
    if served is not None:
        ended = f"; it failed with {served.ended}" if served.ended else ""
        facts.append(f"to its client it is {served.request_id}, by {served.route}{ended}")
        facts += [f"sent to engine {number}: {because}" for number, _, because in served.placed]
    for began in life.began[:1]:
        facts.append(
            f"{began.num_cached} of its {life.prompt_tokens} prompt tokens were in the cache; what ended the match:"
            f" {began.why_not_more}"
        )
    for (_, _, why), began in zip(life.lost, life.began[1:], strict=False):
        facts.append(
            f"it lost its memory ({why}) and began again with {began.num_cached} tokens from the cache"
        )
    return facts


def _ledger_document(ledger: Ledger) -> dict[str, Any]:
    return {
        "seconds": ledger.wall_s,
        "totals": [
            {"cause": one.cause, "detail": one.detail, "seconds": one.seconds, "whose": one.who}
            for one in ledger.totals()
        ],
        "lines": [
            {
                "at_s": line.from_s - ledger.from_s,
                "seconds": line.seconds,
                "cause": line.cause,
                "detail": line.detail,
                "whose": line.who,
            }
            for line in ledger.lines
        ],
    }
