"""What `octavo calibrate` asks an engine for, and that the steps tell what they cost, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from octavo.codec.numbers import NumberTokenizer
from octavo.core.limits import Limits
from octavo.core.step import Output, Step, StepResult
from octavo.engine.calibrating import (
    DECODE_STEPS,
    REPEATS,
    Ask,
    Pace,
    Trial,
    affordable,
    drive,
    trials,
)
from octavo.engine.loop import Engine
from octavo.errors import Bug, ConfigError
from octavo.exec.executor import Start
from octavo.obs.recorder import RecordedScheduler, opening
from octavo.obs.replay import read
from octavo.sim.fitting import choose
from octavo.sim.recorded import Rehearsal
from octavo.sim.timing import Linear, work_of

LIMITS = Limits(
    num_blocks=600, block_tokens=16, max_num_seqs=8, max_num_batched_tokens=128, max_model_len=512
)
TRUE = Linear(overhead_s=4e-4, seq_s=3e-5, token_s=6e-5, context_s=4e-8, pair_s=2e-8)
VOCAB = 90


class Timed:
    """Computes nothing; each step moves the clock by what it would take.

    draws  the token it always draws
    """

    def __init__(self, draws: int = 5) -> None:
        self.now_s = 100.0
        self.draws = draws
        self.steps: list[Step] = []

    def run(
        self,
        step: Step,
        starts: Sequence[Start] = (),  # noqa: ARG002
        appended: Sequence[tuple[int, int]] = (),  # noqa: ARG002
        ended: Sequence[int] = (),  # noqa: ARG002
    ) -> StepResult:
        self.steps.append(step)
        self.now_s += TRUE.seconds(work_of(step))
        outputs = [Output(one.seq_id, one.epoch, (self.draws,) if one.samples else ()) for one in step.slices]
        return StepResult(step.number, tuple(outputs))


class Records:
    def __init__(self) -> None:
        self.kept = [opening(LIMITS)]

    def write(self, record: bytes) -> None:
        self.kept.append(record)


def engine_on(timed: Timed, records: Records) -> Engine:
    scheduler = RecordedScheduler(LIMITS, records, bytes(16))
    return Engine(
        scheduler,
        timed,
        NumberTokenizer(VOCAB, frozenset()),
        vocab_size=VOCAB,
        clock=lambda: timed.now_s,
        on_ran=scheduler.ran,
    )


def test_trials_span_widths_chunks_and_both() -> None:
    names = [one.name for one in trials(LIMITS)]
    assert len(set(names)) == len(names)
    for wanted in (
        "1 decode at 32",
        "8 decode at 256",
        "chunk of 2",
        "chunk of 128",
        "2 decode and a chunk of 64",
    ):
        assert wanted in names
    assert "12 decode at 32" not in names, "more than may run"
    assert "chunk of 256" not in names, "more than a step holds"
    assert any(name.startswith("prompt of") for name in names), "one that takes several chunks"


@pytest.mark.parametrize(
    "limits",
    [
        LIMITS,
        replace(LIMITS, num_blocks=40),
        replace(LIMITS, max_model_len=64),
        replace(LIMITS, num_blocks=5000, max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=4096),
    ],
    ids=str,
)
def test_every_trial_fits(limits: Limits) -> None:
    for trial in trials(limits):
        assert len(trial.asks) <= limits.max_num_seqs
        blocks = [-(-(ask.prompt_tokens + ask.output_tokens) // limits.block_tokens) for ask in trial.asks]
        assert sum(blocks) <= limits.num_blocks - 1
        assert all(ask.prompt_tokens + ask.output_tokens <= limits.max_model_len for ask in trial.asks)


def test_an_engine_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 blocks .* too small to be calibrated"):
        trials(replace(LIMITS, num_blocks=2, max_model_len=14))


def test_the_dearest_are_left_out_first() -> None:
    planned = [Trial(str(size), (Ask(size, 1),)) for size in (10, 1000, 100)]
    pace = Pace(step_s=0.0, token_s=0.01)
    assert affordable(planned, pace, 1000.0) == (planned, REPEATS)
    assert affordable(planned, pace, 25.0) == (planned, 2), "11.1 seconds each"
    assert affordable(planned, pace, 12.0) == (planned, 1)
    assert affordable(planned, pace, 1.2) == ([planned[0], planned[2]], 1)
    assert affordable(planned, pace, 0.0) == ([planned[0]], 1), "one is always made"


def test_steps_tell_what_they_cost() -> None:
    timed, records = Timed(), Records()
    engine, made = engine_on(timed, records), list[None]()
    planned = trials(LIMITS)
    rounds = drive(
        engine, VOCAB, planned, budget_s=8.0, clock=lambda: timed.now_s, on_trial=lambda: made.append(None)
    )
    engine.close()
    assert rounds > REPEATS
    assert len(made) == rounds * len(planned)
    widths = {len(step.slices) for step in timed.steps if all(one.num_tokens == 1 for one in step.slices)}
    assert {1, 2, 3, 4, 6, 8} <= widths
    at_eight = [step for step in timed.steps if len(step.slices) == 8 and step.num_tokens == 8]
    assert len(at_eight) >= rounds * (DECODE_STEPS - 2), "prompts end in two steps, one after the other"
    played = Rehearsal(read(records.kept))
    played.run()
    chosen = choose(played.measured)
    assert chosen.kind == "linear"
    assert isinstance(chosen.model, Linear)
    for name in ("overhead_s", "token_s", "context_s", "pair_s"):
        assert getattr(chosen.model, name) == pytest.approx(getattr(TRUE, name), rel=0.3), name
    assert chosen.error.median < 1e-6


def test_a_budget_too_short_still_makes_the_cheapest_trial() -> None:
    timed, records = Timed(), Records()
    engine, made = engine_on(timed, records), list[None]()
    rounds = drive(
        engine,
        VOCAB,
        trials(LIMITS),
        budget_s=0.001,
        clock=lambda: timed.now_s,
        on_trial=lambda: made.append(None),
    )
    engine.close()
    assert rounds == len(made) == 1


def test_a_request_that_is_cut_short_is_no_measure() -> None:
    class Broken(Timed):
        def run(
            self,
            step: Step,
            starts: Sequence[Start] = (),
            appended: Sequence[tuple[int, int]] = (),
            ended: Sequence[int] = (),
        ) -> StepResult:
            result = super().run(step, starts, appended, ended)
            return StepResult(
                step.number, tuple(one._replace(tokens=(), error="NaN") for one in result.outputs)
            )

    engine = engine_on(Broken(), Records())
    with pytest.raises(Bug, match="ended 'error'"):
        drive(engine, VOCAB, trials(LIMITS), budget_s=1.0, clock=lambda: 0.0)
    engine.close()
