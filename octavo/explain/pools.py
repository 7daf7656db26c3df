"""Requests whose prompt is computed on one engine, and whose answer on another."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.explain.story import Story
from octavo.explain.trail import Life


@dataclass(frozen=True, slots=True)
class Handover:
    """One request: it was `waited_s` between the engines, of `whole_s` from its submission to its last token."""

    request_id: str
    from_engine: int
    to_engine: int
    waited_s: float
    whole_s: float


def handovers(story: Story) -> list[Handover]:
    """Those that ended on one engine after their first token, for no other reason, and went on on another."""
    seen: dict[str, tuple[int, Life]] = {}
    found: list[Handover] = []
    every = [(life.submitted_s, books.trail.engine, life) for books, life in story.lives()]
    for at_s, engine, life in sorted(every, key=lambda one: one[:2]):
        before = seen.get(life.request_id)
        seen[life.request_id] = (engine, life)
        if before is None or before[0] == engine or before[1].reason != "length":
            continue
        first = before[1]
        if first.ended_s is None or life.ended_s is None:
            continue
        began_s = life.began[0].at_s if life.began else at_s
        found.append(
            Handover(
                life.request_id,
                before[0],
                engine,
                began_s - first.ended_s,
                life.ended_s - first.submitted_s,
            )
        )
    return found
