"""An engine as a process of its own, at the far end of a link: `python -m octavo.engine.process`.

The front process starts it, says what to load, sends requests and gets frames back; see `octavo.link.frames`.
It ends with 0 after Drain or when the front goes away, with 3 when the model cannot be loaded, with 4 when
the engine's loop broke.
"""

from __future__ import annotations

import argparse
import asyncio
import mmap
import os
import signal
import sys
import time
import traceback
from collections import deque
from functools import partial
from pathlib import Path

import octavo
from octavo.decode.grammar import Compiled
from octavo.engine.build import Built, build, plan
from octavo.engine.machine import Share
from octavo.engine.outputs import ChoiceEnded, Delta, Logprob, RequestEnded, RequestOutput, Update
from octavo.engine.service import EngineThread
from octavo.errors import Busy, OctavoError, RequestError
from octavo.link import frames
from octavo.link.channel import Channel, connect
from octavo.link.wire import LinkClosed, LinkError

STATS_PERIOD_S = 1.0
MAX_PAGES = 4096
"""Blocks of the pool that are shown at most."""
DRAIN_PULSES = 30
EXIT_LOAD, EXIT_BROKEN = 3, 4


class DrainRate:
    """How fast requests end when there are any: over the last half minute, idle seconds left out.

    num_ended  so far; counted by whoever ends them
    """

    def __init__(self) -> None:
        self.num_ended = 0
        self._num_told = 0
        self._recent: deque[tuple[int, bool]] = deque(maxlen=DRAIN_PULSES)

    def per_s(self, *, is_busy: bool) -> float:
        """Requests per second. To be asked once per `STATS_PERIOD_S`."""
        num_ended = self.num_ended
        since, self._num_told = num_ended - self._num_told, num_ended
        self._recent.append((since, is_busy or since > 0))
        busy_s = STATS_PERIOD_S * sum(was_busy for _, was_busy in self._recent)
        return sum(ended for ended, _ in self._recent) / busy_s if busy_s else 0.0


