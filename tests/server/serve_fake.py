"""`octavo serve` with the fake engine in place of the real one; takes the same arguments."""

from __future__ import annotations

import sys
from pathlib import Path

from octavo.cli import serve
from octavo.cli.main import main
from octavo.server import run

if __name__ == "__main__":
    fake = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))
    assert run.serve.__kwdefaults__ is not None
    run.serve.__kwdefaults__["command"] = fake
    serve.check_early = lambda _model: None
    sys.exit(main(["serve", *sys.argv[1:]]))
