"""Online use: many callers, one engine, in a thread of its own."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
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
        self._lock = threading.Lock()
        self._refusal: OctavoError | None = None
        self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)
        self._thread.start()

    def call(self, command: Callable[[], Any]) -> Future[Any]:
        """Run `command` in the engine's thread, between two steps. Its exception is the future's.

        Every future gets an answer: after a failure or `stop` it is an error. One cancelled in time is not run.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._refusal is None:
                self._commands.put((command, future))
                return future
        future.set_exception(self._refusal)
        return future

    def stop(self) -> None:
        """End the loop after the step in flight. Requests still running are lost; cancel them first."""
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
            self._refuse_rest(OctavoError("the engine has been stopped"))
        except BaseException as error:  # whatever broke the loop, callers must hear of it
            self._refuse_rest(Bug(f"the engine has failed: {error}"))
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
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(command())
            except OctavoError as error:
                future.set_exception(error)
            except BaseException as error:  # a bug: the caller hears of it, and so does everybody else
                future.set_exception(error)
                raise

    def _refuse_rest(self, refusal: OctavoError) -> None:
        """Answer what is queued and whatever will be asked for with an error."""
        with self._lock:
            self._refusal = refusal
        while True:
            try:
                item = self._commands.get_nowait()
            except queue.Empty:
                return
            if item is not None and item[1].set_running_or_notify_cancel():
                item[1].set_exception(refusal)


@dataclass(frozen=True, slots=True)
class _Listener:
    """Who waits for a request's updates, and the event loop to reach it on."""

    loop: asyncio.AbstractEventLoop
    updates: asyncio.Queue[Update | BaseException]

    def hear(self, updates: list[Update | BaseException]) -> None:
        for update in updates:
            self.updates.put_nowait(update)


class AsyncLLM:
    """The same as `LLM` for asyncio: many requests at once, each an async iterator of updates.

    Takes the arguments of `LLM`. `close` ends what still runs, with finish reason "cancelled".
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
        self._listeners: dict[str, _Listener] = {}  # belongs to the engine's thread
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
        request_id = request_id or f"async-{next(self._numbers)}"
        text, tokens = read_prompt(prompt, self.tokenizer)
        params = sampling_params or SamplingParams()
        grammar = None
        if isinstance(params, SamplingParams) and params.grammar is not None:
            grammar = await asyncio.to_thread(self.built.engine.grammar, params)
        updates: asyncio.Queue[Update | BaseException] = asyncio.Queue()
        listener = _Listener(asyncio.get_running_loop(), updates)

        def add() -> None:
            self.built.engine.add(
                tokens,
                params,
                request_id=request_id,
                grammar=grammar,
                prompt_text=text,
                priority=priority,
                namespace=namespace,
            )
            self._listeners[request_id] = listener

        added = self._thread.call(add)
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
            self._thread.call(partial(self._abandon, request_id, listener))

    async def cancel(self, request_id: str) -> None:
        """End a request; its iterator gets what it has so far, with finish reason "cancelled"."""
        await asyncio.wrap_future(self._thread.call(partial(self._cancel, request_id)))

    async def close(self) -> None:
        """End what still runs, stop the engine and give its memory back."""
        self._thread.call(self._cancel_all)
        await asyncio.to_thread(self._thread.stop)

    def _abandon(self, request_id: str, listener: _Listener) -> None:
        """Nobody listens to this request any more; runs in the engine's thread, after it was added."""
        if self._listeners.get(request_id) is listener:
            del self._listeners[request_id]
            self.built.engine.cancel(request_id)

    def _cancel(self, request_id: str) -> None:
        updates = self.built.engine.cancel(request_id)
        if updates:
            self._deliver(updates)

    def _cancel_all(self) -> None:
        for request_id in list(self._listeners):
            self._cancel(request_id)

    def _deliver(self, updates: list[Update]) -> None:
        """In the engine's thread: hand updates to those who listen, one call per listener."""
        heard: dict[str, list[Update | BaseException]] = {}
        for update in updates:
            heard.setdefault(update.request_id, []).append(update)
        for request_id, own in heard.items():
            listener = self._listeners.get(request_id)
            if listener is None:
                continue
            if isinstance(own[-1], RequestEnded):
                del self._listeners[request_id]
            if not _reach(listener, own):
                self._abandon(request_id, listener)

    def _on_failure(self, error: BaseException) -> None:
        for listener in self._listeners.values():
            _reach(listener, [error])
        self._listeners.clear()


def _reach(listener: _Listener, updates: list[Update | BaseException]) -> bool:
    """Whether the listener's event loop still runs; if so it gets the updates."""
    try:
        listener.loop.call_soon_threadsafe(listener.hear, updates)
    except RuntimeError:  # the loop has been closed
        return False
    return True