class EngineProcess:
    """Joins one engine to one link.

    trail  memory for its recorder, which the front can read too; None where it gave none
    """

    def __init__(self, channel: Channel[frames.ToEngine], trail: memoryview | None = None) -> None:
        self._channel = channel
        self._trail = trail
        self._loop = asyncio.get_running_loop()
        self._num_top: dict[str, int] = {}
        self._drain = DrainRate()
        self._over: asyncio.Future[int] = self._loop.create_future()
        self._is_draining = False

    async def run(self) -> int:
        """Serve until the link or the engine ends; returns the exit code."""
        started_s = time.monotonic()
        configure = await self._channel.receive()
        if not isinstance(configure, frames.Configure):
            raise LinkError(f"expected Configure first, got {type(configure).__name__}")
        hello = frames.Hello(protocol=frames.PROTOCOL, version=octavo.__version__, pid=os.getpid())
        await self._channel.send(hello)
        try:
            built = await asyncio.to_thread(self._build, configure)
        except OctavoError as error:
            await self._channel.send(frames.LoadFailed(code=error.code, message=str(error)))
            return EXIT_LOAD
        self._built = built
        self._thread = EngineThread(built.engine, self._deliver, self._on_failure)
        await self._channel.send(_ready(built, time.monotonic() - started_s))
        tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._pulse())]
        code = await self._over
        for task in tasks:
            task.cancel()
        if code != EXIT_BROKEN:
            await asyncio.to_thread(self._thread.stop)
        return code

    def _build(self, configure: frames.Configure) -> Built:
        config = configure.config
        planned = plan(config, Share(configure.num_engines, configure.memory_limit))
        memory = planned.resolved.memory
        loading = frames.Loading(phase="weights", total=memory.weight_bytes, memory=tuple(memory.rows()))
        self._loop.call_soon_threadsafe(self._post, loading)
        return build(config, planned, self._trail, configure.trail_key)

    async def _receive(self) -> None:
        try:
            while not self._is_draining:
                frame = await self._channel.receive()
                match frame:
                    case frames.Submit():
                        await self._submit(frame)
                    case frames.Cancel():
                        self._thread.call(partial(self._cancel, frame.request_id))
                    case frames.ResetCache():
                        self._thread.call(self._reset_cache)
                    case frames.ShowPages():
                        self._thread.call(self._show_pages)
                    case frames.Drain():
                        self._is_draining = True
                        self._thread.call(self._note_if_drained)
                    case _:
                        raise LinkError(f"unexpected frame {type(frame).__name__}")
        except LinkClosed:
            self._end(0)
        except LinkError as error:
            print(f"octavo engine: {error}", file=sys.stderr, flush=True)
            self._end(EXIT_BROKEN)

    async def _submit(self, frame: frames.Submit) -> None:
        """Compile a grammar beside the engine's thread, then add. Frames behind this one wait, so order is kept."""
        grammar: Compiled | OctavoError | None = None
        if frame.params.grammar is not None:
            try:
                grammar = await asyncio.to_thread(self._built.engine.grammar, frame.params)
            except OctavoError as error:
                grammar = error
        self._thread.call(partial(self._add, frame, grammar))

    def _add(self, frame: frames.Submit, grammar: Compiled | OctavoError | None) -> None:
        """In the engine's thread: accept or refuse, before any token of the request can be drawn."""
        updates: list[Update] = []
        try:
            if isinstance(grammar, OctavoError):
                raise grammar
            updates = self._built.engine.add(
                frame.prompt_token_ids,
                frame.params,
                request_id=frame.request_id,
                grammar=grammar,
                priority=frame.priority,
                namespace=frame.namespace,
                num_public_tokens=frame.num_public_tokens,
                client=frame.client,
                cost_weight=frame.cost_weight,
                arrival_s=frame.arrival_s or None,
                seed=frame.seed,
                progress=frame.progress,
            )
        except OctavoError as error:
            answer: frames.Frame = frames.Refused(
                request_id=frame.request_id,
                code=error.code,
                message=str(error),
                param=error.param if isinstance(error, RequestError) else None,
                retry_after_s=error.retry_after_s if isinstance(error, Busy) else None,
            )
        else:
            self._num_top[frame.request_id] = frame.params.logprobs or 0
            answer = frames.Accepted(request_id=frame.request_id)
        self._loop.call_soon_threadsafe(self._post, answer)
        if updates:
            self._deliver(updates)

    def _cancel(self, request_id: str) -> None:
        updates = self._built.engine.cancel(request_id)
        if updates:
            self._deliver(updates)

    def _reset_cache(self) -> None:
        done = frames.CacheWasReset(num_blocks=self._built.engine.reset_prefix_cache())
        self._loop.call_soon_threadsafe(self._post, done)

    def _show_pages(self) -> None:
        now = self._built.engine.pages(MAX_PAGES)
        shown = frames.Pages(
            states=now.states, owners=now.owners, clients=now.clients, num_blocks=now.num_blocks
        )
        self._loop.call_soon_threadsafe(self._post, shown)

    def _deliver(self, updates: list[Update]) -> None:
        """In the engine's thread: updates become frames."""
        sent: list[frames.Frame] = []
        for update in updates:
            num_top = self._num_top.get(update.request_id, 0)
            match update:
                case Delta():
                    sent.append(_delta(update, num_top))
                case ChoiceEnded():
                    sent.append(_choice_ended(update))
                case RequestEnded():
                    del self._num_top[update.request_id]
                    sent.extend(_ended(update, num_top))
                    self._drain.num_ended += 1
        self._loop.call_soon_threadsafe(self._post, *sent)
        self._note_if_drained()

    def _note_if_drained(self) -> None:
        if self._is_draining and not self._built.engine.is_busy:
            self._loop.call_soon_threadsafe(self._end, 0)

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(STATS_PERIOD_S)
            now_s = time.monotonic()
            counts = self._built.engine.counts()
            self._post(
                frames.Stats(
                    num_steps=counts.num_steps,
                    num_running=counts.num_running,
                    num_waiting=counts.num_waiting,
                    used_kv_blocks=counts.used_kv_blocks,
                    num_kv_blocks=counts.num_kv_blocks,
                    drained_per_s=self._drain.per_s(is_busy=self._built.engine.is_busy),
                    longest_step_s=counts.steps.longest_s,
                    step_age_s=now_s - counts.steps.ended_s,
                    step_counts=tuple(counts.steps.counts),
                    steps_s=counts.steps.total_s,
                    token_counts=tuple(counts.steps.token_counts),
                    step_tokens=counts.steps.num_tokens,
                    block_tokens=counts.block_tokens,
                    cached_kv_blocks=counts.cached_kv_blocks,
                    pinned_kv_blocks=counts.pinned_kv_blocks,
                    lookup_tokens=counts.totals.lookup_tokens,
                    hit_tokens=counts.totals.hit_tokens,
                    evictions=counts.totals.evictions,
                    preemptions=counts.totals.preemptions,
                    computed_tokens=counts.totals.computed_tokens,
                    fairness_gap=counts.fairness_gap,
                )
            )
            if self._is_draining:
                self._thread.call(self._note_if_drained)

    def _post(self, *sent: frames.Frame) -> None:
        try:
            self._channel.post(*sent)
        except LinkError:
            self._end(0)

    def _on_failure(self, error: BaseException) -> None:
        traceback.print_exception(error)
        self._loop.call_soon_threadsafe(self._end, EXIT_BROKEN)

    def _end(self, code: int) -> None:
        if not self._over.done():
            self._over.set_result(code)


