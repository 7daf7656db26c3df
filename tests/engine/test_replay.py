"""A recorded run, replayed under a virtual clock, makes the same decisions step for step."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo import LLM, SamplingParams
from octavo.core.step import Step
from octavo.engine.outputs import RequestEnded, RequestOutput, Update
from octavo.obs import recorder
from tests.engine.tiny import engine

GREEDY = SamplingParams(temperature=0.0, max_tokens=14, ignore_eos=True)
DRAWN = SamplingParams(temperature=1.0, seed=4, max_tokens=10, ignore_eos=True)
COMMON = [(i * 11) % 240 for i in range(30)]

REQUESTS: list[tuple[list[int], SamplingParams]] = [
    (COMMON, GREEDY),
    ([*COMMON, 5, 6, 7], replace(DRAWN, n=3)),
    ([9] * 50, replace(GREEDY, prompt_logprobs=1)),
    ([*COMMON[:21], 1, 2], SamplingParams(beam_width=3, n=2, temperature=0.0, max_tokens=6)),
    ([4, 4], replace(DRAWN, stop=("e", "a", "z"), max_tokens=40)),
    (COMMON, replace(DRAWN, max_tokens=30)),
    ([*COMMON, 8], replace(DRAWN, best_of=2)),
]


def record(folder: Path, sink: io.BytesIO, **settings: Any) -> tuple[list[Step], list[RequestOutput]]:
    """A busy run: chunks, forks, beams, stop texts, a late arrival, two cancellations, too little memory."""
    with engine(folder, max_model_len=96, **settings) as llm:
        recorded = recorder.RecordedScheduler(llm.engine.scheduler.limits, sink)
        llm.engine.scheduler = recorded
        done = drive(llm)
        llm.engine.scheduler.check()
    sink.seek(0)
    entries = recorder.read(sink)
    steps = [one.step for one in entries if isinstance(one, recorder.Planned) and one.step is not None]
    return steps, done


def drive(llm: LLM) -> list[RequestOutput]:
    updates: list[Update] = []
    num_turns = 0
    for index, (prompt, params) in enumerate(REQUESTS[:-1]):
        llm.engine.add(prompt, params, request_id=str(index))
    while llm.engine.is_busy:
        updates += llm.engine.step()
        num_turns += 1
        if num_turns == 4:
            updates += llm.engine.cancel("0")
        if num_turns == 6:
            llm.engine.add(*REQUESTS[-1], request_id="late")
        if num_turns == 9:
            updates += llm.engine.cancel("5")
    return [update.output for update in updates if isinstance(update, RequestEnded)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_chunk_tokens": 5}, {"num_kv_blocks": 14}, {"enable_prefix_caching": False, "max_num_seqs": 3}],
    ids=str,
)
@pytest.mark.parametrize("model", ["tiny", "sliding"])
def test_a_replayed_run_makes_the_same_decisions(
    request: pytest.FixtureRequest, model: str, settings: dict[str, Any]
) -> None:
    sink = io.BytesIO()
    steps, done = record(request.getfixturevalue(model), sink, **settings)
    assert len(done) == len(REQUESTS)
    entries = recorder.read(io.BytesIO(sink.getvalue()))
    assert recorder.replay(entries) == steps
    assert recorder.replay(under_a_virtual_clock(entries)) == steps
    if "num_kv_blocks" in settings and model == "tiny":
        assert any(step.preempted for step in steps)


def under_a_virtual_clock(entries: list[recorder.AnyEntry]) -> list[recorder.AnyEntry]:
    """The same calls, one virtual second apart: no decision may hang on how long anything took."""
    return [
        msgspec.structs.replace(entry, now_s=float(second)) if hasattr(entry, "now_s") else entry
        for second, entry in enumerate(entries)
    ]


def test_recording_changes_no_decision(tiny: Path) -> None:
    """The same requests, recorded twice: byte for byte the same but for the clock."""
    found = []
    for _ in range(2):
        sink = io.BytesIO()
        record(tiny, sink)
        entries = recorder.read(io.BytesIO(sink.getvalue()))
        found.append(under_a_virtual_clock(entries))
    assert found[0] == found[1]


def test_another_decision_is_noticed(tiny: Path) -> None:
    """One token of the recording is changed: the replay says at which line the decisions part."""
    sink = io.BytesIO()
    record(tiny, sink)
    entries = recorder.read(io.BytesIO(sink.getvalue()))
    for index, entry in enumerate(entries):
        if isinstance(entry, recorder.Planned) and entry.step is not None and len(entry.step.slices) > 2:
            first, *rest = entry.step.slices
            other = replace(entry.step, slices=(replace(first, num_tokens=first.num_tokens + 1), *rest))
            entries[index] = msgspec.structs.replace(entry, step=other)
            break
    with pytest.raises(recorder.Diverged, match=f"line {index + 1}, Planned"):
        recorder.replay(entries)
