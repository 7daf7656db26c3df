"""The official JavaScript client, as its users install it: from npm, on the Node.js of the machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.process import serving

CASES = Path(__file__).parent / "javascript"
KEYS = ("the-first-tenants-key", "the-second-tenants-key")
AT_LEAST = 100


def failures(tap: str) -> str:
    """What did not pass, with what was said of it."""
    lines = tap.splitlines()
    wrong = [place for place, line in enumerate(lines) if line.lstrip().startswith("not ok")]
    return "\n".join(line for place in wrong for line in lines[place : place + 25])


@pytest.mark.slow
def test_the_official_javascript_client(folder, tmp_path, record_property):
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node.js is not installed: no `node` and `npm` on the path")
    for file in CASES.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    with serving([str(folder), "--api-key", ",".join(KEYS)]) as served:
        env = os.environ | {"OCTAVO_URL": served.url, "OCTAVO_KEY": KEYS[0], "OCTAVO_OTHER_KEY": KEYS[1]}
        done = subprocess.run(
            ["node", "--test", "--test-reporter=tap", "openai.test.mjs"],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, failures(done.stdout) + done.stderr[-2000:]
    passed = int(re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)[1])
    record_property("passed", passed)
    print(f"{passed} cases")
    assert passed >= AT_LEAST
    assert re.search(r"^# skipped 0$", done.stdout, re.MULTILINE)
