"""`docs/planner.md` shows what its commands print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from octavo.cli import main as cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "planner.md"
SHOWN = re.findall(r"```console\n\$ octavo (.+)\n([\s\S]*?)```", PAGE.read_text("utf-8"))


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=[command for command, _ in SHOWN])
def test_a_command_prints_what_is_shown(command: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(shlex.split(command)) == 0
    assert capsys.readouterr().out.rstrip() == shown.rstrip()


def test_every_table_has_its_command() -> None:
    assert len(SHOWN) == PAGE.read_text("utf-8").count("```console") >= 6
