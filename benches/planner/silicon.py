"""How far are predictions that saw no run from deployments that others measured?

2,940 aggregated deployments (AIConfigurator's silicon sample, rows that are kept): TPOT and TTFT of dense models and of
experts, predicted from shapes, data sheets and kernel tables. A random half gives two things: a front end for each
engine (the least relative error of its TTFTs), and the 5th and 95th percentile of measured over
predicted, which `octavo plan` prints as its interval. Errors and coverage are those of the other half. Figures are of
the rows that can be what their labels say, and once more of every row: left out of the first are rows measured below
the bound of light, and those that the dashboard is known to have run with drafts.

TTFT of a closed loop is a mean over its first wave, which comes all at once, and the others; lengths that hardly
differ keep later waves together. The dashboard's scripts say how many waves there are; a vendor's lab does not, and is
taken to have made WAVES_OF_LABS, read off the same half. A lab's requests are all alike: an engine that computes every
prompt before it decodes on, as SGLang does, keeps them in step, and each wave comes at once.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from benches import harness
from benches.harness import Bench, Figures, GateFailed
from benches.planner.rows import SHORTEST, WAVES, Pool, Run, folder, pools, runs
from octavo.planner.capacity import Steps, at_once_s, balance, room_for
from octavo.planner.front_end import FrontEnd
from octavo.planner.steady import Steady

Floats = NDArray[np.float64]

WAVES_OF_LABS = 5
QUANTILES = (0.05, 0.95)

TOKEN_S = [1e-6 * micro for micro in range(21)]
EXPERTS_S = [1e-4 * tenth for tenth in range(21)]
"""Of a front end, that are tried; its constant for a request is then a weighted median."""


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

    @property
    def is_possible(self) -> bool:
        """Whether what was measured can be what its label says."""
        return not self.run.drafts and self.run.tpot_s >= self.floor_s


def crowdings() -> list[float]:
    """How close together prompts of each wave after the first come: lengths are spread over a fifth of the cycle, and
    as the square root of the waves before it more in every further one."""
    deviation = (1 - SHORTEST) / math.sqrt(12) / ((1 + SHORTEST) / 2)
    return [1 / min(1.0, math.sqrt(12 * before) * deviation) for before in range(1, WAVES)]


def predict(run: Run) -> Predicted:
    """What `octavo plan serve` computes with, and the protocol of a closed loop around it."""
    steps = Steps(run.replica, run.load)
    room = max(1.0, room_for(run.replica, run.load))
    inside = min(run.concurrency, room)
    of_waves = [balance(steps, inside, crowding=one) for one in crowdings()] if run.is_public else []
    made = of_waves[-1] if run.is_public else balance(steps, inside, crowding=statistics.fmean(crowdings()))
    if run.engine == "sglang" and not run.is_public:
        ttft_s, tpot_s = _in_step(steps, inside)
    else:
        ttft_s, tpot_s = _in_waves(steps, inside, made, of_waves), made.tpot_s
    ttft_s += run.settings.waits_steps(made.requests_per_s * made.tpot_s) * made.tpot_s
    ttft_s += (run.concurrency - inside) / inside * made.latency_s
    return Predicted(
        run=run,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        floor_s=steps.floor_s(inside / run.replica.lanes),
        waits=run.concurrency > room,
    )


def _in_waves(steps: Steps, inside: float, made: Steady, of_waves: Sequence[Steady]) -> float:
    """Mean TTFT over a wave that comes at once and those that come as they may."""
    waves = len(of_waves) + 1 if of_waves else WAVES_OF_LABS
    later_s = statistics.fmean(one.ttft_s for one in of_waves) if of_waves else made.ttft_s
    return (at_once_s(steps, inside) + (waves - 1) * later_s) / waves


def _in_step(steps: Steps, inside: float) -> tuple[float, float]:
    """TTFT and TPOT where every wave comes at once and decodes when its last prompt is computed."""
    ttft_s, budget = at_once_s(steps, inside), steps.replica.budget_tokens
    in_lane = max(1.0, inside / steps.replica.lanes)
    total = in_lane * steps.load.fresh_tokens
    all_s = max(ttft_s, total / budget * steps.seconds(0.0, min(total, budget)))
    return ttft_s, steps.seconds(in_lane) + (all_s - ttft_s) / max(1.0, steps.load.output_tokens - 1)


@cache
def predictions() -> tuple[tuple[Predicted, ...], tuple[str, ...]]:
    """Of every row, and why others are not predicted."""
    found, left = runs()
    return tuple(predict(run) for run in found), tuple(left)


@cache
def front_ends(without: str = "") -> dict[str, FrontEnd]:
    """Of each engine, what its TTFTs have beside the steps: the constants with the least sum of relative errors over
    the half that constants are read off, but for rows of a model's family or of a device."""
    half = [one for one in chosen(half=True) if without not in _names(one)]
    engines = sorted({one.run.engine for one in half})
    return {engine: _front_end([one for one in half if one.run.engine == engine]) for engine in engines}


