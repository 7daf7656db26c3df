"""`octavo batch` with the fake engine in place of the real one; takes the same arguments."""

from __future__ import annotations

import sys
from pathlib import Path

from octavo.cli import batch
from octavo.cli.main import main

if __name__ == "__main__":
    assert batch.answer_file.__kwdefaults__ is not None
    batch.answer_file.__kwdefaults__["command"] = (
        sys.executable,
        str(Path(__file__).with_name("fake_engine.py")),
    )
    batch.check_early = lambda _model: None
    sys.exit(main(["batch", *sys.argv[1:]]))
