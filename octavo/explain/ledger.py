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
from itertools import pairwise

from octavo.core.scheduler import HAS_ITS_SEATS
from octavo.core.step import Slice, Step
from octavo.errors import RequestError
from octavo.explain.trail import NOT_PLANNED, Life, Ran, Trail
from octavo.obs.flight import Planned, Served
from octavo.obs.replay import Player
from octavo.sim.calibrate import fit_linear
from octavo.sim.fitting import LEAST_STEPS
from octavo.sim.timing import Linear, work_of

FRONT = "read, rendered, tokenized and let in"
LOST = "with an engine that has gone, and until that was noticed"
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

UNDER_WAY = "a step was under way"
BEHIND = re.compile(r"request '(.*)' is before it in the queue: (.*)")


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
        """What goes on unchanged stays one line."""
        if to_s <= from_s:
            return
        last = self.lines[-1] if self.lines else None
        if last is not None and (last.cause, last.detail, last.who) == (cause, detail, who):
            self.lines[-1] = Line(cause, last.from_s, to_s - last.from_s, detail, who)
        else:
            self.lines.append(Line(cause, from_s, to_s - from_s, detail, who))

    def until(self, at_s: float) -> Ledger:
        """The part before that time."""
        cut = Ledger(self.request_id, self.from_s, min(at_s, self.to_s))
        for line in self.lines:
            if line.from_s < at_s:
                seconds = min(line.seconds, at_s - line.from_s)
                cut.lines.append(Line(line.cause, line.from_s, seconds, line.detail, line.who))
        return cut


def step_model(steps: Sequence[Ran]) -> Linear | None:
    """What steps take by what is in them, fitted to those that were; None of too few."""
    measured = [(work_of(Step(ran.number, ran.slices)), ran.took_s) for ran in steps if ran.took_s > 0]
    return fit_linear(measured).model if len(measured) >= LEAST_STEPS else None


@dataclass(slots=True)
class Costs:
    """What the slices of one step add to its time, by sequence, and all of them together.

    chunks  tokens and sequence of each prompt's part, the largest first
    """

    by_seq: dict[int, tuple[Slice, float]]
    fixed_s: float
    decodes_s: float
    chunks_s: float
    chunks: list[tuple[int, int]]

    @property
    def all_s(self) -> float:
        return self.fixed_s + self.decodes_s + self.chunks_s


