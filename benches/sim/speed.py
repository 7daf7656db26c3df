"""How quick is the simulator: requests simulated per second of one core, and simulated time over time?

One replica under a steady load, one that is full, shared prefixes, and the hour of the Azure conversation trace on 8
replicas; with `--day`, 24 of those hours after one another on 100 replicas.

The trace lies beside the project or under OCTAVO_SHARED_DATA, in `traces`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benches import harness
from benches.harness import Bench, Figures, GateFailed
from octavo.core.limits import Limits
from octavo.sim.lengths import Lognormal, Poisson
from octavo.sim.report import lines
from octavo.sim.timing import Linear, Timing
from octavo.sim.traces import Replay, Trace, read_trace
from octavo.sim.workload import Maker, Mix, Open, Prefixes, Workload
from octavo.sim.world import Deployment, simulate

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
LIMITS = Limits(
    num_blocks=28225,
    block_tokens=16,
    max_num_seqs=256,
    max_num_batched_tokens=4096,
    max_num_mixed_tokens=2048,
    max_model_len=32768,
)
MODEL = Linear(overhead_s=6e-3, seq_s=2e-5, token_s=2.5e-5, context_s=4e-8, pair_s=1e-9)
"""About an 8 B model on an H100; what steps take matters here only for how many there are."""
MIX = Mix(prompt=Lognormal(1155, 1.0, 16000), output=Lognormal(211, 0.8, 4000))
"""Means of the Azure conversation trace."""


@dataclass(frozen=True)
class Case:
    """A deployment and how to make its workload."""

    num_replicas: int
    workload: Callable[[], Workload]
    num_requests: int

    def deployment(self) -> Deployment:
        return Deployment(limits=LIMITS, timing=Timing(model=MODEL), num_replicas=self.num_replicas)


def opened(rate: float, num_requests: int, mix: Mix = MIX) -> Open:
    return Open(gaps=Poisson(rate), maker=Maker(mix, 0), num_requests=num_requests)


def day(trace: Trace) -> Trace:
    """24 of its hours after one another."""
    rows = [replace(row, arrival_s=row.arrival_s + 3600 * hour) for hour in range(24) for row in trace.rows]
    return Trace("day", tuple(rows))


def cases(trace: Trace | None, *, with_day: bool) -> dict[str, Case]:
    shared = replace(MIX, prefixes=Prefixes(number=8, tokens=1024, share=0.8))
    found = {
        "one replica, 2 requests/s": Case(1, lambda: opened(2, 2000), 2000),
        "one replica, 8 requests/s": Case(1, lambda: opened(8, 2000), 2000),
        "one replica, shared prefixes, 2 requests/s": Case(1, lambda: opened(2, 1000, shared), 1000),
        "8 replicas, 40 requests/s": Case(8, lambda: opened(40, 4000), 4000),
    }
    if trace is not None:
        found["Azure conversation hour, 8 replicas"] = Case(8, lambda: Replay(trace), len(trace.rows))
        if with_day:
            found["Azure conversation day, 100 replicas"] = Case(
                100, lambda: Replay(day(trace)), 24 * len(trace.rows)
            )
    return found


def speed(case: Case, repeat: int) -> Figures:
    """One run. `repeat` changes nothing: it is the same run each time."""
    del repeat
    workload = case.workload()
    wall_s, core_s = time.perf_counter(), time.process_time()
    outcome = simulate(case.deployment(), workload)
    wall_s, core_s = time.perf_counter() - wall_s, time.process_time() - core_s
    steps = sum(tally.num_steps for tally in outcome.tallies)
    return {
        "requests_per_core_s": case.num_requests / core_s,
        "times_real_time": outcome.ended_ns / 1e9 / core_s,
        "steps_per_core_s": steps / core_s,
        "core_s": core_s,
        "wall_s": wall_s,
        "steps": steps,
        "mean_seqs": sum(t.seqs_ns for t in outcome.tallies)
        / max(sum(t.busy_ns for t in outcome.tallies), 1),
    }


def gate() -> str:
    """Skipping gives what playing every step does, on a short piece of each kind of load."""
    for rate, replicas in ((2, 1), (30, 1), (40, 8)):
        deployment = replace(Case(replicas, lambda: opened(1, 1), 1).deployment())
        fast, slow = (
            lines(simulate(replace(deployment, is_exact=is_exact), opened(rate, 60)))
            for is_exact in (False, True)
        )
        if fast != slow:
            raise GateFailed(f"{rate} requests/s on {replicas}: skipping and playing every step differ")
    return "every step played and stretches skipped give the same times for every request"


def bench(chosen: dict[str, Case]) -> Bench:
    return Bench(
        question="How many requests does the simulator get through in a second of one core?",
        slug="sim-speed",
        figure="requests_per_core_s",
        unit="requests/s",
        better="higher",
        shape={
            name: {"replicas": case.num_replicas, "requests": case.num_requests}
            for name, case in chosen.items()
        },
        gate=gate,
        subjects={name: partial(speed, case) for name, case in chosen.items()},
        seeds={"workload": 0},
        notes=["core seconds are this process's own: others on the machine slow the wall clock, not them"],
    )


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.sim.speed", description=__doc__)
    parser.add_argument("--day", action="store_true", help="also a day on 100 replicas; takes minutes")
    parser.add_argument("--data", type=Path, help="folder that holds traces")
    harness.arguments(parser)
    args = parser.parse_args(words)
    path = (
        args.data or Path(os.environ.get("OCTAVO_SHARED_DATA", BESIDE))
    ) / "traces/azure_llm_2023_conv.csv"
    trace = read_trace(path) if path.is_file() else None
    if trace is None:
        print(f"{path.name} is not here: its question is left out", file=sys.stderr)
    asked = bench(cases(trace, with_day=args.day))
    return harness.ask([asked], harness.settings(args, "benches.sim.speed", words))


if __name__ == "__main__":
    sys.exit(main())
