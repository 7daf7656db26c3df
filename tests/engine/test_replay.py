"""A recorded run, replayed under a virtual clock, makes the same decisions step for step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo import LLM, SamplingParams
from octavo.core.limits import Limits
from octavo.core.step import Step
from octavo.engine.outputs import RequestEnded, RequestOutput, Update
from octavo.obs.flight import EngineEntry, Planned
from octavo.obs.recorder import RecordedScheduler, opening
from octavo.obs.replay import Diverged, read, replay
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


class Watched(RecordedScheduler):
    """Keeps its records and, beside them, the steps themselves."""

    def __init__(self, limits: Limits) -> None:
        self.records = [opening(limits)]
        self.steps: list[Step] = []
        super().__init__(limits, self, bytes(16))

    def write(self, record: bytes) -> None:
        self.records.append(record)

    def plan(self, now_s: float) -> Step | None:
        step = super().plan(now_s)
        self.steps += [] if step is None else [step]
        return step


def record(folder: Path, **settings: Any) -> tuple[list[EngineEntry], list[Step], list[RequestOutput]]:
    """A busy run: chunks, forks, beams, stop texts, a late arrival, two cancellations, too little memory."""
    with engine(folder, max_model_len=96, **settings) as llm:
        watched = llm.engine.scheduler = llm.engine._teller.scheduler = Watched(llm.engine.scheduler.limits)
        done = drive(llm)
        llm.engine.scheduler.check()
    return read(watched.records), watched.steps, done


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
    entries, steps, done = record(request.getfixturevalue(model), **settings)
    assert len(done) == len(REQUESTS)
    assert replay(entries) == steps
    assert replay(under_a_virtual_clock(entries)) == steps
    if "num_kv_blocks" in settings and model == "tiny":
        assert any(step.preempted for step in steps)


def under_a_virtual_clock(entries: list[EngineEntry]) -> list[EngineEntry]:
    """The same calls, one virtual second apart: no decision may hang on how long anything took."""
    return [
        msgspec.structs.replace(entry, now_s=float(second)) if hasattr(entry, "now_s") else entry
        for second, entry in enumerate(entries)
    ]


def test_recording_changes_no_decision(tiny: Path) -> None:
    """The same requests, recorded twice: the same but for the clock."""
    first, second = (under_a_virtual_clock(without_durations(record(tiny)[0])) for _ in range(2))
    assert first == second


def without_durations(entries: list[EngineEntry]) -> list[EngineEntry]:
    return [
        msgspec.structs.replace(entry, launched_s=0.0, ended_s=0.0) if hasattr(entry, "ended_s") else entry
        for entry in entries
    ]


def test_another_decision_is_noticed(tiny: Path) -> None:
    """One token of the recording is changed: the replay says at which record the decisions part."""
    entries, _, _ = record(tiny)
    index, entry = next(
        (index, one) for index, one in enumerate(entries) if isinstance(one, Planned) and len(one.pieces) > 2
    )
    place, seq_id, epoch, start, num_tokens, *rest = entry.pieces[0]
    other = (place, seq_id, epoch, start, num_tokens + 1, *rest)
    entries[index] = msgspec.structs.replace(entry, pieces=(other, *entry.pieces[1:]))
    with pytest.raises(Diverged, match=f"record {index + 1}, Planned"):
        replay(entries)
