"""Grammars are tried out before a request is admitted, in a process that can be spared."""

from __future__ import annotations

import asyncio
import hashlib
import select
import subprocess
import sys
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import msgspec

from octavo.api.faults import HttpError
from octavo.core.sequence import Grammar
from octavo.errors import Busy, Unsupported
from octavo.link import frames
from octavo.server.grammar_worker import CPU_S, MEMORY_BYTES, Asked, Verdict, received, send

WALL_S = 5.0
"""For a verdict. Processor time is limited in the worker; this ends one that does nothing."""
START_S = 60.0
MAX_WAITING = 64
MAX_VERDICT_BYTES = 4 * 2**20
VERDICT_BYTES = 400
"""What remembering a verdict takes besides its message."""

_TOO_COMPLEX = Verdict(
    "schema_too_complex",
    f"compiling it takes more than {CPU_S:g} s or {MEMORY_BYTES // 2**20} MiB; make it smaller or simpler",
)


class WorkerBroken(Exception):
    """The worker cannot be used, and no grammar is to blame for it."""


class Worker:
    """The process. Belongs to one thread, except for `close`."""

    def __init__(self, tokenizer_path: str, vocab_size: int) -> None:
        self._command = [
            sys.executable, "-m", "octavo.server.grammar_worker",
            "--tokenizer", tokenizer_path, "--vocab-size", str(vocab_size),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process else None

    def judge(self, grammar: Grammar) -> Verdict:
        """Have it compiled. A worker that dies of it is replaced at once. Raises WorkerBroken."""
        process = self._started()
        assert process.stdin is not None
        try:
            send(process.stdin, Asked(grammar.kind, grammar.source))  # type: ignore[arg-type]
            data = self._answer(process, WALL_S)
        except OSError:
            data = None
        if data is not None:
            return msgspec.msgpack.decode(data, type=Verdict)
        self._end()
        if self._is_closed:
            raise WorkerBroken("the server is shutting down")
        self._process = self._spawned()
        return _TOO_COMPLEX

    def close(self) -> None:
        """End it for good."""
        self._is_closed = True
        self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._is_closed:
            raise WorkerBroken("the server is shutting down")
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = self._spawned()
        if not self._is_ready:
            data = self._answer(self._process, START_S)
            verdict = Verdict("internal_error", "it ended") if data is None else _verdict(data)
            if verdict.code:
                self._end()
                raise WorkerBroken(f"the grammar worker did not start: {verdict.message}")
            self._is_ready = True
        return self._process

    def _spawned(self) -> subprocess.Popen[bytes]:
        self._is_ready = False
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=nowhere)

    def _answer(self, process: subprocess.Popen[bytes], within_s: float) -> bytes | None:
        """The next message; None when it has ended or is too late. A message comes in one piece once it begins."""
        assert process.stdout is not None
        deadline_s = time.monotonic() + within_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            if select.select([process.stdout], [], [], left_s)[0]:
                return received(process.stdout)  # type: ignore[arg-type]
        return None

    def _end(self) -> None:
        process, self._process = self._process, None
        self._is_ready = False
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue  # what was never read by the dead process


def _verdict(data: bytes) -> Verdict:
    return msgspec.msgpack.decode(data, type=Verdict)


class Grammars:
    """Verdicts on grammars, remembered within `max_bytes`. Lives on one event loop; nothing runs until it is asked.

    One grammar is compiled at a time; equal ones that come meanwhile share its verdict.
    """

    def __init__(self, ready: frames.Ready, max_bytes: int = MAX_VERDICT_BYTES) -> None:
        path = ready.tokenizer_path
        self.worker = None if path is None else Worker(path, ready.vocab_size)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-grammar")
        self._max_bytes = max_bytes
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        self._under_way: dict[bytes, asyncio.Future[Verdict]] = {}
        self.num_bytes = 0

    async def check(self, grammar: Grammar | None, param: str | None = None) -> None:
        """Return when the grammar can be followed.

        param  the request field it came in, for the error
        Raises HttpError (invalid_grammar, schema_too_complex, internal_error), Unsupported for a model without a
        tokenizer, and Busy when too many wait for their verdict.
        """
        if grammar is None:
            return
        param = param or "grammar"
        if self.worker is None:
            raise Unsupported(
                "this model came without a tokenizer, so there is no text that a grammar could be about",
                param=param,
            )
        verdict = await self._verdict(grammar)
        if verdict.code:
            raise HttpError(verdict.code, f"{param}: {verdict.message}", param=param)

    def close(self) -> None:
        """End the worker; checks under way fail."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self.worker is not None:
            self.worker.close()

    async def _verdict(self, grammar: Grammar) -> Verdict:
        key = hashlib.sha256(f"{grammar.kind}\n{grammar.source}".encode("utf-8", "surrogatepass")).digest()
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        future = self._under_way.get(key)
        if future is None:
            if len(self._under_way) >= MAX_WAITING:
                raise Busy(f"{len(self._under_way)} grammars wait to be compiled; try again", retry_after_s=5)
            future = asyncio.ensure_future(self._judged(key, grammar))
            self._under_way[key] = future
        return await asyncio.shield(future)

    async def _judged(self, key: bytes, grammar: Grammar) -> Verdict:
        assert self.worker is not None
        try:
            verdict = await asyncio.get_running_loop().run_in_executor(
                self._thread, self.worker.judge, grammar
            )
        except (WorkerBroken, RuntimeError, OSError) as error:
            return Verdict("internal_error", str(error))
        finally:
            del self._under_way[key]
        self._remember(key, verdict)
        return verdict

    def _remember(self, key: bytes, verdict: Verdict) -> None:
        self._known[key] = verdict
        self.num_bytes += VERDICT_BYTES + len(verdict.message)
        while self.num_bytes > self._max_bytes:
            _, gone = self._known.popitem(last=False)
            self.num_bytes -= VERDICT_BYTES + len(gone.message)
