"""How far are predictions that saw no run from deployments that others measured?

2,940 aggregated deployments (AIConfigurator's silicon sample, rows that are kept): TPOT and TTFT of dense models and of
experts, predicted from shapes, data sheets and kernel tables. A random half gives two things: a front-end constant for
each engine (the least relative error of its TTFTs), and the 5th and 95th percentile of measured over
predicted, which `octavo plan` prints as its interval. Errors and coverage are those of the other half.

TTFT of a closed loop is a mean over its first wave, which comes all at once, and the others; lengths that hardly
differ keep later waves together. The dashboard's scripts say how many waves there are; a vendor's lab does not, and is
taken to have made WAVES_OF_LABS, read off the same half.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from benches import harness
from benches.harness import Bench, Figures, GateFailed
from benches.planner.rows import SHORTEST, WAVES, Pool, Run, folder, pools, runs
from octavo.planner.capacity import Steps, at_once_s, balance, room_for

WAVES_OF_LABS = 5
QUANTILES = (0.05, 0.95)


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Beside what was measured.

    ttft_s   without a front end
    floor_s  of a token, at the speed of light
    waits    that not all requests have room at once
    """

    run: Run
    ttft_s: float
    tpot_s: float
    floor_s: float
    waits: bool


def crowding() -> float:
    """How close together prompts of one wave come: lengths are spread over a fifth of the cycle, and as the square root
    of waves more in every further one; in mean over the waves after the first."""
    deviation = (1 - SHORTEST) / math.sqrt(12) / ((1 + SHORTEST) / 2)
    widths = [min(1.0, math.sqrt(12 * wave) * deviation) for wave in range(2, WAVES + 1)]
    return 1 / statistics.fmean(widths)


def predict(run: Run) -> Predicted:
    """What `octavo plan serve` computes with, and the protocol of a closed loop around it."""
    steps = Steps(run.replica, run.load)
    room = max(1.0, room_for(run.replica, run.load))
    inside = min(run.concurrency, room)
    made = balance(steps, inside, crowding=crowding())
    waves = WAVES if run.is_public else WAVES_OF_LABS
    ttft_s = at_once_s(steps, inside) / waves + (1 - 1 / waves) * made.ttft_s + run.waits_steps * made.tpot_s
    ttft_s += (run.concurrency - inside) / inside * made.latency_s
    return Predicted(
        run=run,
        ttft_s=ttft_s,
        tpot_s=made.tpot_s,
        floor_s=steps.floor_s(inside / run.replica.lanes),
        waits=run.concurrency > room,
    )


@cache
def predictions() -> tuple[tuple[Predicted, ...], tuple[str, ...]]:
    """Of every row, and why others are not predicted."""
    found, left = runs()
    return tuple(predict(run) for run in found), tuple(left)


@cache
def front_ends() -> dict[str, float]:
    """Seconds of each engine's TTFT beside the steps: the constant with the least sum of relative errors over the half
    that constants are read off."""
    half = [one for one in predictions()[0] if one.run.is_half]
    engines = sorted({one.run.engine for one in half})
    return {engine: _front_end(one for one in half if one.run.engine == engine) for engine in engines}


def _front_end(half: Iterable[Predicted]) -> float:
    """The median of what is missing, each row weighed by one over what was measured: where the sum of |t + c - m| / m
    is least."""
    missing = sorted((one.run.ttft_s - one.ttft_s, 1 / one.run.ttft_s) for one in half)
    left = sum(weight for _, weight in missing) / 2
    for value, weight in missing:
        left -= weight
        if left <= 0:
            return max(0.0, value)
    return 0.0


def tpot_error(one: Predicted) -> float:
    return one.tpot_s / one.run.tpot_s - 1


def ttft_error(one: Predicted) -> float:
    return (one.ttft_s + front_ends()[one.run.engine]) / one.run.ttft_s - 1


def chosen(group: str, *, half: bool) -> list[Predicted]:
    return [one for one in predictions()[0] if one.run.group == group and one.run.is_half is half]


def quantiles(group: str, error: Callable[[Predicted], float]) -> tuple[float, float]:
    """Of measured over predicted, in the half that constants are read off."""
    ratios = sorted(1 / (1 + error(one)) for one in chosen(group, half=True))
    low, high = (ratios[round(share * (len(ratios) - 1))] for share in QUANTILES)
    return low, high