def _front_end(half: Sequence[Predicted]) -> FrontEnd:
    """Of a grid. Where tokens and experts are given, |t + c - m| / m summed is least at the median of what is missing,
    each row weighed by one over what was measured."""
    handed_s = np.array([_beside_s(FrontEnd(steps=1), one) for one in half])
    tokens = np.array([_beside_s(FrontEnd(token_s=1), one) for one in half])
    routed = np.array([_beside_s(FrontEnd(experts_s=1), one) for one in half])
    missing = np.array([one.run.ttft_s - one.ttft_s for one in half]) - handed_s
    weights = 1 / np.array([one.run.ttft_s for one in half])
    best, least = FrontEnd(), math.inf
    for token_s, experts_s in itertools.product(TOKEN_S, EXPERTS_S):
        left = missing - token_s * tokens - experts_s * routed
        request_s = max(0.0, _weighted_median(left, weights))
        error = float((abs(left - request_s) * weights).sum())
        if error < least:
            best, least = FrontEnd(request_s=request_s, token_s=token_s, experts_s=experts_s, steps=1), error
    return best


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(below, below[-1] / 2)]])


def _beside_s(front: FrontEnd, one: Predicted) -> float:
    return front.seconds(one.run.replica.shape, one.run.load.prompt_tokens, one.tpot_s)


def _names(one: Predicted) -> tuple[str, str]:
    return one.run.replica.shape.family, one.run.replica.device.name


def tpot_error(one: Predicted) -> float:
    return one.tpot_s / one.run.tpot_s - 1


def ttft_error(one: Predicted, without: str = "") -> float:
    return (one.ttft_s + _beside_s(front_ends(without)[one.run.engine], one)) / one.run.ttft_s - 1


def ttft_error_unseen(what: str, one: Predicted) -> float:
    """With a front end that was read off other models ("model"), or off other devices ("device")."""
    family, device = _names(one)
    return ttft_error(one, {"model": family, "device": device}[what])


def chosen(group: str = "", *, half: bool, every: bool = False) -> list[Predicted]:
    """Rows of a half, and of a group, that can be what they say, or `every` row of them."""
    return [
        one
        for one in predictions()[0]
        if group in ("", one.run.group) and one.run.is_half is half and (every or one.is_possible)
    ]


def quantiles(group: str, error: Callable[[Predicted], float]) -> tuple[float, float]:
    """Of measured over predicted, in the half that constants are read off."""
    ratios = sorted(1 / (1 + error(one)) for one in chosen(group, half=True))
    low, high = (ratios[round(share * (len(ratios) - 1))] for share in QUANTILES)
    return low, high


def scores(group: str, error: Callable[[Predicted], float], every: bool, repeat: int) -> Figures:
    """Errors of the other half. `repeat` changes nothing."""
    del repeat
    held = chosen(group, half=False, every=every)
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
        "median_error_read_off": statistics.median(abs(error(one)) for one in chosen(group, half=True)),
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
        f"{name} {group}{', every row' if every else ''}": partial(scores, group, error, every)
        for every in (False, True)
        for group in ("dense", "moe")
        for name, error in (("TPOT", tpot_error), ("TTFT", ttft_error))
    }
    subjects |= {
        f"TTFT {group}, its {what} unseen": partial(scores, group, partial(ttft_error_unseen, what), False)
        for what in ("model", "device")
        for group in ("dense", "moe")
    }
    subjects["TPOT decode pools"] = pool_scores
    return Bench(
        question="How far are predictions that saw no run from deployments that others measured?",
        slug="planner-silicon",
        figure="median_error",
        unit="of the measured value",
        better="lower",
        shape={
            "waves": WAVES,
            "waves of labs": WAVES_OF_LABS,
            "crowdings": [round(one, 2) for one in crowdings()],
        },
        gate=gate,
        subjects=subjects,
        seeds={"halves": 20},
        notes=_notes(),
    )


def _notes() -> list[str]:
    made, left = predictions()
    fronts = ", ".join(
        f"{engine} {1e3 * one.request_s:.0f} ms, {1e6 * one.token_s:.0f} us a token, {1e3 * one.experts_s:.1f} ms a "
        "layer of experts"
        for engine, one in front_ends().items()
    )
    return [
        f"front ends, from one half: {fronts}",
        f"{len(left)} rows are not predicted: no room for their weights on the devices they name, or a spread that "
        "does not divide the model",
        f"{sum(one.waits for one in made)} rows have more requests than room; their TTFT has the wait for room in it",
        f"{len(faster_than_light())} rows were measured below the bound of their labels, "
        f"{sum(one.run.drafts for one in made)} ran with drafts",
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
