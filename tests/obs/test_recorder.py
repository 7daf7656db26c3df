"""A recorded run, replayed, makes the same decisions step for step; a changed one is found out."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections import deque
from dataclasses import replace

import pytest

from octavo.core.scheduler import Limits, Scheduler
from octavo.core.sequence import Request, SamplingParams, State
from octavo.core.step import Held, Output, Step, StepResult
from octavo.errors import LoadError, RequestError
from octavo.obs import recorder
from octavo.obs.recorder import Diverged, RecordedScheduler, read, replay

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


def story(seed: int, sink: io.BytesIO) -> list[Step]:
    """A random run with everything a scheduler can be asked; returns its steps."""
    rng = random.Random(seed)
    scheduler = RecordedScheduler(LIMITS, sink)
    flight: deque[tuple[Step, StepResult]] = deque()
    steps: list[Step] = []
    beams: dict[str, dict[int, None]] = {}
    now_s = 0.0
    for number in range(200):
        now_s += rng.random() / 7
        if number < 60 and rng.random() < 0.5:
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
        if len(flight) < 2:
            step = scheduler.plan(now_s)
            if step is not None:
                steps.append(step)
                flight.append((step, carry_out(step, rng, scheduler)))
        if flight and (len(flight) == 2 or rng.random() < 0.7):
            for event in scheduler.commit(*flight.popleft(), now_s):
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
    sink = io.BytesIO()
    steps = story(seed, sink)
    entries = read(io.BytesIO(sink.getvalue()))
    assert replay(entries) == steps
    assert len(steps) > 30
    kinds = {type(entry) for entry in entries}
    assert {recorder.Submitted, recorder.Planned, recorder.Committed, recorder.Cancelled} <= kinds


def test_the_stories_cover_every_kind_of_entry():
    kinds = set()
    refused = False
    for seed in range(8):
        sink = io.BytesIO()
        story(seed, sink)
        for entry in read(io.BytesIO(sink.getvalue())):
            kinds.add(type(entry).__name__)
            refused |= isinstance(entry, recorder.Submitted) and entry.refused is not None
    assert kinds == {
        "Opened",
        "Submitted",
        "Cancelled",
        "Ended",
        "Planned",
        "Committed",
        "Advanced",
        "Pinned",
        "CacheReset",
    }
    assert refused


def entries_of(seed: int) -> list[recorder.AnyEntry]:
    sink = io.BytesIO()
    story(seed, sink)
    return read(io.BytesIO(sink.getvalue()))


def test_another_decision_is_found_where_it_happens():
    entries = entries_of(1)
    place, planned = next(
        (i, entry) for i, entry in enumerate(entries) if isinstance(entry, recorder.Planned) and entry.step
    )
    first = planned.step.slices[0]
    other = replace(
        planned.step, slices=(replace(first, num_tokens=first.num_tokens + 1), *planned.step.slices[1:])
    )
    entries[place] = recorder.Planned(now_s=planned.now_s, step=other)
    with pytest.raises(Diverged, match=f"line {place + 1}, Planned"):
        replay(entries)


def test_another_configuration_is_found():
    entries = entries_of(2)
    entries[0] = recorder.Opened(version="x", limits=replace(LIMITS, max_num_batched_tokens=8))
    with pytest.raises(Diverged):
        replay(entries)


def test_another_refusal_is_found():
    entries = entries_of(3)
    place = next(
        i for i, entry in enumerate(entries) if isinstance(entry, recorder.Submitted) and not entry.refused
    )
    old = entries[place]
    entries[place] = recorder.Submitted(
        now_s=old.now_s, request=old.request, refused="context_length_exceeded"
    )
    with pytest.raises(Diverged, match="Submitted"):
        replay(entries)


def test_a_cut_last_line_is_left_out_and_a_broken_one_is_named():
    sink = io.BytesIO()
    story(4, sink)
    data = sink.getvalue()
    whole = read(io.BytesIO(data))
    assert read(io.BytesIO(data[:-20])) == whole[:-1]
    lines = data.split(b"\n")
    lines[3] = b'{"type": "Planned"}'
    with pytest.raises(LoadError, match="line 4"):
        read(io.BytesIO(b"\n".join(lines)))


@pytest.mark.parametrize("data", [b"", b"{}\n", b'{"type":"Planned","now_s":0.0,"step":null}\n'])
def test_what_is_no_recording_is_refused(data):
    with pytest.raises(LoadError):
        read(io.BytesIO(data))


def test_a_recording_is_one_json_object_per_line_and_read_from_a_file(tmp_path):
    path = tmp_path / "run.jsonl"
    with path.open("wb") as sink:
        scheduler = RecordedScheduler(LIMITS, sink)
        scheduler.submit(Request(request_id="a", prompt=(1, 2, 3)), 0.25)
        scheduler.plan(0.5)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["type"] for row in rows] == ["Opened", "Submitted", "Planned"]
    assert rows[1]["now_s"] == 0.25
    assert rows[1]["request"]["prompt"] == [1, 2, 3]
    assert len(replay(read(path))) == 1
