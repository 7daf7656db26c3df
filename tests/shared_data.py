"""Where the reference data lie that are too many to copy: beside the project, or under OCTAVO_SHARED_DATA."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    """The file of that name; skips the test where there is none."""
    root = Path(os.environ.get("OCTAVO_SHARED_DATA", BESIDE))
    path = root / name
    if not path.is_file():
        pytest.skip(f"{name} is not here: reference data lie beside the project or under OCTAVO_SHARED_DATA")
    return path


def rows(name: str) -> list[dict[str, str]]:
    """Rows of a CSV, packed or not, by column."""
    raw = shared(name).read_bytes()
    text = gzip.decompress(raw).decode() if name.endswith(".gz") else raw.decode()
    return list(csv.DictReader(io.StringIO(text)))


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shared(name).read_text("utf-8"))
    return found
