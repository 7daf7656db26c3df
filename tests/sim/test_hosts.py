"""Pauses between steps and the times around an engine, from recordings whose times are written by hand."""

from __future__ import annotations

import msgspec
import pytest

from octavo.core.limits import Limits
from octavo.core.sequence import Request, SamplingParams
from octavo.core.step import Output, Step, StepResult
from octavo.errors import ConfigError
from octavo.obs.flight import Committed, EngineEntry, Planned, Served, Submitted
from octavo.obs.recorder import RecordedScheduler, opening
from octavo.obs.replay import read
from octavo.sim.hosts import LEAST_IDLE, Mark, front_of, host_of, lone_marks, marks_of
from octavo.sim.recorded import Rehearsal

LIMITS = Limits(num_blocks=64, block_tokens=16, max_num_seqs=8, max_num_batched_tokens=64, max_model_len=128)
STEP_S, TURN_S, PLAN_S, COMMIT_S = 10e-3, 0.1e-3, 0.5e-3, 0.2e-3


class Records:
    def __init__(self) -> None:
        self.kept = [opening(LIMITS)]

    def write(self, record: bytes) -> None:
        self.kept.append(record)


def result_of(step: Step) -> StepResult:
    return StepResult(
        step.number,
        tuple(
            Output(one.seq_id, one.epoch, (1000 + step.number,) if one.samples else ()) for one in step.slices
        ),
    )


def recorded(num_requests: int, prompt_tokens: int = 8, output_tokens: int = 3) -> list[EngineEntry]:
    """Requests one after another, in the order of an engine's calls; times are yet to be written."""
    records = Records()
    scheduler = RecordedScheduler(LIMITS, records, bytes(16))
    for number in range(num_requests):
        prompt = tuple(number * 100 + place for place in range(prompt_tokens))
        params = SamplingParams(max_tokens=output_tokens, ignore_eos=True)
        scheduler.submit(Request(request_id=str(number), prompt=prompt, params=params), 0.0)
        awaited = scheduler.plan(0.0)
        while awaited is not None:
            is_long = awaited.num_tokens > LIMITS.max_num_batched_tokens / 4
            ahead = None if is_long else scheduler.plan(0.0)
            scheduler.commit(awaited, result_of(awaited), 0.0)
            if ahead is None and not scheduler.idle:
                ahead = scheduler.plan(0.0)
            awaited = ahead
    return read(records.kept)


def timed(entries: list[EngineEntry], gap_s: float = 1.0) -> list[EngineEntry]:
    """Write times: steps of STEP_S, TURN_S apart when planned ahead, PLAN_S more when not."""
    found, now_s, free_s, launched_s = list[EngineEntry](), 0.0, 0.0, None
    ahead = False
    for entry in entries:
        match entry:
            case Submitted():
                now_s += gap_s
                free_s, launched_s = now_s, None
                entry = msgspec.structs.replace(entry, now_s=now_s)
            case Planned():
                at_s = now_s if launched_s is None else launched_s + STEP_S / 2
                entry = msgspec.structs.replace(entry, now_s=at_s)
                if launched_s is None and entry.number >= 0:
                    launched_s = free_s + TURN_S + PLAN_S
                elif entry.number >= 0:
                    ahead = True
            case Committed():
                assert launched_s is not None
                ended_s = launched_s + STEP_S
                entry = msgspec.structs.replace(
                    entry, launched_s=launched_s, ended_s=ended_s, now_s=ended_s + COMMIT_S
                )
                free_s = ended_s
                now_s = ended_s + COMMIT_S
                launched_s = ended_s + TURN_S if ahead else None
                ahead = False
            case _:
                pass
        found.append(entry)
    return found


def played(entries: list[EngineEntry]) -> Rehearsal:
    rehearsal = Rehearsal(entries)
    rehearsal.run()
    return rehearsal


def test_pauses_are_those_that_were() -> None:
    rehearsal = played(timed(recorded(7)))
    host = host_of(rehearsal)
    assert host.turn_s == pytest.approx(TURN_S)
    assert host.plan_s == pytest.approx(PLAN_S)
    assert host.reply_s == pytest.approx(COMMIT_S)
    assert [one.was_ahead for one in rehearsal.ran] == [False, True, True] * 7
    assert [took_s for _, took_s in rehearsal.measured] == pytest.approx([STEP_S] * 21)


def test_long_steps_are_not_planned_behind() -> None:
    """20 tokens are more than a quarter of 64: nothing is planned while they run."""
    rehearsal = played(timed(recorded(3, prompt_tokens=20)))
    assert [one.was_ahead for one in rehearsal.ran] == [False, False, True] * 3
    assert host_of(rehearsal).plan_s == pytest.approx(PLAN_S)


def test_first_tokens_and_who_found_the_engine_idle() -> None:
    rehearsal = played(timed(recorded(3)))
    assert [one.firsts for one in rehearsal.ran[::3]] == [("0",), ("1",), ("2",)]
    assert all(was_idle for _, was_idle in rehearsal.submitted.values())


def marks(rehearsal: Rehearsal, front_s: float, reply_s: float) -> list[Mark]:
    ends = {request_id: one.ended_s for one in rehearsal.ran for request_id in one.firsts}
    return [
        Mark(request_id, came_s - front_s, ends[request_id] + reply_s)
        for request_id, (came_s, _) in rehearsal.submitted.items()
    ]


def test_the_front_is_what_lies_before_and_after() -> None:
    rehearsal = played(timed(recorded(LEAST_IDLE + 1)))
    assert front_of(rehearsal, marks(rehearsal, 3e-3, 1e-3)) == pytest.approx((3e-3, 1e-3))


def test_a_few_busy_requests_tell_the_least_they_waited() -> None:
    rehearsal = played(timed(recorded(4)))
    found = marks(rehearsal, 3e-3, 1e-3)
    found[0] = Mark("0", found[0].sent_s - 1.0, found[0].first_s)
    assert front_of(rehearsal, found)[0] == pytest.approx(3e-3)


def test_requests_that_nobody_recorded_say_nothing() -> None:
    with pytest.raises(ConfigError, match="no request is in the recording"):
        front_of(played(timed(recorded(2))), [Mark("another", 0.0, 1.0)])


def test_lone_requests_are_told_from_later_ones() -> None:
    rehearsal = played(timed(recorded(5)))
    sent = [(0.1, 0.2), (0.3, 0.4)]
    assert [one.request_id for one in lone_marks(rehearsal, sent)] == ["3", "4"]
    assert [one.request_id for one in lone_marks(rehearsal, sent, 2)] == ["1", "2"]
    assert lone_marks(rehearsal, []) == []


def test_answers_with_one_prompt_are_marks() -> None:
    def served(*prompts: str, first_s: float = 2.0) -> Served:
        return Served("r", prompts, "", "", None, 1.0, 1.1, 1.2, first_s, 3.0, 3.1, 0.0, 5, 6, 0)

    assert marks_of([served("a"), served("b", "c"), served("d", first_s=0.0)]) == [Mark("a", 1.0, 2.0)]


def test_no_steps_no_pauses() -> None:
    with pytest.raises(ConfigError, match="holds no step"):
        host_of(Rehearsal(recorded(1)[:1]))
