"""Zero divergence: an engine's run, played by the simulator with the durations that were, is the same on every step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo import SamplingParams
from octavo.core.limits import Limits
from octavo.core.step import Step
from octavo.errors import LoadError
from octavo.obs import ring
from octavo.obs.flight import Committed, EngineEntry, Opened, Planned, Submitted
from octavo.obs.recorder import RecordedScheduler, opening
from octavo.obs.replay import Diverged, read
from octavo.sim.recorded import Rehearsal, digests, recorded_trace
from octavo.sim.timing import Linear, Timing
from octavo.sim.traces import Replay
from octavo.sim.world import Deployment, simulate
from tests.engine.tiny import engine, write_checkpoint

COMMON = [(i * 11) % 240 for i in range(30)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=14, ignore_eos=True)
REQUESTS: list[tuple[list[int], SamplingParams]] = [
    (COMMON, GREEDY),
    ([*COMMON, 5, 6, 7], SamplingParams(seed=4, n=3, max_tokens=10)),
    ([9] * 50, GREEDY),
    ([*COMMON[:21], 1, 2], SamplingParams(beam_width=3, n=2, temperature=0.0, max_tokens=6)),
    ([4, 4], SamplingParams(seed=5, stop=("e", "a", "z"), max_tokens=40)),
    (COMMON, SamplingParams(seed=6, max_tokens=30)),
    ([*range(60)], replace(GREEDY, max_tokens=25)),
    ([*COMMON, 8], SamplingParams(seed=7, max_tokens=12)),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


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


def recorded(folder: Path, **settings: Any) -> tuple[list[EngineEntry], list[Step]]:
    """A busy run of a real engine, two requests at a time, one of them given up, and the steps it made."""
    with engine(folder, max_model_len=96, **settings) as llm:
        watched = llm.engine.scheduler = llm.engine._teller.scheduler = Watched(llm.engine.scheduler.limits)
        coming, num_turns = list(enumerate(REQUESTS)), 0
        while coming or llm.engine.is_busy:
            if coming and num_turns % 3 == 0:
                for number, (prompt, params) in coming[:2]:
                    llm.engine.add(prompt, params, request_id=str(number))
                del coming[:2]
            num_turns += 1
            llm.engine.step()
            if num_turns == 8:
                llm.engine.cancel("2")
    return read(watched.records), watched.steps


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_chunk_tokens": 5},
        {"num_kv_blocks": 14, "max_num_seqs": 4},
        {"enable_prefix_caching": False, "max_num_seqs": 3},
        {"max_num_batched_tokens": 256},
    ],
    ids=str,
)
def test_every_step_is_the_recorded_one(tiny: Path, settings: dict[str, Any]) -> None:
    entries, steps = recorded(tiny, **settings)
    assert len(steps) > 20
    if "num_kv_blocks" in settings:
        assert any(step.preempted for step in steps)
    assert digests(Rehearsal(entries).run()) == digests(steps)


def test_every_committed_step_is_measured(tiny: Path) -> None:
    entries, steps = recorded(tiny)
    timed = [
        msgspec.structs.replace(entry, launched_s=1.0, ended_s=1.0 + (entry.number + 1) / 8)
        if isinstance(entry, Committed)
        else entry
        for entry in entries
    ]
    rehearsal = Rehearsal(timed)
    rehearsal.run()
    assert [took_s for _, took_s in rehearsal.measured] == [(step.number + 1) / 8 for step in steps]
    assert [work.num_tokens for work, _ in rehearsal.measured] == [step.num_tokens for step in steps]


def test_other_limits_are_noticed(tiny: Path) -> None:
    entries, _ = recorded(tiny)
    opened = entries[0]
    assert isinstance(opened, Opened)
    entries[0] = Opened(opened.version, replace(opened.limits, max_chunk_tokens=7), is_whole=True)
    with pytest.raises(Diverged, match="Planned"):
        Rehearsal(entries).run()


def test_a_turn_in_another_order_is_noticed(tiny: Path) -> None:
    """An engine that planned nothing ahead makes other calls, though the first steps are the same."""
    entries, _ = recorded(tiny)
    places = [
        place for place, entry in enumerate(entries) if type(entry).__name__ in ("Planned", "Committed")
    ]
    first, second = places[2], places[3]
    entries[first], entries[second] = entries[second], entries[first]
    with pytest.raises(Diverged):
        Rehearsal(entries).run()


def test_the_end_may_be_cut(tiny: Path) -> None:
    entries, steps = recorded(tiny)
    found = Rehearsal(entries[: len(entries) // 2]).run()
    assert 0 < len(found) < len(steps)
    assert digests(found) == digests(steps)[: len(found)]


def test_a_recording_is_a_trace(tiny: Path) -> None:
    entries, _ = recorded(tiny)
    trace = recorded_trace(entries)
    sent = [entry for entry in entries if isinstance(entry, Submitted)]
    by_prompt = {row.prompt_tokens: row for row in trace.rows}
    assert len(trace.rows) == len(sent)
    assert by_prompt[33].output_tokens == 10
    assert by_prompt[23].output_tokens <= 6
    assert by_prompt[60].output_tokens == 25
    assert by_prompt[60].cancel_after_s is None
    assert by_prompt[50].cancel_after_s is not None
    jobs = {job.num_prompt_tokens: job.tokens() for job in Replay(trace).arrivals()}
    assert jobs[33][:30] == jobs[30]
    assert jobs[60][0] == jobs[30][0], "both begin with token 0"
    assert not set(jobs[60][1:]) & set(jobs[33])


def test_a_trace_finds_earlier_answers_in_the_cache_as_the_engine_did(tiny: Path) -> None:
    """Conversations that begin with one system prompt, each turn sending all before it; one turn is sent twice."""
    system = [(i * 13) % 240 for i in range(32)]
    with engine(tiny, block_size=16, num_kv_blocks=129, max_model_len=256) as llm:
        for chat in range(2):
            said = [*system, *(chat * 100 + i for i in range(5))]
            for turn in range(4):
                count = 6 + 7 * turn + chat
                params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
                (output,) = llm.generate(said, params)
                if turn == 2:
                    llm.generate(said, params)
                said = [*said, *output.outputs[0].token_ids, *(200 + turn + i for i in range(9))]
        llm.generate([*said[:40], 7, 7, 7], GREEDY)
        entries = read(ring.records(bytes(llm.built.trail)))
    found = [cached for entry in entries if isinstance(entry, Planned) for _, cached, _ in entry.began]
    assert len(found) == 11
    assert found[:5] == [0, 32, 64, 73, 80]
    opened = entries[0]
    assert isinstance(opened, Opened)
    quick = Timing(model=Linear(overhead_s=1e-7))
    outcome = simulate(Deployment(limits=opened.limits, timing=quick), Replay(recorded_trace(entries)))
    assert [one.num_cached_tokens for one in outcome.served] == found


def test_digests_part_where_steps_do() -> None:
    steps = [Step(number, ()) for number in range(3)]
    other = [steps[0], Step(7, ()), steps[2]]
    ours, theirs = digests(steps), digests(other)
    assert ours[0] == theirs[0]
    assert len({*ours, *theirs}) == 5


def test_what_has_no_beginning_is_refused(tiny: Path) -> None:
    entries, _ = recorded(tiny)
    opened = entries[0]
    assert isinstance(opened, Opened)
    with pytest.raises(LoadError, match="overwritten"):
        Rehearsal([Opened(opened.version, opened.limits, is_whole=False), *entries[1:]])
    with pytest.raises(LoadError, match="Opened"):
        Rehearsal(entries[1:])
