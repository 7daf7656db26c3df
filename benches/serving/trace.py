"""Lengths of requests from a public trace: Azure's of LLM conversations, 2023.

The file lies beside the project or under OCTAVO_SHARED_DATA, in `traces`.
"""

from __future__ import annotations

import csv
import os
import random
from pathlib import Path

TRACE = "traces/azure_llm_2023_conv.csv"
BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
NUM_DRAWN = 2000


def file() -> Path:
    return Path(os.environ.get("OCTAVO_SHARED_DATA") or BESIDE) / TRACE


def source() -> str:
    """For records: where `lengths` come from."""
    return TRACE if file().exists() else "drawn"


def lengths(longest_prompt: int, longest_output: int) -> list[tuple[int, int]]:
    """Prompt and output tokens of requests, cut to the longest ones; at least 1 and 2.

    Of the trace where it is, else drawn to be about as long as its are.
    """
    path = file()
    if path.exists():
        with path.open(newline="") as lines:
            rows = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(lines)]
    else:
        rng = random.Random(6)
        rows = [
            (int(rng.lognormvariate(7.0, 0.6)), int(rng.lognormvariate(5.3, 0.5))) for _ in range(NUM_DRAWN)
        ]
    return [(max(min(prompt, longest_prompt), 1), max(min(out, longest_output), 2)) for prompt, out in rows]
