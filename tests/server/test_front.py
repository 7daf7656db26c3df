"""Reading requests off the event loop: what takes too long, and what never begins."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from octavo.config import EngineConfig, ServerConfig
from octavo.errors import Busy, RequestError
from octavo.link import frames
from octavo.obs.log import Log
from octavo.server import front as module
from octavo.server.fleet import Fleet
from octavo.server.front import LONG_BODY_BYTES, NUM_CODEC_THREADS, Front


def in_front(scene: Callable[[Front], Any]) -> None:
    """Run a scene with a front whose engine is never asked."""

    async def run() -> None:
        log = Log(io.StringIO(), time.time)
        ready = frames.Ready(
            model="m", model_path=None, tokenizer_path=None, fingerprint="", dtype="float32", device="cpu",
            vocab_size=8, max_model_len=8, num_parameters=0, num_kv_blocks=1, block_tokens=1,
        )  # fmt: skip
        front = Front(ServerConfig(), Fleet(EngineConfig(), log), ready, log)
        try:
            await scene(front)
        finally:
            front.close()

    asyncio.run(run())


@pytest.mark.parametrize("num_bytes", [0, LONG_BODY_BYTES + 1])
def test_what_takes_too_long_is_refused_and_what_never_began_may_come_again(monkeypatch, num_bytes):
    monkeypatch.setattr(module, "CODEC_S", 0.2)
    gate = threading.Event()
    num_threads = 1 if num_bytes else NUM_CODEC_THREADS

    async def scene(front: Front) -> None:
        try:
            slow = [asyncio.create_task(front.off_loop(gate.wait, num_bytes)) for _ in range(num_threads)]
            await asyncio.sleep(0)
            with pytest.raises(Busy, match="try again later"):
                await front.off_loop(lambda: None, num_bytes)
            for task in slow:
                with pytest.raises(RequestError, match=r"takes longer than 0\.2 s; send less"):
                    await task
        finally:
            gate.set()
        assert await front.off_loop(lambda: "read", num_bytes) == "read"

    in_front(scene)


def test_long_bodies_keep_only_each_other_waiting():
    gate = threading.Event()

    async def scene(front: Front) -> None:
        try:
            slow = asyncio.create_task(front.off_loop(gate.wait, LONG_BODY_BYTES + 1))
            assert await front.off_loop(lambda: "short", LONG_BODY_BYTES) == "short"
            assert not slow.done()
        finally:
            gate.set()
        assert await slow

    in_front(scene)
