"""The watch over an engine: what ends it, and what must not."""

from __future__ import annotations

import asyncio
import io
import sys
import time
from pathlib import Path

from octavo.codec.tokenizer import Tokenizer
from octavo.config import EngineConfig, ModelConfig
from octavo.core.sequence import SamplingParams
from octavo.link import frames
from octavo.obs.log import Log
from octavo.server import member
from octavo.server.fleet import Fleet
from octavo.server.running import Running

FAKE = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))
PATIENCE_S = 1.0


def test_an_engine_without_requests_may_stand_still_and_one_with_requests_may_not(monkeypatch, folder):
    """The engine of the tests goes on to report a waiting sequence after one was cancelled: that is not ours."""
    monkeypatch.setattr(member, "FIRST_STEP_S", PATIENCE_S)
    monkeypatch.setattr(member, "LOOK_S", 0.05)

    wait = Tokenizer.from_path(folder).encode("!wait", add_special_tokens=False)

    async def scene() -> None:
        config = EngineConfig(model=ModelConfig(model=str(folder)))
        fleet = Fleet(config, Log(io.StringIO(), time.time), FAKE)
        await fleet.start(lambda _: None)
        try:
            assert await until(lambda: fleet.stats is not None, 10.0)
            waiting = asked(wait)
            fleet.submit(waiting)
            await waiting.admitted()
            fleet.cancel(waiting)
            assert await until(lambda: fleet.stats is not None and fleet.stats.num_waiting == 1, 10.0)
            assert not await until(lambda: fleet.num_restarts > 0, 3 * PATIENCE_S)
            fleet.submit(asked(wait))
            assert await until(lambda: fleet.num_restarts > 0, 20.0)
            assert "made no step for 1 s" in str(fleet.last_failure)
        finally:
            await fleet.stop(1.0)

    asyncio.run(scene())


def asked(prompt: list[int]) -> Running:
    submit = frames.Submit(
        request_id=f"r-{time.monotonic_ns()}",
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(),
        arrival_s=time.monotonic(),
    )
    return Running([submit])


async def until(true, within_s: float) -> bool:
    deadline_s = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline_s:
            return False
        await asyncio.sleep(0.02)
    return True
