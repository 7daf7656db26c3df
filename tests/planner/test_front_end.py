"""What a first token takes beside the steps, by hand."""

from __future__ import annotations

import pytest

from octavo.arch import known
from octavo.errors import ConfigError
from octavo.planner.front_end import FRONT_ENDS, FrontEnd


def test_seconds_add_up() -> None:
    front = FrontEnd(request_s=0.1, token_s=1e-5, experts_s=1e-3, steps=2)
    dense, routed = known.shape("llama-3-8b"), known.shape("deepseek-v3")
    assert front.seconds(dense, 1000, 0.02) == pytest.approx(0.1 + 0.01 + 0.04)
    assert front.seconds(routed, 1000, 0.02) == pytest.approx(
        0.1 + 0.01 + 0.058 + 0.04
    )  # 58 of 61 layers route
    assert FrontEnd().seconds(routed, 1000, 0.02) == 0


def test_longer_prompts_and_steps_take_longer_in_every_engine() -> None:
    shape = known.shape("llama-3-8b")
    for front in FRONT_ENDS.values():
        assert front.seconds(shape, 8000, 0.02) > front.seconds(shape, 1000, 0.02)
        assert front.seconds(shape, 1000, 0.03) > front.seconds(shape, 1000, 0.02)


def test_negative_times_are_refused() -> None:
    with pytest.raises(ConfigError, match="token_s must be at least 0, got -1e-05"):
        FrontEnd(token_s=-1e-5)
