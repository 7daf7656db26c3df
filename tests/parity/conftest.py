"""Every checkpoint is written once per test session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octavo.models import loader
from tests.parity import checkpoints


@pytest.fixture(scope="session", autouse=True)
def _on_the_device_asked_for(request: pytest.FixtureRequest) -> Iterator[None]:
    """What `load` does without being told."""
    kept = loader.load.__defaults__
    assert kept == ("auto", "cpu"), "dtype and device"
    loader.load.__defaults__ = ("auto", request.config.getoption("--model-device"))
    yield
    loader.load.__defaults__ = kept


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a variant of `checkpoints.VARIANTS`; only read it."""
    made: dict[str, Path] = {}

    def folder(variant: str) -> Path:
        if variant not in made:
            made[variant] = checkpoints.make(variant, tmp_path_factory.mktemp(variant))
        return made[variant]

    return folder
