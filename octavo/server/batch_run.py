"""The lines of one batch, each answered and written down once. The server and `octavo batch` both run this."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import msgspec

from octavo.api.batch_file import Index
from octavo.api.batches import (
    BatchUsage,
    InputDetails,
    InputLine,
    LineError,
    LineResponse,
    OutputDetails,
    RequestCounts,
    ResultLine,
)
from octavo.api.faults import HttpError, fault
from octavo.errors import Bug, Busy, OctavoError
from octavo.server.endpoints import ENDPOINTS
from octavo.server.front import Front
from octavo.server.ledger import Ledger, Record
from octavo.server.pace import Pace
from octavo.server.tenants import Caller, Tenant
from octavo.server.writer import whole_answer

LATER = frozenset({"overloaded", "rate_limit_exceeded", "model_loading", "no_ready_replica", "shutting_down"})
"""Refusals that pass by themselves."""
MAX_ATTEMPTS = 3
"""Times a line may meet an engine's failure, all but the first without company."""
LONGEST_WAIT_S = 30.0
DISK_RETRY_S = 2.0


class _Details(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """The usage of any endpoint's answer."""

    prompt_tokens: int | None = None
    input_tokens: int | None = None
    completion_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None

    def counts(self) -> tuple[int, int, int, int]:
        """As in Record."""
        into = self.prompt_tokens_details or self.input_tokens_details or _Details()
        out = self.completion_tokens_details or self.output_tokens_details or _Details()
        return (
            self.prompt_tokens or self.input_tokens or 0,
            into.cached_tokens or 0,
            self.completion_tokens or self.output_tokens or 0,
            out.reasoning_tokens or 0,
        )


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    usage: _Tokens | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


@dataclass(slots=True)
class Sums:
    """What has been written down so far."""

    completed: int = 0
    failed: int = 0
    tokens: tuple[int, ...] = (0, 0, 0, 0)

    def add(self, record: Record) -> None:
        if record.is_ok:
            self.completed += 1
        else:
            self.failed += 1
        self.tokens = tuple(have + more for have, more in zip(self.tokens, record.tokens, strict=True))

    @property
    def done(self) -> int:
        return self.completed + self.failed

    def counts(self, total: int) -> RequestCounts:
        return RequestCounts(total=total, completed=self.completed, failed=self.failed)

    def usage(self) -> BatchUsage:
        tokens, cached, output, reasoning = self.tokens
        return BatchUsage(
            input_tokens=tokens,
            input_tokens_details=InputDetails(cached_tokens=cached),
            output_tokens=output,
            output_tokens_details=OutputDetails(reasoning_tokens=reasoning),
            total_tokens=tokens + output,
        )


class InputChanged(OctavoError):
    """A line is not what it was when the file was checked."""

    code = "input_damaged"


class Job:
    """A checked input file and its ledger.

    tenant  whose lines they are
    sums    of all good records
    """

    def __init__(self, tenant: Tenant, input_file: BinaryIO, index: Index, ledger: Ledger) -> None:
        self.tenant = tenant
        self.index = index
        self.ledger = ledger
        self.sums = Sums()
        self._input = input_file
        for record in ledger.records():
            self.sums.add(record)

    def pending(self) -> Iterator[int]:
        """Requests without a good record, in the file's order."""
        return (number for number in range(len(self.index)) if number not in self.ledger.offsets)

    def line(self, number: int) -> InputLine:
        """Raises InputChanged."""
        try:
            return self.index.read(self._input, number)
        except (OSError, msgspec.DecodeError) as error:
            raise InputChanged("the input file has changed on the disk since it was read") from error

    def results(self, unanswered: LineError | None = None) -> Iterator[tuple[bool, bytes]]:
        """(whether it went well, the line) of every request in the file's order.

        unanswered  what those without a record say; None where there must be none
        """
        done = self.ledger.in_order()
        for number in range(len(self.index)):
            if number in self.ledger.offsets:
                record = next(done)
                assert record.number == number
                yield record.is_ok, bytes(record.line) + b"\n"
            else:
                assert unanswered is not None, f"request {number} has no result"
                result = ResultLine(id=_line_id(), custom_id=self.line(number).custom_id, error=unanswered)
                yield False, msgspec.json.encode(result) + b"\n"

    def close(self) -> None:
        self.ledger.close()
        self._input.close()


def _line_id() -> str:
    return f"batch_req_{secrets.token_hex(16)}"


class LineRun:
    """Runs the pending lines of a job.

    on_written   called after records have reached the disk
    on_disk      called with what the disk says when it takes no more, and with None when it does again
    """

    def __init__(
        self,
        front: Front,
        job: Job,
        pace: Pace,
        *,
        on_written: Callable[[Sequence[Record]], None],
        on_disk: Callable[[OSError | None], None],
    ) -> None:
        self._front = front
        self._job = job
        self._pace = pace
        self._on_written = on_written
        self._on_disk = on_disk
        self._results: asyncio.Queue[tuple[Record, asyncio.Future[None]] | None] = asyncio.Queue()
        self._is_ending = asyncio.Event()

    async def run(self) -> None:
        """Answer every pending line. When cancelled, lines under way are given up and answered ones written."""
        writing = asyncio.create_task(self._write())
        try:
            async with asyncio.TaskGroup() as lines:
                for number in self._job.pending():
                    await self._pace.enter()
                    lines.create_task(self._line(number)).add_done_callback(lambda _: self._pace.leave())
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        finally:
            self._is_ending.set()
            self._results.put_nowait(None)
            await asyncio.wait({writing})
        writing.result()

    async def _line(self, number: int) -> None:
        """Ends once the result is on the disk: so no more results wait than there are places."""
        record = await self._answered(number)
        written = asyncio.get_running_loop().create_future()
        self._results.put_nowait((record, written))
        await written

    async def _answered(self, number: int) -> Record:
        line = await self._front.off_loop(lambda: self._job.line(number))
        request_id = f"req-{secrets.token_hex(12)}"
        caller = Caller(tenant=self._job.tenant, request_id=request_id, is_batch=True)
        status, body = await self._body(line, caller)
        tokens = (0, 0, 0, 0)
        if status == 200:
            usage = _ANSWER.decode(body).usage
            tokens = usage.counts() if usage is not None else tokens
        result = ResultLine(
            id=_line_id(),
            custom_id=line.custom_id,
            response=LineResponse(status_code=status, request_id=request_id, body=msgspec.Raw(body)),
        )
        return Record(number, status == 200, tokens, msgspec.Raw(msgspec.json.encode(result)))

    async def _body(self, line: InputLine, caller: Caller) -> tuple[int, bytes]:
        """Status and body of the endpoint's answer, after as many tries as it takes."""
        failures = 0
        while True:
            try:
                if failures:
                    async with self._pace.alone():
                        return 200, await self._once(line, caller)
                return 200, await self._once(line, caller)
            except OctavoError as error:
                if error.code in LATER:
                    after_s = error.retry_after_s if isinstance(error, Busy | HttpError) else None
                    await asyncio.sleep(min(max(after_s or 1.0, 0.1), LONGEST_WAIT_S))
                    continue
                failures += error.code == "engine_error"
                if error.code == "engine_error" and failures < MAX_ATTEMPTS:
                    continue
                answer = fault(error)
                return answer.status, msgspec.json.encode(answer.body)

    async def _once(self, line: InputLine, caller: Caller) -> bytes:
        try:
            writer = await ENDPOINTS[line.url](self._front, caller, bytes(line.body))
            return msgspec.json.encode(await whole_answer(writer))
        except OctavoError:
            raise
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames[-6:]))
            kind = type(error).__name__
            self._front.log.error("internal_error", request_id=caller.request_id, kind=kind, where=where)
            raise Bug("an internal error; the server's log has it under this request_id") from error

    async def _write(self) -> None:
        """Put results on the disk, those that are ready together with one wait for it."""
        is_last = False
        while not is_last:
            waiting = [await self._results.get()]
            while not self._results.empty():
                waiting.append(self._results.get_nowait())
            is_last = None in waiting
            ready = [one for one in waiting if one is not None]
            try:
                is_kept = await self._durable([record for record, _ in ready])
            except OctavoError as error:
                for _, written in ready:
                    if not written.done():
                        written.set_exception(error)
                continue
            for _, written in ready if is_kept else ():
                if not written.done():
                    written.set_result(None)

    async def _durable(self, records: list[Record]) -> bool:
        """Wait out a full disk; False when the run ends before it has room, and the results are forgotten."""
        was_full = False
        while True:
            try:
                await asyncio.to_thread(self._job.ledger.append, records)
            except OSError as error:
                self._on_disk(error)
                was_full = True
                if self._is_ending.is_set():
                    return False
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._is_ending.wait(), DISK_RETRY_S)
                continue
            if was_full:
                self._on_disk(None)
            for record in records:
                self._job.sums.add(record)
                self._front.metrics.batch_lines.labels("completed" if record.is_ok else "failed").inc()
            self._on_written(records)
            return True
