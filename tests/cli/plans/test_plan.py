"""`octavo plan KIND`: the table of kinds, and that each has help."""

from __future__ import annotations

import importlib

import pytest

from octavo.cli import main as cli
from octavo.cli.plan import PLANS


@pytest.mark.parametrize("kind", PLANS)
def test_every_kind_has_help_and_json(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["plan", kind, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: octavo plan {kind}")
    assert "--json" in text
    assert importlib.import_module("octavo.cli.plans." + kind.replace("-", "_")).__doc__


def test_memory_names_the_variables(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["plan", "memory", "--help"])
    assert "OCTAVO_NUM_THREADS" in capsys.readouterr().out


def test_help_lists_the_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["plan", "--help"])
    text = capsys.readouterr().out
    for kind, answer in PLANS.items():
        assert f"  {kind} " in text
        assert answer in text
