"""Counterfactuals held against the truth: the same requests again at the real server, with the settings changed.

What is compared is what both recordings say of the same requests. Each test prints what was predicted beside what came.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from octavo.cli import load
from octavo.cli.load import Ask, Target
from octavo.explain.arrivals import arrivals
from octavo.explain.causes import findings
from octavo.explain.figures import Figures
from octavo.explain.setups import Setup, recorded_setup
from octavo.explain.story import Story
from octavo.explain.whatif import METRICS, what_if
from octavo.obs import recording
from octavo.sim.report import lines
from tests.server.process import serving
from tests.server.test_end_to_end import REAL
from tests.server.test_recordings import saved

COMMON = ("--num-threads", "1", "--max-model-len", "2048", "--max-queued-requests", "4096")
NUM_ROUNDS = 3
Spread = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Trial:
    """A load, the flags it is first sent under, and those that are changed. `limits` are the same to a scheduler."""

    cause: str
    metric: str
    flags: tuple[str, ...]
    changed: tuple[str, ...]
    limits: dict[str, int]
    prompts: Sequence[int]
    outputs: tuple[int, int]
    rate: float
    count: int
    seed: int = 3


TRIALS = {
    "seats": Trial(
        cause="few-seats",
        metric="ttft_s",
        flags=("--max-num-seqs", "2", "--num-kv-blocks", "512"),
        changed=("--max-num-seqs", "16"),
        limits={"max_num_seqs": 16},
        prompts=(60, 100, 140, 180),
        outputs=(40, 120),
        rate=30.0,
        count=450,
    ),
    "long prompts": Trial(
        cause="long-prompts",
        metric="gap_s",
        flags=(
            "--max-num-batched-tokens",
            "2048",
            "--max-num-mixed-tokens",
            "2048",
            "--num-kv-blocks",
            "2048",
        ),
        changed=("--max-num-mixed-tokens", "128"),
        limits={"max_num_mixed_tokens": 128},
        prompts=(*(80,) * 9, 1800),
        outputs=(40, 100),
        rate=14.0,
        count=420,
    ),
    "blocks": Trial(
        cause="kv-exhausted",
        metric="e2e_s",
        flags=("--num-kv-blocks", "34", "--max-model-len", "512"),
        changed=("--num-kv-blocks", "400"),
        limits={"num_blocks": 400},
        prompts=(60, 100, 140),
        outputs=(60, 140),
        rate=26.0,
        count=400,
    ),
}


def serve(trial: Trial, flags: Sequence[str], folder: Path) -> Figures:
    """Send the load and read the recording."""
    folder.mkdir()
    rng = random.Random(trial.seed)
    with serving([*COMMON, *trial.flags, *flags, "--data-dir", str(folder)], REAL) as server:
        target = Target.of(server.url)
        pool = asyncio.run(load.token_pool(target))
        times = load.poisson(rng, trial.count, trial.rate)
        asks = [
            Ask(
                at_s,
                [rng.choice(pool) for _ in range(rng.choice(trial.prompts))],
                rng.randint(*trial.outputs),
            )
            for at_s in times
        ]
        outcomes = asyncio.run(load.run_open(target, asks))
        assert all(one.code is None for one in outcomes)
        os.kill(server.process.pid, signal.SIGUSR2)
        (path,) = saved(folder)
    return Figures(Story(recording.read(path)))


def spread(values: Sequence[float | None]) -> dict[str, float]:
    known = [value for value in values if value is not None]
    return {f"p{quantile}": float(np.percentile(known, quantile)) for quantile in (50, 99)}


def measured(figures: Figures) -> Spread:
    came = arrivals(figures)
    return {metric: spread([getattr(one, metric) for one in came]) for metric in METRICS}


def predicted(figures: Figures, limits: dict[str, int]) -> Spread:
    came = arrivals(figures)
    setup, _ = recorded_setup(figures, came)
    changed: Setup = replace(setup, limits=replace(setup.limits, **limits))
    done = lines(changed.play(came))
    names = {metric: "longest_gap_s" if metric == "gap_s" else metric for metric in METRICS}
    return {metric: spread([getattr(one, name) for one in done]) for metric, name in names.items()}


def medians(several: Sequence[Spread]) -> Spread:
    return {
        metric: {
            place: float(np.median([one[metric][place] for one in several])) for place in several[0][metric]
        }
        for metric in METRICS
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TRIALS)
def test_changed_settings_do_what_was_predicted(name, tmp_path):
    """Medians of three rounds, the two settings one after the other in each."""
    trial = TRIALS[name]
    was, again, expected, after = [], [], [], []
    for round_ in range(NUM_ROUNDS):
        before = serve(trial, (), tmp_path / f"before-{round_}")
        first = findings(before)[0]
        assert first.stands_out, first
        assert first.cause == trial.cause
        was.append(measured(before))
        again.append(predicted(before, {}))
        expected.append(predicted(before, trial.limits))
        after.append(measured(serve(trial, trial.changed, tmp_path / f"after-{round_}")))
        print(what_if(before, first).advice)
    show(name, *map(medians, (was, again, expected, after)))
    metric = trial.metric
    assert medians(expected)[metric]["p99"] < 0.8 * medians(was)[metric]["p99"]
    assert medians(after)[metric]["p99"] < 0.8 * medians(was)[metric]["p99"]


def show(name: str, was: Spread, again: Spread, expected: Spread, after: Spread) -> None:
    print(f"\n{name}: changed are {' '.join(TRIALS[name].changed)}")
    for metric in METRICS:
        for place in ("p50", "p99"):
            old, said, came = was[metric][place], expected[metric][place], after[metric][place]
            print(
                f"  {metric} {place}: recorded {old:.4f}, simulated {again[metric][place]:.4f};"
                f" changed: predicted {said:.4f}, real {came:.4f} ({said / came - 1:+.1%})"
            )
