"""Every wait has a reason and a length, and time only goes forward."""

import pytest

from octavo.core.scheduler import Scheduler
from octavo.core.sequence import Wait
from octavo.core.step import Output, StepResult
from octavo.errors import Bug
from tests.core.requests import request
from tests.core.world import limits


def ask(name, **more):
    return request(name, range(3), max_tokens=8, **more)


def land(scheduler, step, now_s, payload=None):
    outputs = [
        Output(piece.seq_id, piece.epoch, () if payload else (1,) * piece.samples, payload=payload)
        for piece in step.slices
    ]
    return scheduler.commit(step, StepResult(step.number, tuple(outputs)), now_s)


def test_the_head_waits_for_its_own_reason_and_the_others_behind_it():
    scheduler = Scheduler(limits(max_num_seqs=1))
    for second, name in enumerate("abc"):
        scheduler.submit(ask(name), float(second))
    assert scheduler.why_waiting(1) == Wait("request 'a' is before it in the queue: not yet planned", 1.0)
    step = scheduler.plan(5.0)
    assert scheduler.why_waiting(0) is None
    assert scheduler.why_waiting(1) == Wait("all seats are taken", 1.0)
    assert scheduler.why_waiting(2) == Wait("request 'b' is before it in the queue: all seats are taken", 2.0)
    assert scheduler.sequences[0].waited_s == 5.0
    land(scheduler, step, 6.0)
    scheduler.cancel("a", 7.0)
    scheduler.plan(9.0)
    assert scheduler.sequences[1].waited_s == 8.0
    assert scheduler.sequences[1].wait_reasons == {"all seats are taken": 1}
    assert scheduler.why_waiting(99) is None


def test_a_held_beam_waits_for_its_siblings_since_it_was_computed():
    scheduler = Scheduler(limits())
    scheduler.submit(ask("a", beam_width=2), 0.0)
    land(scheduler, scheduler.plan(1.0), 3.0, payload="candidates")
    assert scheduler.why_waiting(0) == Wait("a beam waits for its siblings", 3.0)
    scheduler.advance("a", [(0, 5)], 4.0)
    assert scheduler.why_waiting(0) is None


def test_a_preempted_sequence_waits_from_then_on():
    scheduler = Scheduler(limits(max_num_seqs=1))
    scheduler.submit(ask("a"), 0.0)
    land(scheduler, scheduler.plan(1.0), 2.0)
    scheduler.submit(ask("b", priority=-1), 3.0)
    step = scheduler.plan(4.0)
    assert step.preempted == (0,)
    assert scheduler.why_waiting(0).since_s == 4.0
    land(scheduler, step, 5.0)
    scheduler.cancel("b", 6.0)
    scheduler.plan(10.0)
    assert scheduler.sequences[0].waited_s == 1.0 + 6.0


@pytest.mark.parametrize("call", ["submit", "plan", "cancel", "finish", "advance"])
def test_time_never_goes_back(call):
    scheduler = Scheduler(limits())
    scheduler.submit(ask("a"), 2.0)
    arguments = {"submit": [ask("b")], "cancel": ["a"], "finish": [0, "stop"], "advance": ["a", []]}
    with pytest.raises(Bug, match=r"time went back from 2\.0 s to 1\.0 s"):
        getattr(scheduler, call)(*arguments.get(call, []), 1.0)