def _ready(built: Built, load_s: float) -> frames.Ready:
    planned = built.plan
    resolved = planned.resolved
    has_files = (planned.location.folder / "tokenizer.json").is_file()
    return frames.Ready(
        model=planned.location.name,
        model_path=None if planned.location.is_random else str(planned.location.folder),
        tokenizer_path=str(planned.location.folder) if has_files else None,
        fingerprint=built.model.fingerprint.hex(),
        dtype=resolved.dtype,
        device=resolved.device,
        vocab_size=planned.arch.vocab_size,
        max_model_len=resolved.max_model_len,
        num_parameters=planned.arch.num_parameters(),
        num_kv_blocks=resolved.limits.num_blocks - 1,
        block_tokens=resolved.limits.block_tokens,
        memory=tuple(resolved.memory.rows()),
        decisions=tuple(
            frames.Decision(field=made.field, value=made.value, because=made.because)
            for made in resolved.decisions
        ),
        kernels=tuple(
            frames.Kernel(
                op=one.op,
                name=one.impl,
                passed_over=one.passed_over,
                is_batch_invariant=one.is_batch_invariant,
            )
            for one in built.model.decisions
        ),
        load_s=load_s,
        hidden_size=planned.arch.hidden_size,
        memory_limit=resolved.memory.limit_bytes,
        batch_invariant=planned.config.runtime.batch_invariant,
    )


def _logprob(entry: dict[int, Logprob], num_top: int) -> frames.TokenLogprob:
    """The first entry is the chosen token; the likeliest ones are those of rank 1 to num_top."""
    token = next(iter(entry))
    ranked = sorted((one.rank, other, one.logprob) for other, one in entry.items() if one.rank <= num_top)
    top = tuple((other, logprob) for _, other, logprob in ranked)
    return frames.TokenLogprob(token_id=token, logprob=entry[token].logprob, top=top)


def _delta(update: Delta, num_top: int) -> frames.Delta:
    logprobs = None
    if update.logprobs is not None:
        logprobs = tuple(_logprob(entry, num_top) for entry in update.logprobs)
    return frames.Delta(
        request_id=update.request_id,
        index=update.index,
        text=update.text,
        token_ids=update.token_ids,
        logprobs=logprobs,
    )


def _choice_ended(update: ChoiceEnded) -> frames.ChoiceEnded:
    return frames.ChoiceEnded(
        request_id=update.request_id,
        index=update.index,
        finish_reason=update.finish_reason,
        stop_reason=update.stop_reason,
        error=update.error,
    )


def _ended(update: RequestEnded, num_top: int) -> list[frames.Frame]:
    """Ended, after the whole of each choice where choices were ranked at the end."""
    output = update.output
    sent: list[frames.Frame] = []
    if not update.was_streamed:
        for choice in output.outputs:
            entries = None if choice.logprobs is None else tuple(choice.logprobs)
            whole = Delta(output.request_id, choice.index, choice.text, tuple(choice.token_ids), entries)
            sent.append(_delta(whole, num_top))
            sent.append(
                frames.ChoiceEnded(
                    request_id=output.request_id,
                    index=choice.index,
                    finish_reason=choice.finish_reason or "error",
                    stop_reason=choice.stop_reason,
                    error=choice.error,
                )
            )
    sent.append(_over(update, output))
    return sent


def _over(update: RequestEnded, output: RequestOutput) -> frames.Ended:
    errors = [choice.error for choice in output.outputs if choice.error]
    prompt = None
    if output.prompt_logprobs is not None:
        num_top = update.num_prompt_logprobs
        prompt = tuple(None if one is None else _logprob(one, num_top) for one in output.prompt_logprobs)
    metrics = output.metrics
    return frames.Ended(
        request_id=output.request_id,
        usage=frames.Usage(
            prompt_tokens=len(output.prompt_token_ids),
            completion_tokens=sum(len(choice.token_ids) for choice in output.outputs),
            drawn_tokens=update.num_drawn_tokens,
            cached_prompt_tokens=metrics.cached_prompt_tokens,
        ),
        metrics=frames.Metrics(
            arrival_s=metrics.arrival_s,
            first_scheduled_s=metrics.first_scheduled_s,
            first_token_s=metrics.first_token_s,
            finished_s=metrics.finished_s,
            preemptions=metrics.preemptions,
            cache_miss_reason=metrics.cache_miss_reason,
            seed=metrics.seed,
        ),
        error=errors[0] if errors and len(errors) == len(output.outputs) else None,
        prompt_logprobs=prompt,
        embedding=output.embedding,
    )


async def _serve(socket: Path, epoch: int, trail: memoryview | None) -> int:
    channel: Channel[frames.ToEngine] = await connect(socket, frames.TO_ENGINE, epoch=epoch)
    try:
        return await EngineProcess(channel, trail).run()
    finally:
        await channel.close()


def main(arguments: list[str] | None = None) -> int:
    """Entry point. SIGINT is left to the front, which gets it too and drains this process."""
    parser = argparse.ArgumentParser(prog="octavo.engine.process")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--trail", type=int, help="descriptor of the memory for the recorder")
    chosen = parser.parse_args(arguments)
    trail = None if chosen.trail is None else memoryview(mmap.mmap(chosen.trail, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return asyncio.run(_serve(chosen.socket, chosen.epoch, trail))
    except LinkError as error:
        print(f"octavo engine: {error}", file=sys.stderr)
        return EXIT_BROKEN


if __name__ == "__main__":
    sys.exit(main())
