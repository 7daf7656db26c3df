"""Fit a law on all but the largest model and hold it to the largest: `python -m lab.scaling.predict RUNS.csv OUT.json`.

RUNS.csv is what `lab.scaling` wrote. Laws are fitted twice: with N the parameters of all matrices but the embedding,
and with N all parameters. Beside them stands what one would say without a law: the loss of the next smaller model.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lab.scaling.family import ADAM_LR, FAMILY, MUON_LR, ROWS, WINDOW_TOKENS
from lab.scaling.train import COOLDOWN, WARMUP_STEPS, Outcome
from octavo.planner import descent, fits
from octavo.planner.runs import Runs, from_columns

COUNTS = {"matrices": "params", "all": "total_params"}
"""What N counts, and its column."""

LAWS = ("chinchilla", "kaplan")
LIBRARIES = ("torch", "tokenizers", "numpy")
RESAMPLES, SEED, LEVEL = 2000, 0, 0.9


def read(path: Path) -> list[Outcome]:
    """The sweep's lines."""
    kinds = {"int": int, "float": float, "str": str}
    with path.open(newline="", encoding="utf-8") as lines:
        return [
            Outcome(**{name: kinds[Outcome.__annotations__[name]](value) for name, value in row.items()})
            for row in csv.DictReader(lines)
        ]


def runs_of(outcomes: list[Outcome], column: str) -> Runs:
    """Outcomes as runs, N from one column."""
    return from_columns(
        {
            "params": [float(getattr(one, column)) for one in outcomes],
            "tokens": [float(one.tokens) for one in outcomes],
            "loss": [one.loss for one in outcomes],
        }
    )


def held_to(law: str, small: Runs, held: Runs) -> dict[str, Any]:
    """A law fitted to `small`, and its predictions for `held` with intervals over refits, beside what was measured."""
    fitted = fits.fit(small, law)
    rng = np.random.default_rng(SEED)
    counts = rng.multinomial(len(small), np.full(len(small), 1 / len(small)), size=RESAMPLES).astype(float)
    refits = descent.minimise(fitted.model, np.repeat(fitted.theta[None], RESAMPLES, axis=0), counts)
    model = fitted.form.build(fitted.form.variables(held, fitted.centres), np.log(held.loss))
    best = np.exp(descent.predict(model, fitted.theta[None])[0])
    every = np.exp(descent.predict(model, refits.theta[refits.converged]))
    low, high = np.quantile(every, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    rows = [
        {
            "tokens": float(held.tokens[i]),
            "measured": float(held.loss[i]),
            "predicted": float(best[i]),
            "low": float(low[i]),
            "high": float(high[i]),
            "miss": float(best[i] / held.loss[i] - 1),
        }
        for i in range(len(held))
    ]
    return {
        "constants": fitted.constants(),
        "rms_log_residual": fitted.rms,
        "predictions": rows,
        "mean_miss": float(np.mean([row["miss"] for row in rows])),
        "mean_absolute_miss": float(np.mean([abs(row["miss"]) for row in rows])),
        "largest_miss": max((row["miss"] for row in rows), key=abs),
        "inside_interval": sum(row["low"] <= row["measured"] <= row["high"] for row in rows),
    }


def without_a_law(outcomes: list[Outcome]) -> list[dict[str, float]]:
    """The largest model's loss guessed as that of the next smaller one at the same tokens."""
    largest, next_smaller = sorted({one.params for one in outcomes}, reverse=True)[:2]
    losses = {(one.params, one.tokens): one.loss for one in outcomes}
    return [
        {"tokens": one.tokens, "miss": losses[next_smaller, one.tokens] / one.loss - 1}
        for one in outcomes
        if one.params == largest and (next_smaller, one.tokens) in losses
    ]


def record(outcomes: list[Outcome], hardware: str, notes: list[str]) -> dict[str, Any]:
    """One JSON value that says how the family was trained, what came out, and how well its largest was foretold."""
    largest = max(one.params for one in outcomes)
    small = [one for one in outcomes if one.params < largest]
    held = [one for one in outcomes if one.params == largest]
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "hardware": hardware,
        "notes": notes,
        "family": [asdict(member) for member in FAMILY],
        "recipe": {
            "muon_lr": MUON_LR,
            "adam_lr": ADAM_LR,
            "warmup_steps": WARMUP_STEPS,
            "cooldown": COOLDOWN,
            "rows": ROWS,
            "window_tokens": WINDOW_TOKENS,
        },
        "runs": [asdict(one) for one in outcomes],
        "branches_wall_s": sum(one.wall_s for one in outcomes),
        "level": LEVEL,
        "laws": {
            law: {
                count: held_to(law, runs_of(small, column), runs_of(held, column))
                for count, column in COUNTS.items()
            }
            for law in LAWS
        },
        "without_a_law": without_a_law(outcomes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hardware", required=True, help="kind of machine, in words")
    parser.add_argument(
        "--note", action="append", default=[], help="what a reader must know; may be repeated"
    )
    options = parser.parse_args()
    value = record(read(options.runs), options.hardware, options.note)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    for law, by_count in value["laws"].items():
        for count, told in by_count.items():
            print(
                f"{law}, N = {count}: mean miss {told['mean_miss']:+.2%}, largest {told['largest_miss']:+.2%}"
            )


if __name__ == "__main__":
    main()
