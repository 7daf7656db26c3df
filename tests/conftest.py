"""What holds for every test: one thread, no deadlines, the same examples each time."""

import os

import pytest
import torch
from hypothesis import settings

# Two processes of tests share two cores; products of this size gain nothing from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# A deadline would time the machine, not the code. Derandomized, a red test is red for everybody; new examples
# are looked for by hand: HYPOTHESIS_PROFILE=search python -m pytest ...
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--model-device", default="cpu", help="where tests/parity loads models (default %(default)s)"
    )
