"""Online use: many callers, one engine, in a thread of its own."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

from octavo.config import EngineConfig
from octavo.core.sequence import SamplingParams
from octavo.engine.build import Built, build
from octavo.engine.llm import Prompt, read_prompt
from octavo.engine.loop import Engine
from octavo.engine.outputs import RequestEnded, Update
from octavo.errors import Bug, OctavoError

CHECK_AFTER_S = 1.0
"""Idle time after which the scheduler's invariants are verified, once."""


class EngineThread:
    """Runs an engine's loop and carries commands in and updates out.

    deliver    called in the engine's thread with the updates of a step, never empty
    on_failure called once, in the engine's thread, when the loop broke; nothing is delivered after it
    """

    def __init__(
        self,
        engine: Engine,
        deliver: Callable[[list[Update]], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._engine = engine
        self._deliver = deliver
        self._on_failure = on_failure
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)
        self.failure: BaseException | None = None
        self._thread.start()

    def call(self, command: Callable[[], Any]) -> Future[Any]:
        """Run `command` in the engine's thread, between two steps. Its exception is the future's."""
        future: Future[Any] = Future()
        if self.failure is not None:
            future.set_exception(Bug(f"the engine has failed: {self.failure}"))
            return future
        self._commands.put((command, future))
        return future

    def stop(self) -> None:
        """End the loop after the step in flight."""
        self._commands.put(None)
        self._thread.join()
        self._engine.close()

    def _run(self) -> None:
        try:
            while self._obey():
                if self._engine.is_busy:
                    updates = self._engine.step()
                    if updates:
                        self._deliver(updates)
        except BaseException as error:  # whatever broke the loop, callers must hear of it
            self.failure = error
            self._refuse_rest(error)
            self._on_failure(error)

    def _obey(self) -> bool:
        """Carry out what has been asked for; wait for a command when there is nothing to compute."""
        is_checked = False
        while True:
            try:
                if self._engine.is_busy:
                    item = self._commands.get_nowait()
                else:
                    item = self._commands.get(timeout=None if is_checked else CHECK_AFTER_S)
            except queue.Empty:
                if self._engine.is_busy:
                    return True
                self._engine.scheduler.check()
                is_checked = True
                continue
            if item is None:
                return False
            is_checked = False
            command, future = item
            try:
                future.set_result(command())
            except OctavoError as error:
                future.set_exception(error)

    def _refuse_rest(self, error: BaseException) -> None:
        while True:
            try:
                item = self._commands.get_nowait()
            except queue.Empty:
                return
            if item is not None:
                item[1].set_exception(Bug(f"the engine has failed: {error}"))


class AsyncLLM:
    """The same as `LLM` for asyncio: many requests at once, each an async iterator of updates.

    Takes the arguments of `LLM`. Belongs to the event loop it is first used in.
    """

    def __init__(self, model: str = "auto", **settings: Any) -> None:
        self._start(build(EngineConfig.of(model=str(model), **settings)))

    @classmethod
    def from_config(cls, config: EngineConfig) -> AsyncLLM:
        """An AsyncLLM of a whole configuration."""
        made = cls.__new__(cls)
        made._start(build(config))
        return made

    def _start(self, built: Built) -> None:
        self.built = built
        self.tokenizer = built.tokenizer
        self._numbers = itertools.count()
        self._waiting: dict[str, asyncio.Queue[Update | BaseException]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = EngineThread(built.engine, self._deliver, self._on_failure)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        namespace: bytes = b"",
    ) -> AsyncIterator[Update]:
        """Answer a prompt piece by piece; the last update is a `RequestEnded`.

        Leaving the iterator early, or cancelling the task, cancels the request.
        Raises RequestError before the first update when it can never be served.
        """
        self._loop = asyncio.get_running_loop()
        request_id = request_id or f"async-{next(self._numbers)}"
        text, tokens = read_prompt(prompt, self.tokenizer)
        updates: asyncio.Queue[Update | BaseException] = asyncio.Queue()
        added = self._thread.call(
            lambda: self._add(
                updates, tokens, sampling_params or SamplingParams(), request_id, text, priority, namespace
            )
        )
        try:
            await asyncio.wrap_future(added)
            while True:
                update = await updates.get()
                if isinstance(update, BaseException):
                    raise Bug(f"the engine has failed: {update}") from update
                yield update
                if isinstance(update, RequestEnded):
                    return
        finally:
            self._thread.call(lambda: self._abandon(request_id, updates))

    async def cancel(self, request_id: str) -> None:
        """End a request; its iterator gets what it has so far, with finish reason "cancelled"."""
        await asyncio.wrap_future(self._thread.call(lambda: self._cancel(request_id)))

    async def close(self) -> None:
        """Stop the engine and give its memory back."""
        await asyncio.to_thread(self._thread.stop)

    def _add(
        self,
        updates: asyncio.Queue[Update | BaseException],
        tokens: list[int],
        params: SamplingParams,
        request_id: str,
        text: str | None,
        priority: int,
        namespace: bytes,
    ) -> None:
        self.built.engine.add(
            tokens, params, request_id=request_id, prompt_text=text, priority=priority, namespace=namespace
        )
        self._waiting[request_id] = updates

    def _abandon(self, request_id: str, updates: asyncio.Queue[Update | BaseException]) -> None:
        """Nobody listens to this request any more; runs in the engine's thread, after it was added."""
        if self._waiting.get(request_id) is updates:
            del self._waiting[request_id]
            self.built.engine.cancel(request_id)

    def _cancel(self, request_id: str) -> None:
        updates = self.built.engine.cancel(request_id)
        if updates:
            self._deliver(updates)

    def _deliver(self, updates: list[Update]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._hand_out, updates)

    def _hand_out(self, updates: list[Update]) -> None:
        for update in updates:
            waiting = self._waiting.get(update.request_id)
            if waiting is None:
                continue
            if isinstance(update, RequestEnded):
                del self._waiting[update.request_id]
            waiting.put_nowait(update)

    def _on_failure(self, error: BaseException) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._fail_all, error)

    def _fail_all(self, error: BaseException) -> None:
        for waiting in self._waiting.values():
            waiting.put_nowait(error)
        self._waiting.clear()
