"""Every call of a scheduler and every decision it made, as JSON lines; and the replay that checks them again.

The core has no clock and no randomness, so the same calls in the same order must lead to the same steps and
events. A recording is therefore the whole story of a run's decisions, and a test of every change that claims to
leave them alone. It holds token ids, which are as private as the prompts they stand for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec

import octavo
from octavo.core.scheduler import Limits, Scheduler
from octavo.core.sequence import Request
from octavo.core.step import Event, Held, Output, Step, StepResult, Token
from octavo.errors import Bug, LoadError, OctavoError

Plain = dict[str, Any]


class Entry(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """One call. `events` are what it returned, as plain values with their type's name under "event"."""


class Opened(Entry, frozen=True):
    """First line: which scheduler the calls went to."""

    version: str
    limits: Limits


class Submitted(Entry, frozen=True):
    """`refused` is the code of the error it raised."""

    now_s: float
    request: Request
    refused: str | None = None


class Cancelled(Entry, frozen=True):
    now_s: float
    request_id: str
    events: list[Plain]


class Ended(Entry, frozen=True):
    """A call of `finish`."""

    now_s: float
    seq_id: int
    reason: str
    events: list[Plain]


class Planned(Entry, frozen=True):
    now_s: float
    step: Step | None


class Committed(Entry, frozen=True):
    now_s: float
    result: StepResult
    events: list[Plain]


class Advanced(Entry, frozen=True):
    now_s: float
    request_id: str
    beams: list[tuple[int, int]]
    events: list[Plain]


class Pinned(Entry, frozen=True):
    """A call of `pin`, or of `unpin` when `takes_back`."""

    tokens: tuple[int, ...]
    namespace: bytes
    takes_back: bool
    num_blocks: int


class CacheReset(Entry, frozen=True):
    num_blocks: int


AnyEntry = Opened | Submitted | Cancelled | Ended | Planned | Committed | Advanced | Pinned | CacheReset

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(AnyEntry)


class Sink(Protocol):
    """Where lines go: an open binary file, `io.BytesIO`, or anything else that takes bytes."""

    def write(self, line: bytes, /) -> object: ...


class RecordedScheduler(Scheduler):
    """A Scheduler that writes down what it is asked and what it answers."""

    def __init__(self, limits: Limits, sink: Sink) -> None:
        super().__init__(limits)
        self._sink = sink
        self._note(Opened(version=octavo.__version__, limits=limits))

    def submit(self, request: Request, now_s: float) -> None:
        try:
            super().submit(request, now_s)
        except OctavoError as error:
            self._note(Submitted(now_s=now_s, request=request, refused=error.code))
            raise
        self._note(Submitted(now_s=now_s, request=request))

    def cancel(self, request_id: str, now_s: float) -> list[Event]:
        events = super().cancel(request_id, now_s)
        self._note(Cancelled(now_s=now_s, request_id=request_id, events=plain_events(events)))
        return events

    def finish(self, seq_id: int, reason: str, now_s: float) -> list[Event]:
        events = super().finish(seq_id, reason, now_s)
        self._note(Ended(now_s=now_s, seq_id=seq_id, reason=reason, events=plain_events(events)))
        return events

    def plan(self, now_s: float) -> Step | None:
        step = super().plan(now_s)
        self._note(Planned(now_s=now_s, step=step))
        return step

    def commit(self, step: Step, result: StepResult, now_s: float) -> list[Event]:
        events = super().commit(step, result, now_s)
        self._note(Committed(now_s=now_s, result=_without_payload(result), events=plain_events(events)))
        return events

    def advance(self, request_id: str, beams: Sequence[tuple[int, int]], now_s: float) -> list[Event]:
        events = super().advance(request_id, beams, now_s)
        self._note(
            Advanced(now_s=now_s, request_id=request_id, beams=list(beams), events=plain_events(events))
        )
        return events

    def pin(self, tokens: Iterable[int], namespace: bytes = b"") -> int:
        kept = tuple(tokens)
        num_blocks = super().pin(kept, namespace)
        self._note(Pinned(tokens=kept, namespace=namespace, takes_back=False, num_blocks=num_blocks))
        return num_blocks

    def unpin(self, tokens: Iterable[int], namespace: bytes = b"") -> int:
        kept = tuple(tokens)
        num_blocks = super().unpin(kept, namespace)
        self._note(Pinned(tokens=kept, namespace=namespace, takes_back=True, num_blocks=num_blocks))
        return num_blocks

    def reset_cache(self) -> int:
        num_blocks = super().reset_cache()
        self._note(CacheReset(num_blocks=num_blocks))
        return num_blocks

    def _note(self, entry: Entry) -> None:
        self._sink.write(_ENCODER.encode(entry) + b"\n")