def scores(group: str, error: Callable[[Predicted], float], repeat: int) -> Figures:
    """Errors of the other half. `repeat` changes nothing."""
    del repeat
    held = chosen(group, half=False)
    errors = [error(one) for one in held]
    low, high = quantiles(group, error)
    inside = sum(low <= 1 / (1 + one) <= high for one in errors)
    return {
        "median_error": statistics.median(map(abs, errors)),
        "mean_error": statistics.fmean(map(abs, errors)),
        "median_signed": statistics.median(errors),
        "rows": len(held),
        "interval_low": low,
        "interval_high": high,
        "covered": inside / len(held),
    }


def pool_scores(repeat: int) -> Figures:
    """Errors of TPOT where prompts are computed apart; nothing is read off these rows. `repeat` changes nothing."""
    del repeat
    errors = [pool_error(one) for one in pools()]
    return {
        "median_error": statistics.median(map(abs, errors)),
        "mean_error": statistics.fmean(map(abs, errors)),
        "median_signed": statistics.median(errors),
        "rows": len(errors),
    }


def pool_error(one: Pool) -> float:
    return Steps(one.replica, one.load).seconds(one.concurrency / one.replica.lanes) / one.tpot_s - 1


def groups(group: str, error: Callable[[Predicted], float]) -> Iterable[tuple[str, int, float, float]]:
    """(engine, device, model; rows; median magnitude; signed median) of the other half, for people to read."""
    found: dict[str, list[float]] = {}
    for one in chosen(group, half=False):
        run = one.run
        form = run.replica.weights.name
        origin = "dashboard" if run.is_public else "lab"
        key = f"{run.engine} {run.replica.device.name} {run.replica.shape.family} {form} {origin}"
        found.setdefault(key, []).append(error(one))
    for key, errors in sorted(found.items()):
        yield key, len(errors), statistics.median(map(abs, errors)), statistics.median(errors)


def faster_than_light() -> list[int]:
    """Rows that were measured below the bound of what they are labelled to be."""
    return [one.run.row for one in predictions()[0] if one.run.tpot_s < one.floor_s]


def gate() -> str:
    """No prediction is better than the speed of light."""
    made = predictions()[0]
    for one in made:
        if not one.tpot_s > one.floor_s:
            raise GateFailed(
                f"row {one.run.row}: {one.tpot_s} s a token is below the bound of {one.floor_s} s"
            )
    return f"{len(made)} predictions, none below the speed of light"


def bench() -> Bench:
    subjects: dict[str, harness.Subject] = {
        f"{name} {group}": partial(scores, group, error)
        for group in ("dense", "moe")
        for name, error in (("TPOT", tpot_error), ("TTFT", ttft_error))
    }
    subjects["TPOT decode pools"] = pool_scores
    return Bench(
        question="How far are predictions that saw no run from deployments that others measured?",
        slug="planner-silicon",
        figure="median_error",
        unit="of the measured value",
        better="lower",
        shape={"waves": WAVES, "waves of labs": WAVES_OF_LABS, "crowding": round(crowding(), 3)},
        gate=gate,
        subjects=subjects,
        seeds={"halves": 20},
        notes=_notes(),
    )


def _notes() -> list[str]:
    made, left = predictions()
    fronts = ", ".join(f"{engine} {1e3 * value:.0f} ms" for engine, value in front_ends().items())
    return [
        f"front ends, from one half: {fronts}",
        f"{len(left)} rows are not predicted: no room for their weights on the devices they name, or a spread that "
        "does not divide the model",
        f"{sum(one.waits for one in made)} rows have more requests than room; their TTFT has the wait for room in it",
        f"{len(faster_than_light())} rows were measured below the bound of their labels",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.planner.silicon", description=__doc__)
    parser.add_argument("--groups", action="store_true", help="print errors by engine, device and model too")
    harness.arguments(parser)
    parser.set_defaults(repeats=1, warmup=0)  # the same every time: nothing here is drawn at random
    args = parser.parse_args(words)
    if not folder().is_dir():
        parser.error("reference is not here: set OCTAVO_SHARED_DATA")
    code = harness.ask([bench()], harness.settings(args, "benches.planner.silicon", words))
    if args.groups:
        for group in ("dense", "moe"):
            for name, error in (("TPOT", tpot_error), ("TTFT", ttft_error)):
                for key, count, magnitude, signed in groups(group, error):
                    print(f"{name} {key}: {count} rows, {magnitude:.1%}, {signed:+.1%}")
        print("below the bound of their labels:", faster_than_light())
    return code


if __name__ == "__main__":
    sys.exit(main())
