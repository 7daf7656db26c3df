"""A recorded run, replayed, makes the same decisions step for step; a changed one is found out; no token is in it."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from dataclasses import replace

import msgspec
import pytest

import octavo
from octavo.core.scheduler import Limits, Scheduler
from octavo.core.sequence import Request, SamplingParams, State
from octavo.core.step import Held, Output, Step, StepResult
from octavo.errors import LoadError, RequestError
from octavo.obs import flight
from octavo.obs.recorder import RecordedScheduler, opening, ring
from octavo.obs.replay import Diverged, read, replay
from octavo.obs.ring import Ring, records

LIMITS = Limits(
    num_blocks=24,
    block_tokens=4,
    max_num_seqs=6,
    max_num_batched_tokens=16,
    max_model_len=48,
    max_pinned_blocks=4,
    fingerprint=b"\x00weights",
)
END = 7
KEY = bytes(range(16))


def request(rng: random.Random, number: int) -> Request:
    kind = rng.randrange(4)
    params = {"max_tokens": rng.randrange(1, 16)}
    if kind == 0:
        params["n"] = rng.randrange(1, 4)
    if kind == 1:
        params["beam_width"] = 2
    prompt = tuple(rng.randrange(3) for _ in range(rng.randrange(1, 30) if rng.random() < 0.9 else 60))
    return Request(
        request_id=f"r{number}",
        prompt=prompt,
        params=SamplingParams(**params),
        priority=rng.randrange(3),
        namespace=rng.choice([b"", b"tenant"]),
        end_token_ids=frozenset({END, END + 1}),
    )


def carry_out(step: Step, rng: random.Random, scheduler: Scheduler) -> StepResult:
    outputs = []
    for piece in step.slices:
        sequence = scheduler.sequences.get(piece.seq_id)
        is_beam = sequence is not None and sequence.request.params.beam_width is not None
        tokens = () if is_beam else tuple(rng.randrange(9) for _ in range(piece.samples))
        error = "NaN" if piece.samples and rng.random() < 0.02 else None
        outputs.append(
            Output(piece.seq_id, piece.epoch, () if error else tokens, error, payload={"not": "JSON", 1: {2}})
        )
    return StepResult(step.number, tuple(outputs))


class Kept(list):
    """Every record there was."""

    def __init__(self) -> None:
        super().__init__([opening(LIMITS)])

    def write(self, record: bytes) -> None:
        self.append(record)


def story(seed: int, sink: Kept | Ring, num_turns: int = 200) -> list[Step]:
    """A random run with everything a scheduler can be asked; returns its steps."""
    rng = random.Random(seed)
    scheduler = RecordedScheduler(LIMITS, sink, KEY)
    flying: deque[tuple[Step, StepResult]] = deque()
    steps: list[Step] = []
    beams: dict[str, dict[int, None]] = {}
    now_s = 0.0
    for number in range(num_turns):
        now_s += rng.random() / 7
        if number < num_turns - 140 and rng.random() < 0.5:
            with contextlib.suppress(RequestError):
                scheduler.submit(request(rng, number), now_s)
        if rng.random() < 0.05:
            scheduler.cancel(f"r{rng.randrange(60)}", now_s)
        if rng.random() < 0.05 and scheduler.sequences:
            scheduler.finish(rng.choice(sorted(scheduler.sequences)), "stop", now_s)
        if rng.random() < 0.1:
            tokens = tuple(rng.randrange(3) for _ in range(8))
            (scheduler.pin if rng.random() < 0.7 else scheduler.unpin)(tokens)
        if rng.random() < 0.03:
            scheduler.reset_cache()
        if rng.random() < 0.03:
            scheduler.tell_costs(rng.randrange(1, 12))
        if len(flying) < 2:
            step = scheduler.plan(now_s)
            if step is not None:
                steps.append(step)
                flying.append((step, carry_out(step, rng, scheduler)))
        if flying and (len(flying) == 2 or rng.random() < 0.7):
            for event in scheduler.commit(*flying.popleft(), now_s):
                if isinstance(event, Held):
                    beams.setdefault(event.request_id, {})[event.seq_id] = None
        advance_ready(scheduler, beams, rng, now_s)
    return steps


def advance_ready(
    scheduler: RecordedScheduler, beams: dict[str, dict[int, None]], rng: random.Random, now_s: float
) -> None:
    for request_id in list(beams):
        live = scheduler.live(request_id)
        if not live:
            del beams[request_id]
        elif all(one.state is State.HELD for one in live):
            del beams[request_id]
            parents = [rng.choice(live).seq_id for _ in range(2)]
            chosen = [] if rng.random() < 0.1 else [(parent, rng.randrange(9)) for parent in parents]
            scheduler.advance(request_id, chosen, now_s)


@pytest.mark.parametrize("seed", range(8))
def test_a_replayed_run_makes_the_same_steps(seed):
    kept = Kept()
    steps = story(seed, kept)
    entries = read(kept)
    assert replay(entries) == steps
    assert len(steps) > 30


def test_the_stories_cover_every_kind_of_entry():
    kinds, refused = set(), False
    for seed in range(8):
        for entry in entries_of(seed):
            kinds.add(type(entry))
            refused |= isinstance(entry, flight.Submitted) and entry.refused is not None
    assert kinds == set(flight.EngineEntry.__args__)
    assert refused


def entries_of(seed: int) -> list[flight.EngineEntry]:
    kept = Kept()
    story(seed, kept)
    return read(kept)


def test_names_hide_the_tokens_and_keep_where_prompts_part():
    prompts = [(1, 2, 3, 4), (1, 2, 3, 5), (9, 2, 3, 4)]
    found = []
    for key in (KEY, KEY[::-1]):
        kept = Kept()
        scheduler = RecordedScheduler(LIMITS, kept, key)
        for number, prompt in enumerate(prompts):
            scheduler.submit(Request(request_id=str(number), prompt=prompt), 0.0)
        found.append([one.names for one in read(kept) if isinstance(one, flight.Submitted)])
    names, others = found
    assert names[0][:12] == names[1][:12], "alike for three tokens"
    assert names[0][12:] != names[1][12:]
    cut = [[one[at : at + 4] for at in range(0, 16, 4)] for one in names]
    assert not set(cut[2]) & set(cut[0]), "the same words elsewhere, or after others, have other names"
    assert not {part for one in others for part in (one[0:4], one[4:8])} & {
        part for one in cut for part in one
    }


def test_a_beginning_that_was_given_is_referred_to():
    kept = Kept()
    limits = replace(LIMITS, max_model_len=1000, num_blocks=300)
    scheduler = RecordedScheduler(limits, kept, KEY)
    common = tuple(range(200))
    for number in range(3):
        scheduler.submit(Request(request_id=str(number), prompt=(*common, number)), 0.0)
    first, second, third = (one for one in read(kept) if isinstance(one, flight.Submitted))
    assert (first.num_known, second.num_known, third.num_known) == (0, 192, 192)
    assert len(first.names) == 201 * 4
    assert len(second.names) == 9 * 4


def test_another_decision_is_found_where_it_happens():
    entries = entries_of(1)
    place, planned = next(
        (i, one) for i, one in enumerate(entries) if isinstance(one, flight.Planned) and one.pieces
    )
    first = list(planned.pieces[0])
    first[4] += 1
    entries[place] = msgspec.structs.replace(planned, pieces=(tuple(first), *planned.pieces[1:]))
    with pytest.raises(Diverged, match=f"record {place + 1}, Planned"):
        replay(entries)


def test_another_configuration_is_found():
    entries = entries_of(2)
    entries[0] = flight.Opened("x", replace(LIMITS, max_num_batched_tokens=8), True)
    with pytest.raises(Diverged):
        replay(entries)


def test_another_end_is_found():
    entries = entries_of(3)
    place, old = next(
        (i, one) for i, one in enumerate(entries) if isinstance(one, flight.Committed) and one.ended
    )
    entries[place] = msgspec.structs.replace(old, ended=())
    with pytest.raises(Diverged, match=f"record {place + 1}, Committed"):
        replay(entries)


def test_a_ring_keeps_the_latest_and_says_so():
    ring_memory = bytearray(1 << 16)
    steps = story(5, ring(ring_memory, LIMITS), num_turns=6000)
    entries = read(records(ring_memory))
    with pytest.raises(LoadError, match="overwritten"):
        replay(entries)
    planned = [one.number for one in entries if isinstance(one, flight.Planned) and one.number >= 0]
    assert planned == list(range(planned[0], steps[-1].number + 1)), "without a gap, to the end"
    assert entries[0] == flight.Opened(octavo.__version__, LIMITS, False)
    assert sum(isinstance(one, flight.Opened) for one in entries) == 1


def test_a_broken_record_is_named_and_what_is_no_recording_refused():
    kept = Kept()
    story(4, kept)
    with pytest.raises(LoadError, match="record 4 "):
        read([*kept[:3], b"\x93\x04", *kept[3:]])
    for wrong in ([], kept[1:3]):
        with pytest.raises(LoadError, match="no recording"):
            read(wrong)