def plain_events(events: Iterable[Event]) -> list[Plain]:
    """Events as plain values, payloads left out: those belong to the executor, not to the decisions."""
    found = []
    for event in events:
        bare = replace(event, payload=None) if isinstance(event, Token | Held) else event
        fields: Plain = msgspec.to_builtins(bare)
        fields.pop("payload", None)
        found.append({"event": type(event).__name__, **fields})
    return found


def _without_payload(result: StepResult) -> StepResult:
    outputs: list[Output] = [replace(output, payload=None) for output in result.outputs]
    return StepResult(result.number, tuple(outputs))


class Diverged(Bug):
    """A replayed scheduler decided otherwise than the recorded one."""

    code = "replay_diverged"


def read(source: Path | BinaryIO) -> list[AnyEntry]:
    """The entries of a recording. A cut last line, as a killed process leaves it, is left out.

    Raises LoadError that names the line.
    """
    data = source.read_bytes() if isinstance(source, Path) else source.read()
    entries: list[AnyEntry] = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entries.append(_DECODER.decode(line))
        except (msgspec.MsgspecError, OctavoError) as error:
            raise LoadError(f"line {number} of the recording cannot be read: {error}") from error
    if not entries or not isinstance(entries[0], Opened):
        raise LoadError("this is no recording: its first line does not say which scheduler it is of")
    return entries


def replay(entries: Sequence[AnyEntry]) -> list[Step]:
    """Make the recorded calls on a fresh scheduler and compare every answer, invariants checked after each.

    Returns the steps. Raises Diverged at the first difference.
    """
    opened = entries[0]
    if not isinstance(opened, Opened):
        raise LoadError("a recording begins with Opened")
    played = _Played(Scheduler(opened.limits))
    for number, entry in enumerate(entries[1:], start=2):
        expected, got = played.answer(entry)
        if expected != got:
            raise Diverged(f"line {number}, {type(entry).__name__}: recorded {expected!r}, replayed {got!r}")
        played.scheduler.check()
    return played.steps


class _Played:
    """A scheduler under replay, with the steps that are in flight."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.steps: list[Step] = []
        self._in_flight: deque[Step] = deque()

    def answer(self, entry: AnyEntry) -> tuple[object, object]:
        """Make the call; (recorded answer, answer now)."""
        scheduler = self.scheduler
        match entry:
            case Submitted():
                return entry.refused, self._submit(entry)
            case Cancelled():
                return entry.events, plain_events(scheduler.cancel(entry.request_id, entry.now_s))
            case Ended():
                return entry.events, plain_events(scheduler.finish(entry.seq_id, entry.reason, entry.now_s))
            case Planned():
                return entry.step, self._plan(entry)
            case Committed():
                if not self._in_flight:
                    raise Diverged(f"the recording commits step {entry.result.number}, none is in flight")
                step = self._in_flight.popleft()
                return entry.events, plain_events(scheduler.commit(step, entry.result, entry.now_s))
            case Advanced():
                return entry.events, plain_events(
                    scheduler.advance(entry.request_id, entry.beams, entry.now_s)
                )
            case Pinned():
                call = scheduler.unpin if entry.takes_back else scheduler.pin
                return entry.num_blocks, call(entry.tokens, entry.namespace)
            case CacheReset():
                return entry.num_blocks, scheduler.reset_cache()
            case Opened():
                raise LoadError("a recording opens only once")

    def _submit(self, entry: Submitted) -> str | None:
        try:
            self.scheduler.submit(entry.request, entry.now_s)
        except OctavoError as error:
            return error.code
        return None

    def _plan(self, entry: Planned) -> Step | None:
        step = self.scheduler.plan(entry.now_s)
        if step is not None:
            self.steps.append(step)
            self._in_flight.append(step)
        return step
