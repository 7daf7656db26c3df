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

from octavo.kernels import activation, attention, linear, norm, rope

ROOT = Path(__file__).resolve().parents[2]


def test_they_are_first_in_line() -> None:
    for impls in (activation.IMPLS, attention.IMPLS, linear.IMPLS, norm.IMPLS, rope.IMPLS):
        assert next(impl for impl in impls if impl.is_batch_invariant).name == "triton"


def run_apart(cases: str, **environment: str) -> int:
    """Runs cases in a process of their own; returns how many passed, and none may fail."""
    if util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: pip install 'octavo[cuda]', or make test-triton")
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", f"tests/kernels/{cases}"]
    done = subprocess.run(
        [*command, "-o", "addopts="],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    print(done.stdout)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    return int(passed[1])


@pytest.mark.timeout(1600)
def test_the_kernels_against_the_oracles() -> None:
    """On a device where there is one, else by the interpreter, which does in numpy what the kernels say."""
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    assert run_apart("triton_cases.py", **interpreted) > 60


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_the_kernels_compile_for_hopper() -> None:
    assert run_apart("compile_cases.py", TRITON_INTERPRET="0") > 10
