"""Does the suite catch the bugs it exists for? Re-introduce each one and see which test fails first.

    python -m tests.mutants.run [--only TEXT] [--record FILE] [--seconds 900]

Each mutant is applied to a temporary copy of the core and its tests; nothing in the working tree changes. The
property tests run first, so that a record shows what they find by themselves; record.json holds the last full run.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.catalogue import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
START = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
sys.path.insert(0, {folder!r})
import hypothesis, octavo, tests.core.world, pytest
assert octavo.__file__.startswith({folder!r}) and tests.core.world.__file__.startswith({folder!r})
phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]    # the first failure will do
hypothesis.settings.register_profile("mutants", phases=phases, database=None)
hypothesis.settings.load_profile("mutants")
sys.exit(pytest.main(sys.argv[1:]))
"""
FIRST = ["tests/core/test_golden.py", "tests/core/test_machine.py", "tests/core/test_progress.py"]
COPIED = ["octavo/__init__.py", "octavo/errors.py", "octavo/core", "tests/core", "tests/oracles/shadow.py"]


def prepare(mutant: Mutant | None, folder: Path) -> None:
    """Copy the core and its tests to `folder` and apply the mutant.

    Raises ValueError when the text to replace is not there exactly once: the catalogue is out of date.
    """
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    if mutant is None:
        return
    path = folder / "octavo" / "core" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: its text stands {text.count(mutant.old)} times in {mutant.file}")
    path.write_text(text.replace(mutant.old, mutant.new))


def verdict(mutant: Mutant | None, seconds: float, tests: list[str] | None = None) -> str | None:
    """The first test that fails, "timeout", or None when everything passes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(mutant, folder)
        rest = sorted(str(path.relative_to(folder)) for path in (folder / "tests/core").glob("test_*.py"))
        chosen = tests or [*FIRST, *(path for path in rest if path not in FIRST)]
        options = ["-x", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", "--rootdir", name]
        try:
            done = subprocess.run(
                [sys.executable, "-c", START.format(folder=name), *options, *chosen],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "timeout"
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"the tests did not run:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return found.group(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only mutants with this text in their name")
    parser.add_argument("--record", type=Path, help="write the outcome to this JSON file")
    parser.add_argument("--seconds", type=float, default=900.0, help="longest run of one mutant")
    chosen = parser.parse_args()
    clean = verdict(None, chosen.seconds)
    if clean is not None:
        print(f"the unchanged core already fails {clean}")
        return 2
    rows = []
    begun_s = time.monotonic()
    for mutant in MUTANTS:
        if chosen.only not in mutant.name:
            continue
        killer = verdict(mutant, chosen.seconds)
        rows.append({"mutant": mutant.name, "class": mutant.of, "file": mutant.file, "killed_by": killer})
        print(f"{'killed  ' if killer else 'SURVIVED'}  {mutant.name}  <- {killer}", flush=True)
    survived = [row["mutant"] for row in rows if row["killed_by"] is None]
    print(f"{len(rows) - len(survived)} of {len(rows)} killed")
    if chosen.record:
        record = {
            "question": "does the core's suite catch each bug of the catalogue?",
            "command": "python -m tests.mutants.run",
            "mutants": len(rows),
            "killed": len(rows) - len(survived),
            "survived": survived,
            "wall_s": round(time.monotonic() - begun_s),
            "outcome": rows,
        }
        chosen.record.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if survived else 0


if __name__ == "__main__":
    raise SystemExit(main())
