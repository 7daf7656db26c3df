"""What does the recorder add to a step?

Plans and commits of a scheduler with so many sequences that decode, plain and recorded, without a model: what is timed
is all that recording adds to the engine's thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from benches import harness
from benches.harness import Bench, Figures, GateFailed
from octavo.core.limits import Limits
from octavo.core.scheduler import Scheduler
from octavo.core.sequence import Request, SamplingParams
from octavo.core.step import Output, Step, StepResult
from octavo.obs import recorder

WIDTHS = (1, 32, 256)
PROMPT, TURNS = 64, 400
RING_BYTES = 16 << 20


def limits(width: int) -> Limits:
    return Limits(
        num_blocks=40_000,
        block_tokens=16,
        max_num_seqs=width,
        max_num_batched_tokens=8192,
        max_model_len=4096,
    )


def plain(width: int) -> Scheduler:
    return Scheduler(limits(width))


def recorded(width: int) -> Scheduler:
    ring = recorder.ring(bytearray(RING_BYTES), limits(width))
    return recorder.RecordedScheduler(limits(width), ring, bytes(range(16)))


def turns(scheduler: Scheduler, width: int) -> tuple[list[Step], float]:
    """The steps, and the median seconds of a turn: a plan and a commit."""
    for number in range(width):
        prompt = tuple(range(number, number + PROMPT))
        params = SamplingParams(max_tokens=2 * TURNS)
        scheduler.submit(Request(request_id=str(number), prompt=prompt, params=params), 0.0)
    steps, took_s = list[Step](), list[float]()
    for turn in range(TURNS):
        begin_s = time.perf_counter()
        step = scheduler.plan(turn / 100)
        planned_s = time.perf_counter()
        assert step is not None
        steps.append(step)
        drawn = tuple(Output(one.seq_id, one.epoch, (turn + 5,) * one.samples) for one in step.slices)
        begun_s = time.perf_counter()
        scheduler.commit(step, StepResult(step.number, drawn), turn / 100)
        took_s.append(planned_s - begin_s + time.perf_counter() - begun_s)
    return steps, statistics.median(took_s)


def figures(repeat: int, *, make: Callable[[int], Scheduler]) -> Figures:
    del repeat
    return {f"turn_of_{width}_s": turns(make(width), width)[1] for width in WIDTHS}


def gate() -> str:
    """Recording changes no decision."""
    for width in WIDTHS:
        if turns(plain(width), width)[0] != turns(recorded(width), width)[0]:
            raise GateFailed(f"with {width} sequences a recorded scheduler plans otherwise")
    return "a recorded scheduler plans the same steps"


def bench() -> Bench:
    return Bench(
        question="What does the recorder add to a step?",
        slug="recorder",
        figure=f"turn_of_{WIDTHS[-1]}_s",
        unit="s",
        better="lower",
        shape={"sequences": list(WIDTHS), "turns": TURNS, "ring_bytes": RING_BYTES},
        gate=gate,
        subjects={
            name: partial(figures, make=make) for name, make in (("plain", plain), ("recorded", recorded))
        },
        notes=["a turn is a plan and a commit in which every sequence decodes; no model runs"],
    )


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.serving.recorder", description=__doc__)
    harness.arguments(parser)
    args = parser.parse_args(words)
    return harness.ask([bench()], harness.settings(args, "benches.serving.recorder", words))


if __name__ == "__main__":
    sys.exit(main())