class Books:
    """Keeps the ledgers of one engine's requests.

    model  of what its steps take; None where the recording has too few of them
    """

    def __init__(self, trail: Trail) -> None:
        self.trail = trail
        self.model = step_model(trail.steps)
        self._launches = [ran.launched_s for ran in trail.steps]
        self._plans = [ran.planned_s for ran in trail.steps]
        self._costs: dict[int, Costs] = {}

    def costs(self, index: int) -> Costs:
        """Of the step at that place of the trail."""
        found = self._costs.get(index)
        if found is None:
            found = self._costs[index] = self._costs_of(self.trail.steps[index])
        return found

    def _costs_of(self, ran: Ran) -> Costs:
        model = self.model or Linear()
        costs = Costs({}, model.overhead_s, 0.0, 0.0, [])
        for piece in ran.slices:
            adds_s = _adds_s(model, piece)
            costs.by_seq[piece.seq_id] = (piece, adds_s)
            if piece.num_tokens == 1:
                costs.decodes_s += adds_s
            else:
                costs.chunks_s += adds_s
                costs.chunks.append((piece.num_tokens, piece.seq_id))
        costs.chunks.sort(reverse=True)
        return costs

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
            sent_s = posted_s
            if len(served.placed) > len(served.prompts):
                sent_s = max(
                    (at_s for _, at_s, _ in served.placed if at_s <= life.submitted_s), default=posted_s
                )
            ledger.add(LOST, posted_s, sent_s)
            ledger.add(LINK, sent_s, life.submitted_s)
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
        """The time from its submission to its last token: it waits, then it has memory, and so on."""
        at_s, reached = life.submitted_s, dict[int, int]()
        for from_s, to_s in life.waits():
            self._resident(ledger, life, at_s, min(from_s, end_s), reached)
            if from_s >= end_s:
                return
            at_s = self._through_step(life, min(to_s, end_s))
            self._waited(ledger, life, from_s, min(at_s, end_s), waits)
        self._resident(ledger, life, at_s, end_s, reached)

    def _through_step(self, life: Life, began_s: float) -> float:
        """It began while a step ran that it is no part of: it waits for the end of that, too."""
        index = bisect_right(self._launches, began_s) - 1
        if index < 0 or life.seq_ids & self.costs(index).by_seq.keys():
            return began_s
        return max(began_s, self.trail.steps[index].ended_s)

    def _waited(
        self,
        ledger: Ledger,
        life: Life,
        from_s: float,
        to_s: float,
        waits: list[tuple[float, str]] | None,
    ) -> None:
        """Split where the reason may have changed."""
        known: Sequence[tuple[float, *tuple[object, ...]]] = self.trail.heads if waits is None else waits
        first = bisect_right(known, from_s, key=lambda one: one[0])
        last = bisect_left(known, to_s, key=lambda one: one[0])
        borders = [from_s, *(one[0] for one in known[first:last]), to_s]
        for begin_s, end_s in pairwise(borders):
            ledger.add(WAITING, begin_s, end_s, *self._why(life, begin_s, waits))

    def _resident(
        self, ledger: Ledger, life: Life, at_s: float, end_s: float, reached: dict[int, int]
    ) -> None:
        """Step by step, while it has memory. `reached` is how far each sequence was ever computed."""
        steps = self.trail.steps
        for index in range(max(bisect_left(self._launches, at_s) - 1, 0), len(steps)):
            ran = steps[index]
            if at_s >= end_s:
                return
            if ran.ended_s <= at_s:
                continue
            launched_s = min(ran.launched_s, end_s)
            if launched_s > at_s:
                ledger.add(BETWEEN, at_s, launched_s)
                at_s = launched_s
            if at_s < end_s:
                to_s = min(ran.ended_s, end_s)
                self._in_step(ledger, life, index, at_s, to_s, reached)
                at_s = to_s
        ledger.add(BETWEEN, at_s, end_s)

    def _in_step(
        self, ledger: Ledger, life: Life, index: int, from_s: float, to_s: float, reached: dict[int, int]
    ) -> None:
        costs = self.costs(index)
        own = [costs.by_seq[seq_id] for seq_id in life.seq_ids if seq_id in costs.by_seq]
        if not own:
            ledger.add(PASSED, from_s, to_s)
            return
        shares = self._shares(own, costs)
        cause = PROMPT if any(piece.start < life.prompt_tokens for piece, _ in own) else DECODE
        for piece, _ in own:
            if life.lost and piece.start < reached.get(piece.seq_id, 0):
                cause = AGAIN
            reached[piece.seq_id] = max(reached.get(piece.seq_id, 0), piece.end)
        if not shares[1] and not shares[2]:
            ledger.add(cause, from_s, to_s)
            return
        decodes_s = from_s + shares[0] * (to_s - from_s)
        chunks_s = to_s if not shares[2] else decodes_s + shares[1] * (to_s - from_s)
        ledger.add(cause, from_s, decodes_s)
        ledger.add(OTHER_DECODES, decodes_s, chunks_s)
        ledger.add(OTHER_PROMPTS, chunks_s, to_s, who=self._who(life, costs) if shares[2] else "")

    def _shares(self, own: list[tuple[Slice, float]], costs: Costs) -> tuple[float, float, float]:
        """Of a step: its own slices and what every step takes, what others' decodes add, what their chunks add."""
        if len(own) == len(costs.by_seq) or self.model is None or costs.all_s <= 0:
            return (1.0, 0.0, 0.0)
        own_decodes_s = sum(adds_s for piece, adds_s in own if piece.num_tokens == 1)
        own_chunks_s = sum(adds_s for piece, adds_s in own if piece.num_tokens > 1)
        decodes = max(costs.decodes_s - own_decodes_s, 0.0) / costs.all_s
        chunks = max(costs.chunks_s - own_chunks_s, 0.0) / costs.all_s
        return (max(1.0 - decodes - chunks, 0.0), decodes, chunks)

    def _who(self, life: Life, costs: Costs) -> str:
        """Whose the largest prompt of others in the step was."""
        seq_id = next((one for _, one in costs.chunks if one not in life.seq_ids), None)
        if seq_id is None:
            return ""
        request_id = self.trail.owner.get(seq_id)
        other = self.trail.lives.get(request_id) if request_id is not None else None
        if other is None:
            return ""
        return f"{other.prompt_tokens} tokens" + (f" of {other.client}" if other.client else "")

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
            return (HAS_ITS_SEATS if self._was_passed_over(life, at_s) else UNDER_WAY) + after, ""
        if owner == life.request_id:
            return (reason or NOT_PLANNED) + after, ""
        return f"behind others in the queue: {reason or NOT_PLANNED}" + after, owner

    def _was_passed_over(self, life: Life, at_s: float) -> bool:
        """Whether a step has been planned since it came, and nobody was first in the queue."""
        index = bisect_right(self._plans, at_s) - 1
        return index >= 0 and self._plans[index] >= life.submitted_s


def _adds_s(model: Linear, piece: Slice) -> float:
    """What one slice adds to a step: `model` of it, less what every step takes."""
    count, start = piece.num_tokens, piece.start
    adds_s = model.seq_s + model.token_s * count + model.sampled_s * piece.samples
    if count == 1:
        return adds_s + model.context_s * (start + 1)
    return adds_s + model.pair_s * (count * start + count * (count + 1) // 2)


def served_by_prompt(front: Iterable[object]) -> Mapping[str, Served]:
    """What the front noted, by the ids that prompts have on engines."""
    return {prompt: entry for entry in front if isinstance(entry, Served) for prompt in entry.prompts}
