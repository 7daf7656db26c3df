"""A scheduler that writes down what it is asked and what it decides; see `flight.py` for what that holds.

It is always on: an entry is a few hundred bytes, and its making costs a few microseconds beside a step.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import octavo
from octavo.core.roster import Group
from octavo.core.scheduler import Limits, Scheduler
from octavo.core.sequence import Request, SamplingParams
from octavo.core.sequence import Sequence as Line
from octavo.core.step import Event, Finished, Forked, Held, Preempted, Slice, Step, StepResult, Token
from octavo.errors import OctavoError
from octavo.obs.disguise import STOP, Disguise, Names
from octavo.obs.flight import (
    Advanced,
    Asked,
    CacheReset,
    Cancelled,
    Closed,
    Committed,
    Costed,
    Drawn,
    Entry,
    Opened,
    Piece,
    Pinned,
    Planned,
    Submitted,
    encoded,
)
from octavo.obs.ring import Ring, Sink

BORDER_TOKENS = 64
"""Beginnings of so many names, and multiples, are given once and then referred to."""
MAX_BORDERS = 2**16


def opening(limits: Limits, *, is_whole: bool = True, batch_invariant: bool = True) -> bytes:
    """The record that a recording of a scheduler with these limits begins with.

    is_whole         no call is missing after it
    batch_invariant  tokens do not depend on company
    """
    return encoded(Opened(octavo.__version__, limits, is_whole, batch_invariant))


def ring(memory: bytearray | memoryview, limits: Limits, *, batch_invariant: bool = True) -> Ring:
    """A ring for the trail of a scheduler with these limits; see `opening`."""
    whole, cut = (
        opening(limits, is_whole=is_whole, batch_invariant=batch_invariant) for is_whole in (True, False)
    )
    return Ring(memory, whole, cut)


class RecordedScheduler(Scheduler):
    """A Scheduler that leaves a trail.

    sink  takes the entries; that it begins with `opening` is its maker's to see to
    key   16 random bytes, for the disguise
    """

    def __init__(self, limits: Limits, sink: Sink, key: bytes) -> None:
        super().__init__(limits)
        self._sink = sink
        self._key = key
        self._disguise = Disguise(key)
        self._borders: OrderedDict[int, None] = OrderedDict()
        self._lines: dict[int, Line] = {}
        self._ran = (0.0, 0.0)
        self._told_head: tuple[int, str | None] = (-1, None)
        self._num_submitted = 0

    def ran(self, launched_s: float, ended_s: float) -> None:
        """When the step whose commit follows was carried out."""
        self._ran = (launched_s, ended_s)

    def submit(self, request: Request, now_s: float) -> None:
        try:
            super().submit(request, now_s)
        except OctavoError as error:
            self._note(self._submitted(request, now_s, -1, error.code))
            raise
        lines = self.live(request.request_id)
        self._lines |= {line.seq_id: line for line in lines}
        self._note(self._submitted(request, now_s, lines[0].seq_id, None))

    def _submitted(self, request: Request, now_s: float, seq_id: int, refused: str | None) -> Submitted:
        names = self._disguise.names(request.prompt if refused is None else ())
        num_known, known = self._known(names)
        begun = tuple(
            (one.index, self._output([*request.prompt, *one.tokens], len(request.prompt)))
            for one in (request.begun if refused is None else ())
        )
        self._num_submitted += 1
        return Submitted(
            now_s,
            self._num_submitted - 1,
            seq_id,
            request.request_id,
            num_known,
            known,
            names[num_known:].tobytes(),
            _asked(request.params),
            request.priority,
            self._namespace(request.namespace),
            request.client,
            request.cost_weight,
            request.num_public_tokens,
            begun,
            refused,
        )

    def _known(self, names: Names) -> tuple[int, int]:
        """How many of the names have been given before, and the last of them; from now on all have."""
        borders = names[BORDER_TOKENS - 1 :: BORDER_TOKENS].tolist()
        num_known = 0
        for place, border in enumerate(borders):
            if num_known == place and border in self._borders:
                num_known += 1
            self._borders[border] = None
            self._borders.move_to_end(border)
        while len(self._borders) > MAX_BORDERS:
            self._borders.popitem(last=False)
        return num_known * BORDER_TOKENS, borders[num_known - 1] if num_known else 0

    def _namespace(self, namespace: bytes) -> bytes:
        return hashlib.blake2b(namespace, key=self._key, digest_size=8).digest() if namespace else b""

    def _output(self, tokens: Sequence[int], num_prompt: int) -> bytes:
        return self._disguise.names(tokens)[num_prompt:].tobytes()

    def cancel(self, request_id: str, now_s: float) -> list[Event]:
        events = super().cancel(request_id, now_s)
        self._drawn(events)
        self._note(Cancelled(now_s, request_id, tuple(seq_id for seq_id, _ in _ended(events))))
        return events

    def finish(self, seq_id: int, reason: str, now_s: float) -> list[Event]:
        was_live = seq_id in self.sequences
        events = super().finish(seq_id, reason, now_s)
        self._drawn(events)
        self._note(Closed(now_s, seq_id, reason, was_live))
        return events

    def plan(self, now_s: float) -> Step | None:
        step = super().plan(now_s)
        num_waiting, num_free = self.roster.num_waiting, self.cache.pool.num_available
        head, why = self._head_news()
        if step is None:
            self._note(Planned(now_s, -1, head=head, why=why, num_waiting=num_waiting, num_free=num_free))
            return None
        decodes, others = [], []
        for place, piece in enumerate(step.slices):
            if _is_plain(piece):
                decodes.append(piece.seq_id)
            else:
                others.append((place, piece))
        self._note(
            Planned(
                now_s,
                step.number,
                tuple(decodes),
                tuple(_piece(place, piece) for place, piece in others),
                tuple((copy.source, copy.target, copy.num_tokens) for copy in step.copies),
                step.preempted,
                tuple(self._began(piece for _, piece in others)),
                head,
                why,
                num_waiting,
                num_free,
            )
        )
        return step

    def _began(self, pieces: Iterable[Slice]) -> Iterable[tuple[int, int, str]]:
        """Of the pieces that begin a life of their sequence: what the cache had for it."""
        for piece in pieces:
            line = self.sequences[piece.seq_id]
            if (
                line.num_reported == len(piece.new_blocks)
                and piece.new_blocks
                and line.cache_report is not None
            ):
                yield piece.seq_id, piece.start, line.cache_report.why

    def _head_news(self) -> tuple[int | None, str | None]:
        head = self.roster.head
        told = (-1, None) if head is None else (head.seq_id, head.wait_reason)
        if told == self._told_head:
            return None, None
        self._told_head = told
        return told

    def commit(self, step: Step, result: StepResult, now_s: float) -> list[Event]:
        events = super().commit(step, result, now_s)
        (launched_s, ended_s), self._ran = self._ran, (0.0, 0.0)
        rare = [event for event in events if type(event) is not Token]
        self._drawn(rare)
        self._note(
            Committed(
                now_s,
                step.number,
                launched_s,
                ended_s,
                _ended(rare),
                tuple([(one.seq_id, one.error) for one in result.outputs if one.error is not None]),
                _forks(rare),
                tuple(event.seq_id for event in rare if type(event) is Held),
                tuple((event.seq_id, event.because) for event in rare if type(event) is Preempted),
            )
        )
        return events

    def advance(self, request_id: str, beams: Sequence[tuple[int, int]], now_s: float) -> list[Event]:
        names = []
        for parent_id, token in beams:
            parent = self.sequences.get(parent_id)
            tokens = [] if parent is None else [*parent.tokens, token]
            names.append((parent_id, int(self._disguise.names(tokens)[-1]) if tokens else 0))
        events = super().advance(request_id, beams, now_s)
        self._drawn(events)
        self._note(Advanced(now_s, request_id, tuple(names), _ended(events), _forks(events)))
        return events

    def tell_costs(self, fixed_tokens: int) -> None:
        super().tell_costs(fixed_tokens)
        self._note(Costed(fixed_tokens))

    def pin(self, tokens: Iterable[int], namespace: bytes = b"") -> int:
        kept = tuple(tokens)
        num_blocks = super().pin(kept, namespace)
        self._note_pin(kept, namespace, num_blocks, takes_back=False)
        return num_blocks

    def unpin(self, tokens: Iterable[int], namespace: bytes = b"") -> int:
        kept = tuple(tokens)
        num_blocks = super().unpin(kept, namespace)
        self._note_pin(kept, namespace, num_blocks, takes_back=True)
        return num_blocks

    def _note_pin(
        self, tokens: tuple[int, ...], namespace: bytes, num_blocks: int, *, takes_back: bool
    ) -> None:
        names = self._disguise.names(tokens).tobytes()
        self._note(Pinned(names, self._namespace(namespace), takes_back, num_blocks))

    def reset_cache(self) -> int:
        num_blocks = super().reset_cache()
        self._note(CacheReset(num_blocks))
        return num_blocks

    def _fork(self, parent: Line, group: Group, events: list[Event]) -> Line:
        child = super()._fork(parent, group, events)
        self._lines[child.seq_id] = child
        return child

    def _drawn(self, events: Iterable[Event]) -> None:
        """The outputs of those that have ended. Those of beams are told as they go on."""
        for event in events:
            if type(event) is Finished:
                line = self._lines.pop(event.seq_id, None)
                if line is None or line.is_beam or line.num_output_tokens == 0:
                    continue
                names = self._disguise.names(line.tokens)[line.num_prompt_tokens :]
                if event.stop_token is not None:
                    names[-1] = STOP
                self._note(Drawn(event.seq_id, names.tobytes()))

    def _note(self, entry: Entry) -> None:
        self._sink.write(encoded(entry))


def _is_plain(piece: Slice) -> bool:
    """A decode as there are many: the worker knows its blocks, and where it goes on."""
    return (
        piece.num_tokens == 1
        and piece.samples == 1
        and not piece.new_blocks
        and not piece.replaced
        and not piece.draft_tokens
    )


def _piece(place: int, piece: Slice) -> Piece:
    return (
        place,
        piece.seq_id,
        piece.epoch,
        piece.start,
        piece.num_tokens,
        piece.new_blocks,
        piece.samples,
        piece.replaced,
        len(piece.draft_tokens),
    )


def _asked(params: SamplingParams) -> Asked:
    return Asked(
        params.n,
        params.best_of,
        params.beam_width,
        params.max_tokens,
        params.min_tokens,
        params.embed,
        params.prompt_logprobs is not None,
    )


def _forks(events: Iterable[Event]) -> tuple[tuple[int, int], ...]:
    return tuple((event.parent_id, event.seq_id) for event in events if type(event) is Forked)


def _ended(events: Iterable[Event]) -> tuple[tuple[int, str], ...]:
    return tuple((event.seq_id, event.reason) for event in events if type(event) is Finished)
