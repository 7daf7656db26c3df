"""The tables of cases in the docs: all of them are there, and the tests they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_YET = {"T28", "F11", "F15"}
"""What the docs say cannot be here yet."""


def rows(name: str, letter: str) -> dict[str, str]:
    found = re.findall(
        rf"^\| ({letter}\d\d) \|(.*)\|$", (ROOT / "docs" / name).read_text("utf-8"), re.MULTILINE
    )
    assert len(found) == len(dict(found)), "a case has one row"
    return dict(found)


@pytest.mark.parametrize(("name", "letter", "count"), [("security.md", "T", 30), ("faults.md", "F", 25)])
def test_every_case_has_its_row_and_every_row_its_tests(name: str, letter: str, count: int) -> None:
    table = rows(name, letter)
    assert list(table) == [f"{letter}{number:02}" for number in range(1, count + 1)]
    for case, row in table.items():
        tests = re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", row)
        assert bool(tests) == (case not in NOT_YET), case
        path = ""
        for given, test in tests:
            path = given or path
            assert re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE), (
                path,
                test,
            )
        for bench in re.findall(r"`(benches/[\w/]+\.py)`", row):
            assert (ROOT / bench).exists(), bench
