"""Scenes: a deployment under a seeded load in the simulator, recorded as a server would record it.

The real scheduler decides, writes its trail as an engine's does, and is told of steps as they end on the virtual clock;
a baseline's trail is written for it. What comes out is a Recording like one that was read from a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import octavo
from octavo.core.admit import NO_BLOCKS, NO_SEAT, NO_TOKENS
from octavo.core.cache import CACHING_IS_OFF
from octavo.core.limits import Limits
from octavo.core.sequence import Request
from octavo.core.step import Event, Finished, Step, StepResult
from octavo.errors import LoadError
from octavo.obs import recording
from octavo.obs.disguise import Disguise
from octavo.obs.flight import (
    Asked,
    Cancelled,
    Committed,
    Departed,
    Entry,
    Planned,
    Saved,
    Section,
    Served,
    Submitted,
    encoded,
)
from octavo.obs.recorder import RecordedScheduler, opening
from octavo.obs.recording import Recording
from octavo.obs.replay import read
from octavo.sim.baselines import DYNAMIC_WAIT_S, STATIC_WAIT_S, Baseline
from octavo.sim.operations import Failure
from octavo.sim.served import Served as Simulated
from octavo.sim.timing import NS_PER_S, Timing, step_ns, work_of
from octavo.sim.workload import Workload
from octavo.sim.world import Deployment, Outcome, Split, World

BATCH_FULL = "its batch is not full yet"
BATCH_RUNS = "a whole batch is under way"
WHOLE = {"static": STATIC_WAIT_S, "dynamic": DYNAMIC_WAIT_S}
"""Baselines that run batches as a whole, and how long a batch waits to be full."""


class Pools(Deployment):
    """Prompts and answers computed apart, by schedulers of which somebody takes notes."""

    def _check_split(self, split: Split) -> None:
        """Whoever makes one here has a caching scheduler and no operations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is played.

    workload    makes it, the same one every time
    baseline    a name of `octavo.sim.baselines.BASELINES`, instead of the real scheduler
    is_private  each client has a namespace of its own; otherwise all share one
    has_front   requests come through a front process, which takes notes, too
    why         for which the file was saved
    """

    limits: Limits
    timing: Timing
    workload: Callable[[], Workload]
    num_replicas: int = 1
    routing: str = "prefix"
    baseline: str | None = None
    failures: tuple[Failure, ...] = ()
    split: Split | None = None
    is_private: bool = False
    has_front: bool = True
    why: str = "an operator asked for it"


class Tape:
    """What one engine has written."""

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def write(self, record: bytes) -> None:
        self.records.append(record)


def play(scene: Scene) -> tuple[Recording, Outcome]:
    """The recording of a scene, and what the simulator itself says of it."""
    tapes: list[Tape] = []
    key = hashlib.blake2b(b"octavo scene", digest_size=16).digest()

    def decider(limits: Limits) -> Taped | TapedBaseline:
        tape = Tape()
        tapes.append(tape)
        is_whole = scene.baseline is None and scene.split is None
        tape.write(opening(limits, is_whole=is_whole))
        if scene.baseline is not None:
            return TapedBaseline(scene.baseline, limits, tape, key, scene.timing)
        return Taped(limits, tape, key, scene.timing, is_private=scene.is_private)

    made = Deployment if scene.split is None else Pools
    deployment = made(
        limits=scene.limits,
        timing=scene.timing,
        num_replicas=scene.num_replicas,
        routing=scene.routing,
        decider=decider,
        split=scene.split,
        operations=scene.failures,
        is_exact=True,
    )
    outcome = World(deployment, scene.workload()).run()
    return _recording(scene, outcome, tapes), outcome


def save(path: Path, found: Recording) -> int:
    """Write it as a server would. Returns the bytes of the file. Raises LoadError where that is impossible."""
    sections: list[tuple[Section, Iterable[bytes]]] = [
        (Section("front"), [encoded(entry) for entry in found.front])
    ]
    sections += [
        (Section("engine", one.number, one.epoch), [encoded(entry) for entry in one.entries])
        for one in found.engines
    ]
    try:
        return recording.write(path, found.saved, sections)
    except OSError as error:
        raise LoadError(f"cannot write {path}: {error.strerror}") from error


class Taped(RecordedScheduler):
    """A recorded scheduler that works out from the time model when a step was launched."""

    def __init__(self, limits: Limits, tape: Tape, key: bytes, timing: Timing, *, is_private: bool) -> None:
        super().__init__(limits, tape, key)
        self._timing = timing
        self._is_private = is_private

    def submit(self, request: Request, now_s: float) -> None:
        if self._is_private:
            request = replace(request, namespace=request.client.encode())
        super().submit(request, now_s)

    def commit(self, step: Step, result: StepResult, now_s: float) -> list[Event]:
        self.ran(now_s - _took_s(self._timing, step), now_s)
        return super().commit(step, result, now_s)


class TapedBaseline(Baseline):
    """A baseline that writes the entries of a scheduler, as far as it has what they tell. It cannot be replayed."""

    def __init__(self, name: str, limits: Limits, tape: Tape, key: bytes, timing: Timing) -> None:
        super().__init__(limits, is_whole=name in WHOLE, wait_s=WHOLE.get(name, 0.0))
        self._tape = tape
        self._disguise = Disguise(key)
        self._timing = timing
        self._reserved = 1 << max(self._piece_blocks - 1, 0).bit_length()
        self._placed: set[int] = set()
        self._num_submitted = 0

    def _note(self, entry: Entry) -> None:
        self._tape.write(encoded(entry))

    def submit(self, request: Request, now_s: float) -> None:
        seq_id = self._next_seq
        super().submit(request, now_s)
        self._note(
            Submitted(
                now_s,
                self._num_submitted,
                seq_id,
                request.request_id,
                0,
                0,
                self._disguise.names(request.prompt).tobytes(),
                Asked(max_tokens=request.params.max_tokens),
                request.priority,
                client=request.client,
            )
        )
        self._num_submitted += 1

    def cancel(self, request_id: str, now_s: float) -> list[Event]:
        events = super().cancel(request_id, now_s)
        self._note(Cancelled(now_s, request_id, tuple(seq_id for seq_id, _ in _ended(events))))
        return events

    def plan(self, now_s: float) -> Step | None:
        step = super().plan(now_s)
        head = self._waiting[0].seq_id if self._waiting else -1
        why = self._why() if self._waiting else None
        held = self._reserved * len(self._running)
        free = self.limits.num_blocks - 1 - held
        if step is None:
            self._note(Planned(now_s, -1, head=head, why=why, num_waiting=self.num_waiting, num_free=free))
            return None
        pieces, began = [], []
        for place, piece in enumerate(step.slices):
            line = self._by_id[piece.seq_id]
            blocks: tuple[int, ...] = ()
            if piece.seq_id not in self._placed:
                self._placed.add(piece.seq_id)
                blocks = tuple(range(line.place + 1, line.place + 1 + self._reserved))
                began.append((piece.seq_id, 0, CACHING_IS_OFF))
            pieces.append(
                (place, piece.seq_id, 0, piece.start, piece.num_tokens, blocks, piece.samples, (), 0)
            )
        self._note(
            Planned(
                now_s,
                step.number,
                (),
                tuple(pieces),
                began=tuple(began),
                head=head,
                why=why,
                num_waiting=self.num_waiting,
                num_free=free,
            )
        )
        return step

    def _why(self) -> str:
        """Why the first in the queue has not begun."""
        if self.is_whole:
            return BATCH_RUNS if self._running else BATCH_FULL
        if len(self._running) >= self.limits.max_num_seqs:
            return NO_SEAT
        piece = self._memory.take(self._piece_blocks)
        if piece is None:
            return NO_BLOCKS
        self._memory.give_back(piece)
        return NO_TOKENS

    def commit(self, step: Step, result: StepResult, now_s: float) -> list[Event]:
        events = super().commit(step, result, now_s)
        launched_s = now_s - _took_s(self._timing, step)
        self._note(Committed(now_s, step.number, launched_s, now_s, _ended(events)))
        return events


def _took_s(timing: Timing, step: Step) -> float:
    return step_ns(timing.model, work_of(step, with_slices=timing.model.needs_slices)) / NS_PER_S


def _ended(events: Iterable[Event]) -> tuple[tuple[int, str], ...]:
    return tuple((event.seq_id, event.reason) for event in events if isinstance(event, Finished))


def _recording(scene: Scene, outcome: Outcome, tapes: list[Tape]) -> Recording:
    places = [(number, 1) for number in range(len(tapes))]
    gone = set()
    for nth, failure in enumerate(one for one in scene.failures if one.back_after_s is not None):
        places[scene.num_replicas + nth] = (failure.replica, 2)
        gone.add(failure.replica)
    engines = [
        recording.Engine(*place, read(tape.records))
        for number, (place, tape) in enumerate(zip(places, tapes, strict=True))
        if number not in gone
    ]
    engines.sort(key=lambda one: one.number)
    at_s = outcome.ended_ns / NS_PER_S
    saved = Saved(octavo.__version__, at_s, at_s, scene.why, "a simulated one", _settings(scene))
    found = Recording(saved, [], engines)
    if scene.has_front:
        every = [(place, read(tape.records)) for place, tape in zip(places, tapes, strict=True)]
        placed: dict[str, list[tuple[int, float, str]]] = {}
        for (number, _), entries in every:
            for entry in entries:
                if isinstance(entry, Submitted):
                    placed.setdefault(entry.request_id, []).append(
                        (number, entry.now_s, "it has least to do")
                    )
        found.front += [
            _served(one, scene.timing, sorted(placed.get(one.request_id, []), key=lambda p: p[1]))
            for one in outcome.served
        ]
        found.front += [
            Departed(one.at_s + one.found_s, one.replica, 1, "was killed by signal 9", _aboard(one, every))
            for one in scene.failures
        ]
    return found


def _aboard(failure: Failure, every: Iterable[tuple[tuple[int, int], Iterable[object]]]) -> int:
    """Requests that an engine had when it failed."""
    entries = list(next(entries for place, entries in every if place == (failure.replica, 1)))
    submitted = sum(isinstance(entry, Submitted) for entry in entries)
    ended = sum(len(entry.ended) for entry in entries if isinstance(entry, Committed | Cancelled))
    return submitted - ended


def _served(one: Simulated, timing: Timing, placed: list[tuple[int, float, str]]) -> Served:
    """What a front process would have noted of it."""
    received_s = one.job.at_ns / NS_PER_S
    posted_s = received_s + timing.host.front_s
    first_s = 0.0 if one.first_ns is None else one.first_ns / NS_PER_S
    last_s = one.last_ns / NS_PER_S
    ended_s = (one.ended_ns or 0) / NS_PER_S
    return Served(
        f"client-{one.request_id}",
        (one.request_id,),
        "/v1/completions",
        one.job.client or "public",
        None if one.reason == "length" else one.reason,
        received_s,
        posted_s,
        posted_s,
        first_s,
        last_s,
        max(last_s, ended_s) + timing.host.reply_s,
        0.0,
        one.num_prompt_tokens,
        one.num_tokens,
        one.num_cached_tokens,
        tuple(placed),
    )


def _settings(scene: Scene) -> dict[str, str]:
    limits = scene.limits
    shown: dict[str, object] = {
        "engines": scene.num_replicas,
        "routing": scene.routing,
        "max_num_seqs": limits.max_num_seqs,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "max_num_mixed_tokens": limits.max_num_mixed_tokens,
        "max_chunk_tokens": limits.max_chunk_tokens,
        "max_model_len": limits.max_model_len,
        "num_kv_blocks": limits.num_blocks,
        "block_size": limits.block_tokens,
        "enable_prefix_caching": limits.enable_prefix_caching,
    }
    if scene.baseline is not None:
        shown["baseline"] = scene.baseline
    if scene.split is not None:
        shown["decode_replicas"] = scene.split.num_decode
    return {name: str(value) for name, value in shown.items()}
