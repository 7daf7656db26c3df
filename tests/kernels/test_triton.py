"""The Triton kernels in a process of their own: Triton is asked for its interpreter before it is first imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import torch

from octavo.kernels import attention, linear, norm

ROOT = Path(__file__).resolve().parents[2]


def test_they_are_first_in_line() -> None:
    for impls in (attention.IMPLS, linear.IMPLS, norm.IMPLS):
        assert impls[0].name == "triton"


def test_the_kernels_against_the_oracles() -> None:
    """On a device where there is one, else by the interpreter, which does in numpy what the kernels say."""
    if util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: pip install 'octavo[cuda]'")
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/kernels/triton_cases.py",
    ]
    done = subprocess.run(
        [*command, "-o", "addopts="],
        cwd=ROOT,
        env=os.environ | interpreted,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    print(done.stdout.strip().splitlines()[-1])
    assert passed is not None
    assert int(passed[1]) > 60
