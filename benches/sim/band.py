"""How far is a simulation from our own engine, calibrated on the first 60 requests of each run?

Six workloads at three loads; one preempts, one lives on shared prefixes. Requests come in real time whatever becomes of
those before them. The recorder's steps of the first 60 requests are fitted (`octavo.sim.fitting`), the simulator plays
all arrivals, and the requests after the first 60 are compared: p50 and p99 of TTFT and of TPOT, and throughput. Beside
them stand the errors with one timing for all runs, measured before them as `octavo calibrate` does, and with `--twice`
how far a second run of the engine itself is from the first: no simulation can be expected to come nearer. `spread`
takes the steps to fit from all over the run, which tells the model's errors from the machine's moods.

`http` asks a server on loopback at half load; what lies before and after its engine is measured by lone requests first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benches import harness
from benches.harness import Bench, Figures, GateFailed, Subject
from benches.record import slug
from benches.sim.band_load import BLOCK_TOKENS, CASES, LOADS, MAX_NUM_SEQS, planned
from benches.sim.band_runs import (
    NUM_FITTED,
    Bed,
    Measured,
    Took,
    fresh,
    measured_timing,
    play,
    replayed,
    run_engine,
    run_http,
)
from octavo.config import EngineConfig
from octavo.core.limits import Limits
from octavo.engine.build import build
from octavo.errors import OctavoError
from octavo.sim.fitting import choose
from octavo.sim.hosts import front_of, host_of
from octavo.sim.recorded import Ran, digests
from octavo.sim.report import Line, lines
from octavo.sim.timing import Timing
from octavo.sim.traces import Replay
from octavo.sim.world import Deployment, simulate

SHAPES = Path(__file__).parent.parent / "shapes"
PIECES, PIECE = 10, 0.2
"""A run is cut into so many pieces of time, and from each that share of its steps is taken."""
TARGETS = {"tpot_p50": 0.02, "tpot_p99": 0.03, "ttft_p50": 0.03, "ttft_p99": 0.05, "throughput": 0.015}
SHORT_S, SHORT_MISS_S = 0.060, 0.003
"""A 99th percentile of TTFT under the former may miss by the latter, where that is more."""
HTTP_FACTOR = 2.0


def first_steps(run: Measured) -> list[Ran]:
    """Those that had ended when the first requests had."""
    until_s = run.start_s + max(one.last_s for one in run.took[:NUM_FITTED])
    return [one for one in run.played.ran if run.start_s <= one.launched_s and one.ended_s <= until_s]


def spread_steps(run: Measured) -> list[Ran]:
    """From all over the run, so that what the machine did meanwhile is in them."""
    steps = [one for one in run.played.ran if run.start_s <= one.launched_s]
    piece_s = (steps[-1].ended_s - run.start_s) / PIECES
    return [one for one in steps if (one.launched_s - run.start_s) % piece_s < PIECE * piece_s]


def fitted(run: Measured, known: Sequence[Ran]) -> tuple[Timing, str]:
    chosen = choose([(one.work, one.ended_s - one.launched_s) for one in known])
    host = host_of(run.played)
    front_s, reply_s = run.front or front_of(run.played, run.marks)
    return Timing(model=chosen.model, host=replace(host, front_s=front_s, reply_s=reply_s)), chosen.kind


def figures_of(
    sent: Sequence[float], first: Sequence[float], last: Sequence[float], counts: Sequence[int]
) -> dict[str, float]:
    """Of the requests that were not fitted to."""
    at, came, end, num = (np.array(one[NUM_FITTED:], dtype=np.float64) for one in (sent, first, last, counts))
    several = num > 1
    tpot = (end - came)[several] / (num[several] - 1)
    found = {}
    for name, values in (("tpot", tpot), ("ttft", came - at)):
        for quantile in (50, 99):
            found[f"{name}_p{quantile}"] = float(np.percentile(values, quantile))
    return found | {"throughput": float(num.sum() / (end.max() - at.min()))}


def of_lines(found: Sequence[Line]) -> dict[str, float]:
    sent = [one.arrival_s for one in found]
    first = [one.arrival_s + (one.ttft_s or 0.0) for one in found]
    last = [one.arrival_s + (one.e2e_s or 0.0) for one in found]
    return figures_of(sent, first, last, [one.output_tokens for one in found])


def of_took(took: Sequence[Took]) -> dict[str, float]:
    return figures_of(
        [one.sent_s for one in took],
        [one.first_s for one in took],
        [one.last_s for one in took],
        [one.num_tokens for one in took],
    )


def score(
    simulated: Mapping[str, float], was: Mapping[str, float], factor: float = 1.0
) -> tuple[dict[str, float], float]:
    """Errors (simulated / measured - 1), and the largest of them as a share of what it may be."""
    errors = {name: simulated[name] / was[name] - 1 for name in TARGETS}
    allowed = {name: factor * share for name, share in TARGETS.items()}
    if was["ttft_p99"] < SHORT_S:
        allowed["ttft_p99"] = max(allowed["ttft_p99"], factor * SHORT_MISS_S / was["ttft_p99"])
    return errors, max(abs(errors[name]) / allowed[name] for name in TARGETS)


def one(bed: Bed, name: str, load_name: str, kind: str, repeat: int) -> Figures:
    """Measure a run, calibrate on its beginning, simulate it, compare. `repeat` changes nothing."""
    del repeat
    through_http = kind == "http"
    general = bed.http_timing if through_http and bed.http_timing is not None else bed.timing
    plan = bed.plan(name, load_name, general)
    measure_run = run_http if through_http else run_engine
    run = measure_run(bed, name, plan)
    was, factor = of_took(run.took), HTTP_FACTOR if through_http else 1.0
    timing, chosen = fitted(run, first_steps(run))
    bed.kinds[f"{kind}: {name}, {load_name}"] = chosen
    front = {"front_s": timing.host.front_s, "reply_s": timing.host.reply_s}
    timings = {
        "": timing,
        "from_calibrate_": replace(general, host=replace(general.host, **front)),
        "spread_": fitted(run, spread_steps(run))[0],
    }
    found: dict[str, float] = {}
    preemptions, num_steps = 0, 0
    for prefix, supposed in timings.items():
        deployment = Deployment(limits=bed.limits(CASES[name]), timing=supposed)
        outcome = simulate(deployment, Replay(plan.trace))
        said = lines(outcome)
        found |= scored(prefix, of_lines(said), was, factor)
        if not prefix:
            preemptions = sum(line.preemptions for line in said)
            num_steps = sum(tally.num_steps for tally in outcome.tallies)
    if bed.twice:
        found |= scored("again_", of_took(measure_run(bed, name, plan).took), was, factor)
    return {
        **found,
        **{f"measured_{metric}": value for metric, value in was.items()},
        "requests": len(plan.at_s),
        "requests_per_s": (len(plan.at_s) - 1) / max(plan.at_s[-1], 1e-9),
        "preemptions": sum(len(step.preempted) for step in run.played.steps),
        "simulated_preemptions": preemptions,
        "steps": len(run.played.ran),
        "simulated_steps": num_steps,
        **front,
    }


def scored(
    prefix: str, simulated: Mapping[str, float], was: Mapping[str, float], factor: float
) -> dict[str, float]:
    errors, worst = score(simulated, was, factor)
    return {f"{prefix}worst": worst, **{f"{prefix}{metric}_error": value for metric, value in errors.items()}}


def gate(bed: Bed) -> str:
    """A run played again on its own times takes every step as it was, to the last block id."""
    plan = planned(CASES["tight memory"], 24, 1e9, bed.pool, "gate")
    with fresh(bed.built, bed.limits(CASES["tight memory"])) as (engine, memory):
        took = play(engine, plan)
    if [one.num_tokens for one in took] != plan.outputs:
        raise GateFailed("an answer has another length than was asked for")
    played = replayed(memory)
    return f"{len(digests(played.steps))} steps of an engine that preempts, played again, are the same"


def bench(bed: Bed, subjects: Mapping[str, Subject], notes: list[str]) -> Bench:
    name = bed.built.plan.location.name
    resolved = bed.built.plan.resolved
    return Bench(
        question=f"How far is a simulation from our engine with {name}, calibrated on the first {NUM_FITTED} requests?",
        slug=slug(f"sim-band {name}"),
        figure="worst",
        unit="of what the error may be",
        better="lower",
        shape={
            "model": name,
            "dtype": resolved.dtype,
            "threads": resolved.num_threads,
            "fitted": NUM_FITTED,
            "targets": dict(TARGETS),
            "cases": {name: repr(case) for name, case in CASES.items()},
            "loads": dict(LOADS),
        },
        gate=partial(gate, bed),
        subjects=subjects,
        seeds={"requests": "the workload's name"},
        notes=notes,
    )


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.sim.band", description=__doc__)
    parser.add_argument(
        "--model", default="quire", help="bundled, a shape of benches/shapes, or a config.json"
    )
    parser.add_argument("--workloads", default=",".join(CASES), help="comma separated (default all six)")
    parser.add_argument("--loads", default=",".join(LOADS), help="comma separated (default %(default)s)")
    parser.add_argument("--requests", type=int, default=300, help="of a run at most (default %(default)s)")
    parser.add_argument("--run-s", type=float, default=30.0, help="seconds of arrivals (default %(default)s)")
    parser.add_argument("--calibrate-s", type=float, default=45.0, help="of driving (default %(default)s)")
    parser.add_argument("--twice", action="store_true", help="every run again, compared with itself")
    parser.add_argument("--no-http", action="store_true", help="only the engine")
    parser.add_argument("--note", action="append", default=[], help="for the record")
    harness.arguments(parser)
    parser.set_defaults(repeats=1, warmup=0)
    args = parser.parse_args(words)
    chosen = harness.settings(args, "benches.sim.band", words)
    names, loads = args.workloads.split(","), args.loads.split(",")
    if set(names) - set(CASES) or set(loads) - set(LOADS):
        parser.error(f"workloads are {', '.join(CASES)}; loads are {', '.join(LOADS)}")
    try:
        return measure(args, chosen, names, loads)
    except OctavoError as error:
        print(f"{error} [{error.code}]", file=sys.stderr)
        return 2


def measure(
    args: argparse.Namespace, chosen: harness.Settings, names: Sequence[str], loads: Sequence[str]
) -> int:
    shape = SHAPES / f"{args.model}.json"
    source = str(shape) if shape.is_file() else args.model
    blocks = max(CASES[name].num_blocks(BLOCK_TOKENS) for name in names)
    config = EngineConfig.of(
        model=source,
        num_threads=chosen.threads,
        max_num_seqs=MAX_NUM_SEQS,
        max_model_len=max(CASES[name].longest for name in names),
        block_size=BLOCK_TOKENS,
        num_kv_blocks=blocks,
    )
    built = build(config)
    try:
        vocab_size = built.plan.arch.vocab_size
        pool = list(range(vocab_size // 16, vocab_size))  # special tokens come first
        limits = built.plan.resolved.limits
        timing = measured_timing(built, limits, args.calibrate_s)
        bed = Bed(built, source, pool, timing, args.requests, args.run_s, twice=args.twice)
        subjects: dict[str, Subject] = {
            f"engine: {name}, {one_load}": partial(one, bed, name, one_load, "engine")
            for name in names
            for one_load in loads
        }
        if not args.no_http:
            bed.http_threads = max(chosen.threads - 1, 1)
            subjects |= {f"http: {name}, half": partial(one, bed, name, "half", "http") for name in names}
            bed.http_timing = http_timing(bed, limits, args.calibrate_s)
        notes = [
            *args.note,
            "worst: largest error over its target, at most 1 where all hold; errors are simulated / measured - 1",
            f"engine: {built.plan.resolved.num_threads} threads in one process; http: {bed.http_threads} threads, the"
            " front process and the load share the other core, targets are twice as wide, front_s and reply_s are"
            " medians of lone requests before the run",
            "from_calibrate_*: one timing for all runs, driven before them, but for front_s and reply_s",
            f"spread_*: fitted to the steps of {PIECE:.0%} of the run's time, in {PIECES} pieces from all over it: what"
            " remains where the machine does not change between what was fitted and what is compared",
            "again_*: the same arrivals sent to the engine a second time, measured / measured - 1",
        ]
        return harness.ask([bench(bed, subjects, notes)], chosen)
    finally:
        built.engine.close()


def http_timing(bed: Bed, limits: Limits, budget_s: float) -> Timing:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(bed.http_threads)
    try:
        return measured_timing(bed.built, limits, budget_s)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
