"""Where a request's time went, to the last microsecond: a ledger whose lines add up to the time that passed.

    received ── front ── posted ── link ── submitted ── waiting ── its steps, and between them ── last token
                                                                                   told ── in the front ── sent

Every moment on the engine lies in one step or between two. In a step that computed something of the request, the time
is parted by the model of steps that the recording itself gives: what its own slices would have taken, what the decodes
of others added, and what the prompts of others did.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from octavo.core.step import Slice, Step
from octavo.errors import RequestError
from octavo.explain.trail import NOT_PLANNED, Life, Ran, Trail
from octavo.obs.flight import Planned, Served
from octavo.obs.replay import Player
from octavo.sim.calibrate import fit_linear
from octavo.sim.timing import TimeModel, work_of

FRONT = "read, rendered, tokenized and let in"
LINK = "on the way to the engine"
WAITING = "waited"
PROMPT = "its prompt was computed"
DECODE = "its tokens were computed"
AGAIN = "what had been lost was computed again"
OTHER_PROMPTS = "prompts of others in its steps"
OTHER_DECODES = "tokens of others in its steps"
PASSED = "had memory and no part in the step"
BETWEEN = "between steps: planning, taking in, text"
TELLING = "from the engine to the front"
SENDING = "from the front to the client"
STALLED = "the client took nothing"

BEHIND = re.compile(r"request '(.*)' is before it in the queue: (.*)")
LEAST_STEPS = 24
"""Fewer steps tell no model of them."""


@dataclass(frozen=True, slots=True)
class Line:
    """A stretch of time and what it went into.

    detail  the rule that made it wait, say; or empty
    who     a request it was behind, or what the others' prompts were; or empty
    """

    cause: str
    from_s: float
    seconds: float
    detail: str = ""
    who: str = ""


@dataclass(slots=True)
class Total:
    """Lines of one cause and detail together. `who` has those that were named, the one for the longest time first."""

    cause: str
    detail: str
    seconds: float
    who: list[str]


@dataclass(slots=True)
class Ledger:
    """One request, or the part of its time that was asked for."""

    request_id: str
    from_s: float
    to_s: float
    lines: list[Line] = field(default_factory=list)

    @property
    def wall_s(self) -> float:
        return self.to_s - self.from_s

    def totals(self) -> list[Total]:
        """The largest first."""
        found: dict[tuple[str, str], float] = {}
        named: dict[tuple[str, str], dict[str, float]] = {}
        for line in self.lines:
            key = (line.cause, line.detail)
            found[key] = found.get(key, 0.0) + line.seconds
            if line.who:
                by_name = named.setdefault(key, {})
                by_name[line.who] = by_name.get(line.who, 0.0) + line.seconds
        return [
            Total(*key, seconds, sorted(named.get(key, {}), key=lambda who: -named[key][who]))
            for key, seconds in sorted(found.items(), key=lambda one: -one[1])
        ]

    def add(self, cause: str, from_s: float, to_s: float, detail: str = "", who: str = "") -> None:
        if to_s > from_s:
            self.lines.append(Line(cause, from_s, to_s - from_s, detail, who))

    def until(self, at_s: float) -> Ledger:
        """The part before that time."""
        cut = Ledger(self.request_id, self.from_s, min(at_s, self.to_s))
        for line in self.lines:
            if line.from_s < at_s:
                seconds = min(line.seconds, at_s - line.from_s)
                cut.lines.append(Line(line.cause, line.from_s, seconds, line.detail, line.who))
        return cut


def step_model(steps: Sequence[Ran]) -> TimeModel | None:
    """What steps take by what is in them, fitted to those that were; None of too few."""
    measured = [(work_of(Step(ran.number, ran.slices)), ran.took_s) for ran in steps if ran.took_s > 0]
    return fit_linear(measured).model if len(measured) >= LEAST_STEPS else None


class Books:
    """Keeps the ledgers of one engine's requests.

    why  for one request, exact reasons of its waiting: (time, reason), where the recording could be played again
    """

    def __init__(self, trail: Trail) -> None:
        self.trail = trail
        self.model = step_model(trail.steps)
        self._launches = [ran.launched_s for ran in trail.steps]

    def ledger(self, request_id: str, served: Served | None = None, *, exact: bool = True) -> Ledger:
        """Of one request of this engine. `served` is what the front noted of it, where there was a front.

        exact  play the recording again for the reasons of its waiting, where that is possible
        Raises RequestError for one that the recording does not know, or does not know the end of.
        """
        life = self.trail.lives.get(request_id)
        if life is None:
            raise RequestError(f"request {request_id!r} is not in this recording", param="request")
        if life.ended_s is None:
            raise RequestError(
                f"request {request_id!r} had not ended when this was recorded", param="request"
            )
        end_s = life.tokens_s[-1] if life.tokens_s else life.ended_s
        from_s, to_s = life.submitted_s, end_s
        if served is not None:
            from_s, to_s = min(served.received_s, from_s), max(served.sent_s, to_s)
        ledger = Ledger(request_id, from_s, to_s)
        if served is not None:
            posted_s = min(served.posted_s or life.submitted_s, life.submitted_s)
            ledger.add(FRONT, from_s, posted_s)
            ledger.add(LINK, posted_s, life.submitted_s)
        self._on_engine(ledger, life, end_s, self._exact_waits(life) if exact else None)
        if served is not None:
            told_s = min(max(served.last_s, end_s), to_s)
            ledger.add(TELLING, end_s, told_s)
            stalled_s = min(served.stalled_s, to_s - told_s)
            ledger.add(SENDING, told_s, to_s - stalled_s)
            ledger.add(STALLED, to_s - stalled_s, to_s)
        return ledger

    def _exact_waits(self, life: Life) -> list[tuple[float, str]] | None:
        """At each plan while it waited, why: by playing the recording again. None where its beginning is gone."""
        if not self.trail.opened.is_whole:
            return None
        player = Player(self.trail.opened.limits, self.trail.entries)
        found: list[tuple[float, str]] = []
        for entry in self.trail.entries[1:]:
            player.answer(entry)
            if isinstance(entry, Planned) and entry.now_s >= life.submitted_s:
                lines = player.scheduler.live(life.request_id)
                waits = [player.scheduler.why_waiting(line.seq_id) for line in lines]
                reasons = [wait.because for wait in waits if wait is not None]
                found.append((entry.now_s, reasons[0] if reasons else ""))
            if life.ended_s is not None and getattr(entry, "now_s", 0.0) > life.ended_s:
                break
        return found

    def _on_engine(
        self, ledger: Ledger, life: Life, end_s: float, waits: list[tuple[float, str]] | None
    ) -> None:
        """The time from its submission to its last token, step by step."""
        steps, at_s = self.trail.steps, life.submitted_s
        index = max(bisect_left(self._launches, at_s) - 1, 0)
        farthest: dict[int, int] = {}
        while at_s < end_s and index < len(steps):
            ran = steps[index]
            index += 1
            if ran.ended_s <= at_s:
                continue
            if ran.launched_s > at_s:
                gap_end_s = min(ran.launched_s, end_s)
                self._gap(ledger, life, at_s, gap_end_s, waits)
                at_s = gap_end_s
                if at_s >= end_s:
                    return
            to_s = min(ran.ended_s, end_s)
            self._in_step(ledger, life, ran, at_s, to_s, waits, farthest)
            at_s = to_s
        if at_s < end_s:
            self._gap(ledger, life, at_s, end_s, waits)

    def _gap(
        self, ledger: Ledger, life: Life, from_s: float, to_s: float, waits: list[tuple[float, str]] | None
    ) -> None:
        if life.is_waiting_at(from_s) and not life.is_waiting_at(to_s) and to_s - from_s > 0:
            began_s = min((one.at_s for one in life.began if one.at_s > from_s), default=to_s)
            if began_s < to_s:
                ledger.add(WAITING, from_s, began_s, *self._why(life, from_s, waits))
                from_s = began_s
            ledger.add(BETWEEN, from_s, to_s)
        elif life.is_waiting_at(from_s):
            ledger.add(WAITING, from_s, to_s, *self._why(life, from_s, waits))
        else:
            ledger.add(BETWEEN, from_s, to_s)

    def _in_step(
        self,
        ledger: Ledger,
        life: Life,
        ran: Ran,
        from_s: float,
        to_s: float,
        waits: list[tuple[float, str]] | None,
        farthest: dict[int, int],
    ) -> None:
        own = [piece for piece in ran.slices if piece.seq_id in life.seq_ids]
        if not own:
            if life.is_waiting_at(ran.launched_s) or life.is_waiting_at(from_s):
                ledger.add(WAITING, from_s, to_s, *self._why(life, from_s, waits))
            else:
                ledger.add(PASSED, from_s, to_s)
            return
        others = [piece for piece in ran.slices if piece.seq_id not in life.seq_ids]
        shares = self._shares(own, others)
        again = sum(max(min(piece.end, farthest.get(piece.seq_id, 0)) - piece.start, 0) for piece in own)
        own_cause = PROMPT if any(piece.start < life.prompt_tokens for piece in own) else DECODE
        for piece in own:
            farthest[piece.seq_id] = max(farthest.get(piece.seq_id, 0), piece.end)
        if again:
            own_cause = AGAIN
        at_s = from_s
        for cause, share in ((own_cause, shares[0]), (OTHER_DECODES, shares[1]), (OTHER_PROMPTS, shares[2])):
            end_s = at_s + share * (to_s - from_s)
            ledger.add(cause, at_s, end_s, who=self._who(others) if cause == OTHER_PROMPTS else "")
            at_s = end_s

    def _shares(self, own: list[Slice], others: list[Slice]) -> tuple[float, float, float]:
        """Of a step: its own slices, what others' decodes add, what others' chunks add."""
        if not others or self.model is None:
            return (1.0, 0.0, 0.0)
        decodes = [piece for piece in others if piece.num_tokens == 1]
        alone_s, beside_s, all_s = (
            self.model.seconds(work_of(Step(0, tuple(some))))
            for some in (own, [*own, *decodes], [*own, *others])
        )
        if all_s <= 0:
            return (1.0, 0.0, 0.0)
        alone, beside = min(alone_s / all_s, 1.0), min(beside_s / all_s, 1.0)
        return (alone, max(beside - alone, 0.0), max(1.0 - max(beside, alone), 0.0))

    def _who(self, others: Iterable[Slice]) -> str:
        """Whose the largest prompt in the step was."""
        chunks = [piece for piece in others if piece.num_tokens > 1]
        if not chunks:
            return ""
        largest = max(chunks, key=lambda piece: piece.num_tokens)
        request_id = self.trail.owner.get(largest.seq_id)
        life = self.trail.lives.get(request_id) if request_id is not None else None
        if life is None:
            return ""
        return f"{life.prompt_tokens} tokens" + (f" of {life.client}" if life.client else "")

    def _why(self, life: Life, at_s: float, waits: list[tuple[float, str]] | None) -> tuple[str, str]:
        """Why it waited at that time, and behind whom."""
        lost = [why for when_s, _, why in life.lost if when_s <= at_s]
        after = f", after it had lost its memory: {lost[-1]}" if lost else ""
        if waits is not None:
            place = max(bisect_right(waits, at_s, key=lambda one: one[0]) - 1, 0)
            exact = waits[place][1] if waits else ""
            behind = BEHIND.fullmatch(exact)
            if behind:
                return f"behind others in the queue: {behind[2]}" + after, behind[1]
            return (exact or NOT_PLANNED) + after, ""
        head, reason = self.trail.head_at(at_s)
        owner = self.trail.owner.get(head)
        if owner is None:
            return "a step was under way" + after, ""
        if owner == life.request_id:
            return (reason or NOT_PLANNED) + after, ""
        return f"behind others in the queue: {reason or NOT_PLANNED}" + after, owner


def served_by_prompt(front: Iterable[object]) -> Mapping[str, Served]:
    """What the front noted, by the ids that prompts have on engines."""
    return {prompt: entry for entry in front if isinstance(entry, Served) for prompt in entry.prompts}
