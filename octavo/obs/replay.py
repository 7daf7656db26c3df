"""A recording, read and played again: the same calls on a fresh scheduler must give the same decisions.

The core has no clock and no randomness, so a recording that begins where its scheduler did is the whole story of its
decisions, and a test of every change that claims to leave them alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from octavo.core.scheduler import Limits, Scheduler
from octavo.core.sequence import Begun, Request, SamplingParams
from octavo.core.step import (
    Copy,
    Event,
    Finished,
    Forked,
    Held,
    Output,
    Preempted,
    Slice,
    Step,
    StepResult,
)
from octavo.errors import Bug, LoadError, OctavoError
from octavo.obs.disguise import STOP
from octavo.obs.flight import (
    Advanced,
    Asked,
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
    engine_entry,
)
from octavo.obs.recorder import BORDER_TOKENS


class Diverged(Bug):
    """A replayed scheduler decided otherwise than the recorded one."""

    code = "replay_diverged"


def read(records: Iterable[bytes]) -> list[EngineEntry]:
    """The entries of one scheduler. Raises LoadError that names the record."""
    entries: list[EngineEntry] = []
    for number, record in enumerate(records, start=1):
        try:
            entries.append(engine_entry(record))
        except (msgspec.MsgspecError, OctavoError) as error:
            raise LoadError(f"record {number} of the recording cannot be read: {error}") from error
    if not entries or not isinstance(entries[0], Opened):
        raise LoadError("this is no recording: its first record does not say which scheduler it is of")
    return entries


@dataclass
class Prompts:
    """Token sequences, put together from the names that entries give and refer to.

    What is referred to and has been overwritten gets names of its own that nothing else has, the same ones for all that
    refer to it.
    """

    _borders: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def whole(self, entry: Submitted) -> tuple[int, ...]:
        names = tuple(np.frombuffer(entry.names, np.uint32).tolist())
        before: tuple[int, ...] = ()
        if entry.num_known:
            before = self._borders.get(entry.known) or self._made_up(entry.known, entry.num_known)
        whole = before + names
        for end in range(BORDER_TOKENS, len(whole) + 1, BORDER_TOKENS):
            self._borders.setdefault(whole[end - 1], whole[:end])
        return whole

    def _made_up(self, known: int, count: int) -> tuple[int, ...]:
        """Above all names that a disguise gives."""
        return (
            *((2**31 + (known + place * 2654435761)) % 2**31 + 2**31 for place in range(count - 1)),
            known,
        )


def request_of(entry: Submitted, prompt: tuple[int, ...]) -> Request:
    """The request as the scheduler saw it, by names."""
    return Request(
        request_id=entry.request_id,
        prompt=prompt,
        params=params_of(entry.asked),
        priority=entry.priority,
        namespace=entry.namespace,
        end_token_ids=frozenset({STOP}),
        begun=tuple(
            Begun(index, tuple(np.frombuffer(names, np.uint32).tolist())) for index, names in entry.begun
        ),
        num_public_tokens=entry.num_public_tokens,
        client=entry.client,
        cost_weight=entry.cost_weight,
    )


def params_of(asked: Asked) -> SamplingParams:
    return SamplingParams(
        n=asked.n,
        best_of=asked.best_of,
        beam_width=asked.beam_width,
        max_tokens=asked.max_tokens,
        min_tokens=asked.min_tokens,
        embed=asked.embed,
        prompt_logprobs=0 if asked.scores_prompt else None,
    )


def replay(entries: Sequence[EngineEntry], *, check: bool = True) -> list[Step]:
    """Make the recorded calls on a fresh scheduler and compare every answer.

    check  verify the scheduler's invariants after each call
    Returns the steps. Raises Diverged at the first difference, and LoadError for what does not begin at the beginning.
    """
    opened = entries[0]
    if not isinstance(opened, Opened):
        raise LoadError("a recording begins with Opened")
    if not opened.is_whole:
        raise LoadError("the beginning of this recording has been overwritten: it cannot be replayed")
    player = Player(opened.limits, entries)
    for number, entry in enumerate(entries[1:], start=2):
        expected, got = player.answer(entry)
        if expected != got:
            raise Diverged(
                f"record {number}, {type(entry).__name__}: recorded {expected!r}, replayed {got!r}"
            )
        if check:
            player.scheduler.check()
    return player.steps


class Player:
    """A scheduler under replay, with the steps that are in flight.

    steps  planned so far
    """

    def __init__(self, limits: Limits, entries: Iterable[EngineEntry]) -> None:
        self.scheduler = Scheduler(limits)
        self.steps: list[Step] = []
        self._in_flight: deque[Step] = deque()
        self._prompts = Prompts()
        self._drawn = {
            entry.seq_id: np.frombuffer(entry.names, np.uint32).tolist()
            for entry in entries
            if isinstance(entry, Drawn)
        }
        self._ends: dict[int, int] = {}

    def answer(self, entry: EngineEntry) -> tuple[object, object]:
        """Make the call; (recorded answer, answer now)."""
        scheduler = self.scheduler
        match entry:
            case Submitted():
                return entry.refused, self._submit(entry)
            case Cancelled():
                events = scheduler.cancel(entry.request_id, entry.now_s)
                return entry.ended, tuple(seq_id for seq_id, _ in _ended(events))
            case Closed():
                events = scheduler.finish(entry.seq_id, entry.reason, entry.now_s)
                return entry.was_live, bool(_ended(events))
            case Planned():
                step = scheduler.plan(entry.now_s)
                if step is not None:
                    self.steps.append(step)
                    self._in_flight.append(step)
                return self.step_of(entry), step
            case Committed():
                return self._commit(entry)
            case Advanced():
                events = scheduler.advance(entry.request_id, entry.beams, entry.now_s)
                return (entry.ended, entry.forks), (_ended(events), _forks(events))
            case Pinned():
                call = scheduler.unpin if entry.takes_back else scheduler.pin
                return entry.num_blocks, call(np.frombuffer(entry.names, np.uint32).tolist(), entry.namespace)
            case CacheReset():
                return entry.num_blocks, scheduler.reset_cache()
            case Costed():
                scheduler.tell_costs(entry.fixed_tokens)
                return None, None
            case Drawn():
                return None, None
        raise LoadError("a recording opens only once")

    def step_of(self, entry: Planned) -> Step | None:
        """The recorded step, whole again: where plain decodes go on is known from their last slice."""
        if entry.number < 0:
            return None
        slices = []
        for seq_id in entry.decodes:
            line = self.scheduler.sequences.get(seq_id)
            slices.append(Slice(seq_id, line.epoch if line else -1, self._ends.get(seq_id, -1), 1, samples=1))
        for place, seq_id, epoch, start, num_tokens, blocks, samples, replaced, num_drafts in entry.pieces:
            drafts = (0,) * num_drafts
            slices.insert(place, Slice(seq_id, epoch, start, num_tokens, blocks, drafts, samples, replaced))
        for piece in slices:
            self._ends[piece.seq_id] = piece.end
        copies = tuple(Copy(*one) for one in entry.copies)
        return Step(entry.number, tuple(slices), copies, (), entry.preempted)

    def _submit(self, entry: Submitted) -> str | None:
        if entry.refused is not None:
            return entry.refused
        try:
            self.scheduler.submit(request_of(entry, self._prompts.whole(entry)), entry.now_s)
        except OctavoError as error:
            return error.code
        return None

    def _commit(self, entry: Committed) -> tuple[object, object]:
        if not self._in_flight:
            raise Diverged(f"the recording commits step {entry.number}, none is in flight")
        step = self._in_flight.popleft()
        errors = dict(entry.errors)
        outputs = tuple(self._output(piece, entry, errors.get(piece.seq_id)) for piece in step.slices)
        events = self.scheduler.commit(step, StepResult(step.number, outputs), entry.now_s)
        held = tuple(event.seq_id for event in events if isinstance(event, Held))
        lost = tuple((event.seq_id, event.because) for event in events if isinstance(event, Preempted))
        recorded = (entry.number, entry.ended, entry.forks, entry.held, entry.lost)
        return recorded, (step.number, _ended(events), _forks(events), held, lost)

    def _output(self, piece: Slice, entry: Committed, error: str | None) -> Output:
        line = self.scheduler.sequences.get(piece.seq_id)
        if error is not None or line is None or line.epoch != piece.epoch:
            return Output(piece.seq_id, piece.epoch, (), error)
        if not piece.samples or line.is_beam:
            return Output(piece.seq_id, piece.epoch)
        drawn = [piece.seq_id, *(child for parent, child in entry.forks if parent == piece.seq_id)]
        tokens = tuple(self._token(seq_id, line.num_output_tokens) for seq_id in drawn[: piece.samples])
        return Output(piece.seq_id, piece.epoch, tokens)

    def _token(self, seq_id: int, place: int) -> int:
        """The name of an output's token; of an output that had not ended, one that nothing else has."""
        names = self._drawn.get(seq_id)
        if names is not None and place < len(names):
            return int(names[place])
        return 2**31 + (seq_id * 1_000_003 + place) % 2**31


def _ended(events: Iterable[Event]) -> tuple[tuple[int, str], ...]:
    return tuple((event.seq_id, event.reason) for event in events if isinstance(event, Finished))


def _forks(events: Iterable[Event]) -> tuple[tuple[int, int], ...]:
    return tuple((event.parent_id, event.seq_id) for event in events if isinstance(event, Forked))
