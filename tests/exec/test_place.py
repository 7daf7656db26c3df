"""A step is ordered with its model's device current in the thread that orders it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from octavo.core.step import Copy, Step
from octavo.engine import build
from octavo.exec import place
from octavo.exec.runner import Runner

CPU, SECOND = torch.device("cpu"), torch.device("cuda:1")


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices that are current, the innermost last."""
    stack: list[torch.device] = []

    @contextmanager
    def entered(device: torch.device) -> Iterator[None]:
        stack.append(device)
        try:
            yield
        finally:
            stack.pop()

    monkeypatch.setattr(torch.cuda, "device", entered)
    return stack


def test_a_processor_needs_nothing(current: list[torch.device]) -> None:
    with place.on(CPU):
        assert current == []


def test_a_device_is_current_within(current: list[torch.device]) -> None:
    with place.on(SECOND):
        assert current == [SECOND]
    assert current == []


def test_a_step_is_ordered_on_the_models_device(current: list[torch.device]) -> None:
    seen: list[list[torch.device]] = []
    kv: Any = SimpleNamespace(copy=lambda _: seen.append(list(current)))
    model: Any = SimpleNamespace(device=SECOND, arch=SimpleNamespace(vocab_size=7))
    runner = Runner(model, kv, forward=lambda *_: None, draw=lambda *_: None)  # type: ignore[arg-type, return-value]
    runner.launch(Step(0, (), copies=(Copy(1, 2, 3),)))
    assert seen == [[SECOND]]
    assert current == []


def test_a_model_is_loaded_on_its_device(
    current: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[torch.device]] = []
    monkeypatch.setattr(build, "_built", lambda *_: seen.append(list(current)))
    planned: Any = SimpleNamespace(resolved=SimpleNamespace(num_threads=1, device="cuda:1"))
    before = torch.get_num_threads()
    try:
        build.build(SimpleNamespace(), planned)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)
    assert seen == [[SECOND]]
