"""What an engine recorded, for the simulator: played again on its own times, as a trace, and as measured steps.

`Rehearsal` plays a recording with the durations that were and the tokens that were drawn. When anything is called, and
what is decided, comes from the simulator's turns and a scheduler of its own: when they are those of the engine, every
call is the recorded one, and every step is, to the last block id.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from octavo.core.step import Step, StepResult
from octavo.core.turns import TurnTaker
from octavo.errors import LoadError
from octavo.obs.flight import (
    Advanced,
    CacheReset,
    Cancelled,
    Closed,
    Committed,
    Costed,
    Drawn,
    EngineEntry,
    Opened,
    Pinned,
    Planned,
    Submitted,
)
from octavo.obs.replay import Diverged, Player, Prompts
from octavo.sim.spelling import Spelled
from octavo.sim.timing import Work, work_of
from octavo.sim.traces import Row, Trace

FROM_OUTSIDE = (Submitted, Cancelled, Closed, Pinned, CacheReset, Costed)
WHILE_COMMITTING = (Closed, Advanced)


class Cut(Exception):
    """The recording ends in the middle of a turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A step of a recording, and when.

    gap_s      until its launch, from the end of the step before; from the request's coming where nothing ran
    was_ahead  it was planned while the step before ran
    firsts     requests whose first token it drew
    """

    work: Work
    launched_s: float
    ended_s: float
    committed_s: float
    gap_s: float
    was_ahead: bool
    firsts: tuple[str, ...]


class Rehearsal(TurnTaker[None]):
    """The turns of a recording, taken again.

    steps      that were come to
    measured   what each committed step was, and the seconds that it ran
    ran        the same steps, with what was around them
    submitted  when each request came, and whether nothing ran then
    """

    def __init__(self, entries: Sequence[EngineEntry]) -> None:
        opened = entries[0] if entries else None
        if not isinstance(opened, Opened):
            raise LoadError("a recording begins with Opened")
        if not opened.is_whole:
            raise LoadError("the beginning of this recording has been overwritten: it cannot be played again")
        super().__init__(opened.limits.max_num_batched_tokens)
        self.measured: list[tuple[Work, float]] = []
        self.ran: list[Ran] = []
        self.submitted: dict[str, tuple[float, bool]] = {}
        self._planned_s: dict[int, float] = {}
        self._free_s = 0.0
        self._seen: set[int] = set()
        self._player = Player(opened.limits, entries)
        self._rest = deque(entry for entry in entries[1:] if not isinstance(entry, Drawn))

    @property
    def steps(self) -> list[Step]:
        return self._player.steps

    def run(self) -> list[Step]:
        """Play it to its end. Raises Diverged at the first call or answer that is not the recorded one."""
        try:
            while self._rest:
                if isinstance(self._rest[0], FROM_OUTSIDE):
                    self._called(self._rest.popleft())
                    continue
                step = self.begin_turn()
                if step is not None:
                    self.end_turn(StepResult(step.number, ()))  # what was drawn is in the recording
        except Cut:
            pass
        return self.steps

    def _next(self, kind: type) -> EngineEntry:
        if not self._rest:
            raise Cut
        entry = self._rest.popleft()
        if not isinstance(entry, kind):
            raise Diverged(f"recorded was {entry!r} where {kind.__name__} comes here")
        return entry

    def _answer(self, entry: EngineEntry) -> object:
        expected, got = self._player.answer(entry)
        if expected != got:
            raise Diverged(f"{type(entry).__name__}: recorded {expected!r}, came to {got!r}")
        return got

    def _called(self, entry: EngineEntry) -> None:
        if isinstance(entry, Submitted) and entry.refused is None:
            was_idle = self.awaited is None and self._player.scheduler.idle
            self.submitted[entry.request_id] = (entry.now_s, was_idle)
            if was_idle:
                self._free_s = entry.now_s
        self._answer(entry)

    def _planned(self) -> Step | None:
        entry = self._next(Planned)
        assert isinstance(entry, Planned)
        step = self._answer(entry)
        assert isinstance(step, Step | None)
        if step is not None:
            self._planned_s[step.number] = entry.now_s
        return step

    def _launch(self, step: Step) -> None:
        """When it ends is in the recording."""

    def _committed(self, step: Step, result: StepResult) -> None:  # noqa: ARG002
        entry = self._next(Committed)
        assert isinstance(entry, Committed)
        firsts = tuple(self._firsts(step))
        self._answer(entry)
        if entry.ended_s > entry.launched_s:
            self._note(step, entry, firsts)
        while self._rest and isinstance(self._rest[0], WHILE_COMMITTING):
            self._answer(self._rest.popleft())

    def _note(self, step: Step, entry: Committed, firsts: tuple[str, ...]) -> None:
        work = work_of(step)
        self.measured.append((work, entry.ended_s - entry.launched_s))
        self.ran.append(
            Ran(
                work=work,
                launched_s=entry.launched_s,
                ended_s=entry.ended_s,
                committed_s=entry.now_s,
                gap_s=entry.launched_s - self._free_s,
                was_ahead=self._planned_s.pop(step.number) < self._free_s,
                firsts=firsts,
            )
        )
        self._free_s = entry.ended_s

    def _firsts(self, step: Step) -> Iterator[str]:
        for piece in step.slices:
            line = self._player.scheduler.sequences.get(piece.seq_id)
            if piece.samples and piece.seq_id not in self._seen and line is not None:
                self._seen.add(piece.seq_id)
                yield line.request.request_id

    def _is_wanted(self) -> bool:
        return not self._player.scheduler.idle


def digests(steps: Iterable[Step]) -> list[str]:
    """For each step the SHA-256 of it and all before it: equal ones mean equal runs up to there."""
    found, running = [], hashlib.sha256()
    for step in steps:
        running.update(repr(step).encode())
        found.append(running.hexdigest())
    return found


def recorded_trace(entries: Sequence[EngineEntry]) -> Trace:
    """The requests of a recording as a trace, to be sent again to another deployment; refused ones are left out.

    What is shared stays shared: beginnings of prompts, and earlier answers that prompts go on after. Choices of one
    request count as one, the longest. A request whose output had not ended when the recording did is left out.
    """
    lengths, outputs = _lengths(entries), outputs_of(entries)
    cancelled = {
        entry.request_id: entry.now_s for entry in entries if isinstance(entry, Cancelled) and entry.ended
    }
    prompts, rows, num_without = Prompts(), list[Row](), 0
    for entry in entries:
        if not isinstance(entry, Submitted) or entry.refused is not None:
            continue
        prompt = prompts.whole(entry)
        output = lengths.get(entry.seq_id, 0)
        if not output:
            num_without += 1
            continue
        left_s = cancelled.get(entry.request_id)
        rows.append(
            Row(
                arrival_s=entry.now_s,
                prompt_tokens=len(prompt),
                output_tokens=output,
                spelled=spelled_of(entry, prompt, outputs.get(entry.seq_id, array("I"))),
                client=entry.client,
                priority=entry.priority,
                cancel_after_s=None if left_s is None else max(left_s - entry.now_s, 0.0),
            )
        )
    if not rows:
        raise LoadError("the recording holds no request with an output")
    rows.sort(key=lambda row: row.arrival_s)
    return Trace("recording", tuple(rows), num_without).from_zero()


def spelled_of(entry: Submitted, prompt: Sequence[int], output: array[int]) -> Spelled:
    return Spelled(array("I", prompt), output, entry.namespace.hex(), entry.num_public_tokens)


def outputs_of(entries: Sequence[EngineEntry]) -> dict[int, array[int]]:
    """Names of the output of the longest choice, by the first sequence of its request; of those that have ended."""
    first_of: dict[int, int] = {}
    found: dict[int, array[int]] = {}
    for entry in entries:
        if isinstance(entry, Committed | Advanced):
            for parent, child in entry.forks:
                first_of[child] = first_of.get(parent, parent)
        elif isinstance(entry, Drawn):
            first = first_of.get(entry.seq_id, entry.seq_id)
            found[first] = max(found.get(first, array("I")), array("I", entry.names), key=len)
    return found


def _lengths(entries: Sequence[EngineEntry]) -> dict[int, int]:
    """Output tokens of the longest choice, by the first sequence of its request."""
    first_of: dict[int, int] = {}
    of_request: dict[str, int] = {}
    lengths: dict[int, int] = {}
    for entry in entries:
        if isinstance(entry, Submitted):
            of_request[entry.request_id] = entry.seq_id
        elif isinstance(entry, Committed | Advanced):
            for parent, child in entry.forks:
                first_of[child] = first_of.get(parent, parent)
        if isinstance(entry, Drawn):
            first = first_of.get(entry.seq_id, entry.seq_id)
            lengths[first] = max(lengths.get(first, 0), len(entry.names) // 4)
        elif isinstance(entry, Advanced) and entry.request_id in of_request:
            first = of_request[entry.request_id]
            lengths[first] = lengths.get(first, 0) + bool(entry.beams)
    return lengths
