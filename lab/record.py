"""Keep what is worth keeping of a run: `python -m lab.record RUN EVALUATION.json OUT.json`.

RUN is the folder `lab.train` wrote; EVALUATION.json is what `lab.evaluate` wrote of its snapshot.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lab.model import Shape
from lab.train import NARROW, PHASES, Recipe

CURVE_POINTS = 60
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def curve(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most CURVE_POINTS training lines, evenly spaced, the last one among them."""
    trained = [row for row in rows if row["kind"] == "train"]
    stride = max(1, -(-len(trained) // CURVE_POINTS))
    return trained[::-1][::stride][::-1]


def without_misses(figures: dict[str, Any]) -> dict[str, Any]:
    """The evaluation's figures; of wrong replies only the first five of each task."""
    return {
        name: {**report, "misses": report["misses"][:5]} if "misses" in report else report
        for name, report in figures.items()
    }


def record(run: Path, figures: dict[str, Any], hardware: str, notes: list[str]) -> dict[str, Any]:
    """One JSON value that says how the model came about and what it can do."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    last = rows[-1]
    weights = (run / "snapshot" / "model.safetensors").read_bytes()
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "hardware": hardware,
        "shape": asdict(Shape()),
        "recipe": asdict(Recipe()) | {"narrow": NARROW, "phases": [asdict(phase) for phase in PHASES]},
        "steps": last["step"],
        "tokens": last["tokens"],
        "wall_s": last["elapsed_s"],
        "notes": notes,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "weights_bytes": len(weights),
        "evaluation": without_misses(figures),
        "probes": [row for row in rows if row["kind"] == "probe"],
        "curve": curve(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hardware", required=True, help="kind of machine, in words")
    parser.add_argument(
        "--note", action="append", default=[], help="something a reader must know; may be repeated"
    )
    options = parser.parse_args()
    figures = json.loads(options.evaluation.read_text(encoding="utf-8"))
    value = record(options.run, figures, options.hardware, options.note)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
