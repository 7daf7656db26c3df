"""Takes batches from their first state to their last, through restarts.

    validating ──> failed
        └──> in_progress ──> finalizing ──> completed | expired
                 └──> cancelling ──> cancelled

Where a batch is stands in the store; which of its lines are answered stands in its ledger. A server that starts again
goes on from there. What a disk or a database refuses is tried again until it works; batches wait meanwhile, and
nothing else does.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import msgspec

from octavo.api.batch_file import Index, Invalid, Limits, scan
from octavo.api.batches import OPEN, BatchError, BatchErrors, BatchRequest, LineError, RequestCounts
from octavo.api.batches import Batch as WireBatch
from octavo.api.faults import HttpError
from octavo.api.files import BATCH_OUTPUT, FileObject
from octavo.errors import OctavoError, UnknownModel
from octavo.obs.log import Log
from octavo.server.batch_run import DISK_RETRY_S, Job, LineRun, Sums
from octavo.server.endpoints import ENDPOINTS
from octavo.server.front import Front
from octavo.server.ledger import Header, Ledger
from octavo.server.pace import Pace
from octavo.server.shelf import Draft
from octavo.server.storage import Storage, new_id
from octavo.server.store import Damaged, StoredBatch, StoredFile, StoreError, Tally
from octavo.server.tenants import Tenant

LOOK_S = 0.1
SWEEP_S = 60.0
ACCOUNT_S = 1.0
"""How far the counts of a batch may lag behind what is written."""
MAX_OPEN, MAX_OPEN_OF_TENANT = 16, 2
"""Batches whose lines run side by side; the others wait for their turn."""
BATCH_WEIGHT = 0.5
"""Of a batch's token in its tenant's usage."""
ROOM_AROUND_BODY = 4096

_UNANSWERED = {
    "expired": LineError(code="batch_expired", message="the batch expired before this line was answered"),
    "cancelled": LineError(
        code="batch_cancelled", message="the batch was cancelled before this line was answered"
    ),
}
_T = TypeVar("_T")


class _Failed(Exception):
    """The batch cannot go on; `errors` say why."""

    def __init__(self, *errors: BatchError) -> None:
        super().__init__(errors[0].code)
        self.errors = list(errors)


class Batches:
    """All batches of one server.

    pace  how many lines run at once, over all batches
    """

    def __init__(self, front: Front, storage: Storage) -> None:
        self._front = front
        self._storage = storage
        self._log: Log = front.log
        config = storage.config
        self.pace = Pace(min(config.batch_concurrency, max(1, config.max_queued_requests // 2)))
        self._following: dict[str, asyncio.Task[None]] = {}
        self._cancels: dict[str, asyncio.Event] = {}
        self._inputs: dict[str, str] = {}
        self._reading = asyncio.Semaphore(1)
        self._open = asyncio.Semaphore(MAX_OPEN)
        self._open_of_tenant: dict[str, asyncio.Semaphore] = {}
        self._tending: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Take up what an earlier server left."""
        rows, damaged = await self._storage.off_loop(self._left_over)
        for batch_id in damaged:
            self._log.error("batch_damaged", batch=batch_id)
        for row in rows:
            self._follow(row)
        self._tending = [asyncio.create_task(self._look()), asyncio.create_task(self._sweep())]

    def _left_over(self) -> tuple[list[StoredBatch], list[str]]:
        store = self._storage.store
        rows, damaged = store.batches.of_kinds(sorted(OPEN))
        self._storage.shelf.keep_only(store.files.ids(), [*(row.batch.id for row in rows), *damaged])
        return rows, damaged

    async def stop(self) -> None:
        """Give up the lines under way; the next server runs them."""
        tasks = [*self._tending, *self._following.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def uses(self, file_id: str) -> bool:
        """Whether a batch that has not ended reads this file."""
        return file_id in self._inputs.values()

    async def create(self, tenant: Tenant, asked: BatchRequest) -> WireBatch:
        """Raises RequestError and HttpError; what is wrong inside the file shows later, in the batch."""
        window_s = asked.window_s()
        asked.check()
        if asked.endpoint not in ENDPOINTS:
            known = ", ".join(sorted(ENDPOINTS))
            raise HttpError("invalid_value", f"endpoint must be one of {known}", param="endpoint")
        file = (await self._storage.file(tenant, asked.input_file_id)).file
        if file.purpose != "batch":
            text = f"the file's purpose is {file.purpose!r}; upload it with purpose 'batch'"
            raise HttpError("invalid_value", text, param="input_file_id")
        store = self._storage.store
        limit = self._storage.config.max_batches
        unfinished = await self._storage.off_loop(lambda: store.batches.count(tenant.tenant_id, sorted(OPEN)))
        if unfinished >= limit:
            text = f"{unfinished} of your batches have not ended, at most {limit} may (max_batches)"
            raise HttpError("rate_limit_exceeded", text, retry_after_s=60)
        row = _new_row(tenant, asked, window_s)
        await self._storage.off_loop(lambda: store.batches.add(row))
        self._follow(row)
        return row.batch

    async def cancel(self, tenant: Tenant, batch_id: str) -> WireBatch:
        """Raises HttpError for a batch that is not there or has ended."""

        def mark(row: StoredBatch) -> StoredBatch:
            batch = row.batch
            if batch.status not in ("validating", "in_progress"):
                return row
            batch = msgspec.structs.replace(batch, status="cancelling", cancelling_at=_now())
            return msgspec.structs.replace(row, batch=batch, outcome="cancelled")

        batch = await self.get(tenant, batch_id)
        if batch.status in OPEN:
            row = await self._storage.off_loop(lambda: self._storage.store.batches.change(batch_id, mark))
            assert row is not None
            batch = row.batch
        if batch.status not in ("cancelling", "cancelled"):
            text = f"the batch is {batch.status}; only one that is validating or in progress can be cancelled"
            raise HttpError("invalid_value", text)
        if batch_id in self._cancels:
            self._cancels[batch_id].set()
        return batch

    async def get(self, tenant: Tenant, batch_id: str) -> WireBatch:
        """Raises HttpError when the tenant has no such batch."""
        store = self._storage.store
        row = await self._storage.off_loop(lambda: store.batches.get(batch_id, tenant.tenant_id))
        if row is None:
            raise HttpError("not_found", f"there is no batch {batch_id[:64]!r}")
        return row.batch

    def _follow(self, row: StoredBatch) -> None:
        batch_id = row.batch.id
        self._inputs[batch_id] = row.batch.input_file_id
        cancelled = self._cancels[batch_id] = asyncio.Event()
        if row.batch.status == "cancelling":
            cancelled.set()
        task = self._following[batch_id] = asyncio.create_task(self._whole_life(row, cancelled))

        def forget(_: object) -> None:
            for kept in (self._following, self._cancels, self._inputs):
                kept.pop(batch_id, None)

        task.add_done_callback(forget)

    async def _whole_life(self, row: StoredBatch, cancelled: asyncio.Event) -> None:
        batch_id = row.batch.id
        try:
            await _BatchLife(self, self._front, self._storage, row, cancelled).run()
        except _Failed as failed:
            self._log.warn("batch_failed", batch=batch_id, code=failed.errors[0].code)
            await self._end_failed(batch_id, failed.errors)
        except Damaged:
            self._log.error("batch_damaged", batch=batch_id)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames[-6:]))
            self._log.error("batch_broke", batch=batch_id, kind=type(error).__name__, where=where)
            text = "an internal error; the server's log has it under this batch"
            await self._end_failed(batch_id, [BatchError(code="internal_error", message=text)])

    async def _end_failed(self, batch_id: str, errors: list[BatchError]) -> None:
        def fail(row: StoredBatch) -> StoredBatch:
            batch = msgspec.structs.replace(
                row.batch, status="failed", failed_at=_now(), errors=BatchErrors(data=errors)
            )
            return msgspec.structs.replace(row, batch=batch)

        await self.persist(lambda: self._storage.store.batches.change(batch_id, fail))
        await self.persist(lambda: self._storage.shelf.ledger(batch_id).unlink(missing_ok=True))

    async def persist(self, work: Callable[[], _T]) -> _T:
        """Run what writes until the disk and the database take it."""
        was_refused = False
        while True:
            try:
                done = await asyncio.to_thread(work)
            except Damaged:
                raise
            except (OSError, StoreError) as error:
                if not was_refused:
                    self.note_disk(error)
                was_refused = True
                await asyncio.sleep(DISK_RETRY_S)
            else:
                if was_refused:
                    self.note_disk(None)
                return done

    def note_disk(self, error: OSError | StoreError | None) -> None:
        """Say when batches wait for the disk, and when they do not any more."""
        if error is None:
            self._log.note("batches_go_on")
        else:
            because = error.strerror if isinstance(error, OSError) else str(error)
            self._log.warn("batches_wait_for_disk", because=because)

    def turn(self, tenant_id: str) -> tuple[asyncio.Semaphore, asyncio.Semaphore]:
        """What a batch holds while its lines run; the tenant's own first."""
        own = self._open_of_tenant.setdefault(tenant_id, asyncio.Semaphore(MAX_OPEN_OF_TENANT))
        return own, self._open

    @property
    def reading(self) -> asyncio.Semaphore:
        """Held while a whole file is checked."""
        return self._reading

    async def _look(self) -> None:
        seen: object = None
        while True:
            await asyncio.sleep(LOOK_S)
            stats = self._front.fleet.stats
            if stats is not None and stats is not seen:
                seen = stats
                online = max(0, len(self._front.running) - self.pace.running)
                self.pace.look(waiting=stats.num_waiting, online=online)

    async def _sweep(self) -> None:
        while True:
            try:
                num_removed = await self._storage.off_loop(self._storage.sweep)
            except (OSError, StoreError) as error:
                self._log.warn("sweep_failed", because=type(error).__name__)
            else:
                if num_removed:
                    self._log.note("files_expired", count=num_removed)
            await asyncio.sleep(SWEEP_S)


class _BatchLife:
    """One batch from where it is to its end. Raises _Failed."""

    def __init__(
        self, batches: Batches, front: Front, storage: Storage, row: StoredBatch, cancelled: asyncio.Event
    ) -> None:
        self._batches = batches
        self._front = front
        self._storage = storage
        self._row = row
        self._cancelled = cancelled
        self._deadline_s = time.monotonic() + max(0.0, row.batch.expires_at - time.time())
        self._accounted = Sums()

    @property
    def _id(self) -> str:
        return self._row.batch.id

    async def run(self) -> None:
        """Each step starts from what the store says, so that any of them may be the first."""
        async with self._batches.reading:
            index = await self._batches.persist(self._read)
        if self._row.batch.status in ("validating", "in_progress"):
            await self._change(partial(_begun, index=index))
        job = await self._batches.persist(lambda: self._job(index))
        try:
            if self._row.batch.status == "in_progress":
                await self._run_lines(job)
            await self._account(job)
            await self._finish(job)
        finally:
            job.close()
        await self._batches.persist(lambda: self._storage.shelf.ledger(self._id).unlink(missing_ok=True))

    async def _change(
        self,
        how: Callable[[StoredBatch], StoredBatch],
        tally: Tally | None = None,
        files: Sequence[StoredFile] = (),
    ) -> None:
        store = self._storage.store
        row = await self._batches.persist(lambda: store.settle(self._id, how, tally=tally, files=files))
        assert row is not None, "batches are never removed"
        self._row = row

    def _read(self) -> Index:
        """Check the whole input, at the start and again after a restart, when it must be what it was."""
        row, config = self._row, self._storage.config
        stored = self._storage.store.files.get(row.batch.input_file_id, row.tenant_id)
        limits = Limits(
            max_lines=config.batch_max_lines,
            max_bytes=config.batch_max_bytes,
            max_line_bytes=config.max_body_bytes + ROOM_AROUND_BODY,
        )
        is_new = row.digest is None
        try:
            with self._storage.shelf.open(row.batch.input_file_id) as file:
                index = scan(
                    file,
                    limits,
                    endpoint=row.batch.endpoint,
                    urls=ENDPOINTS,
                    check_model=self._front.check_model if is_new else lambda _name: None,
                )
        except FileNotFoundError:
            raise _Failed(_problem("input_missing", "the input file is gone")) from None
        except Invalid as invalid:
            raise _Failed(*invalid.errors) from None
        expected = row.digest or (stored.digest if stored is not None else None)
        if index.digest.hex() != expected:
            raise _Failed(_problem("input_damaged", "the input file is not what was uploaded"))
        return index

    def _job(self, index: Index) -> Job:
        row = self._row
        header = Header(self._id, index.digest.hex())
        try:
            ledger = Ledger(self._storage.shelf.ledger(self._id), header, len(index))
        except OctavoError as error:
            raise _Failed(_problem("results_damaged", "the results written so far cannot be read")) from error
        if ledger.num_damaged:
            self._front.log.warn("ledger_damaged", batch=self._id, lines=ledger.num_damaged)
        try:
            input_file = self._storage.shelf.open(row.batch.input_file_id)
            tenant = Tenant(tenant_id=row.tenant_id, namespace=row.namespace)
            job = Job(tenant, input_file, index, ledger)
            for record in ledger.records():
                if ledger.offsets[record.number] < row.accounted_bytes:
                    self._accounted.add(record)
        except BaseException:
            ledger.close()
            raise
        return job

    async def _run_lines(self, job: Job) -> None:
        """Until all are answered, or it is cancelled, or its time is over."""
        working = asyncio.create_task(self._work(job))
        waiting = asyncio.create_task(self._cancelled.wait())
        try:
            left_s = max(0.0, self._deadline_s - time.monotonic())
            await asyncio.wait({working, waiting}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            is_done = working.done()
        finally:
            for task in (working, waiting):
                task.cancel()
            await asyncio.wait({working, waiting})
        if is_done:
            working.result()
            outcome = "completed"
        else:
            outcome = "cancelled" if self._cancelled.is_set() else "expired"
        await self._change(partial(_finalizing, outcome=outcome))

    async def _work(self, job: Job) -> None:
        own, shared = self._batches.turn(self._row.tenant_id)
        async with own, shared:
            await self._wait_for_model()
            run = LineRun(
                self._front,
                job,
                self._batches.pace,
                on_written=lambda _: None,
                on_disk=self._batches.note_disk,
            )
            accounting = asyncio.create_task(self._account_along(job))
            try:
                await run.run()
            except OctavoError as error:
                raise _Failed(_problem(error.code, str(error))) from error
            finally:
                accounting.cancel()
                await asyncio.wait({accounting})

    async def _wait_for_model(self) -> None:
        """A server that was started again may serve another model; then the batch waits for the next one."""
        try:
            self._front.check_model(self._row.batch.model)
        except UnknownModel:
            self._front.log.warn("batch_waits_for_model", batch=self._id)
            await asyncio.Event().wait()

    async def _account_along(self, job: Job) -> None:
        while True:
            await asyncio.sleep(ACCOUNT_S)
            await self._account(job)

    async def _account(self, job: Job) -> None:
        """Bring counts and usage in the store up to what is in the ledger."""
        upto, sums = job.ledger.size, dataclasses.replace(job.sums)
        if upto == self._row.accounted_bytes:
            return
        before = self._accounted
        tally = Tally(
            day=datetime.now(UTC).strftime("%Y-%m-%d"),
            is_batch=True,
            requests=sums.done - before.done,
            input_tokens=sums.tokens[0] - before.tokens[0],
            output_tokens=sums.tokens[2] - before.tokens[2],
            weight=BATCH_WEIGHT,
        )
        await self._change(partial(_accounted, upto=upto, sums=sums), tally)
        self._accounted = sums

    async def _finish(self, job: Job) -> None:
        """Write the files and the last state. Doing it twice, after a crash, leaves what doing it once leaves."""
        row = self._row
        files, counts = await self._batches.persist(lambda: self._write_files(job))
        await self._change(
            partial(_ended, outcome=row.outcome, counts=counts, written={file.file.id for file in files}),
            files=files,
        )
        self._front.log.note("batch_ended", batch=self._id, status=self._row.batch.status, lines=counts.total)

    def _write_files(self, job: Job) -> tuple[list[StoredFile], RequestCounts]:
        row, shelf = self._row, self._storage.shelf
        unanswered = _UNANSWERED.get(row.outcome)
        counts = [0, 0]
        with (
            Draft(shelf.incoming / row.output_id, shelf.path(row.output_id)) as output,
            Draft(shelf.incoming / row.error_id, shelf.path(row.error_id)) as errors,
        ):
            try:
                for is_ok, line in job.results(unanswered):
                    counts[0 if is_ok else 1] += 1
                    (output if is_ok else errors).write(line)
            except OctavoError as error:
                raise _Failed(_problem("results_damaged", str(error))) from error
            files = []
            for draft, file_id, kind in ((output, row.output_id, "output"), (errors, row.error_id, "error")):
                if draft.num_bytes:
                    draft.commit()
                    files.append(_result_file(row, file_id, kind, draft))
        return files, RequestCounts(total=len(job.index), completed=counts[0], failed=counts[1])


def _new_row(tenant: Tenant, asked: BatchRequest, window_s: float) -> StoredBatch:
    now = time.time()
    batch = WireBatch(
        id=new_id("batch", "_"),
        endpoint=asked.endpoint,
        input_file_id=asked.input_file_id,
        completion_window=asked.completion_window,
        created_at=int(now),
        expires_at=int(now + window_s),
        metadata=asked.metadata,
    )
    expires = asked.output_expires_after
    return StoredBatch(
        tenant_id=tenant.tenant_id,
        namespace=tenant.namespace,
        batch=batch,
        output_id=new_id("file"),
        error_id=new_id("file"),
        output_expires_s=None if expires is None else expires.seconds,
    )


def _result_file(row: StoredBatch, file_id: str, kind: str, draft: Draft) -> StoredFile:
    now = _now()
    file = FileObject(
        id=file_id,
        bytes=draft.num_bytes,
        created_at=now,
        expires_at=None if row.output_expires_s is None else now + row.output_expires_s,
        filename=f"{row.batch.id}_{kind}.jsonl",
        purpose=BATCH_OUTPUT,
    )
    return StoredFile(tenant_id=row.tenant_id, file=file, digest=draft.digest)


def _problem(code: str, message: str) -> BatchError:
    return BatchError(code=code, message=message)


def _now() -> int:
    return int(time.time())


def _begun(row: StoredBatch, *, index: Index) -> StoredBatch:
    """The input has been read; unless somebody has cancelled the batch meanwhile, it runs."""
    batch = row.batch
    if batch.status == "validating":
        batch = msgspec.structs.replace(batch, status="in_progress", in_progress_at=_now())
    counts = msgspec.structs.replace(batch.request_counts, total=len(index))
    batch = msgspec.structs.replace(batch, model=index.model, request_counts=counts)
    return msgspec.structs.replace(row, batch=batch, digest=index.digest.hex())


def _accounted(row: StoredBatch, *, upto: int, sums: Sums) -> StoredBatch:
    if row.accounted_bytes >= upto:
        return row
    counts = sums.counts(row.batch.request_counts.total)
    batch = msgspec.structs.replace(row.batch, request_counts=counts, usage=sums.usage())
    return msgspec.structs.replace(row, batch=batch, accounted_bytes=upto)


def _finalizing(row: StoredBatch, *, outcome: str) -> StoredBatch:
    """Cancelling stays cancelling: all its lines may have been answered, and it ends as cancelled."""
    if row.batch.status != "in_progress":
        return row
    batch = msgspec.structs.replace(row.batch, status="finalizing", finalizing_at=_now())
    return msgspec.structs.replace(row, batch=batch, outcome=outcome)


def _ended(row: StoredBatch, *, outcome: str, counts: RequestCounts, written: set[str]) -> StoredBatch:
    times = {f"{outcome}_at": _now()}
    batch = msgspec.structs.replace(
        row.batch,
        status=outcome,
        request_counts=counts,
        output_file_id=row.output_id if row.output_id in written else None,
        error_file_id=row.error_id if row.error_id in written else None,
        **times,
    )
    return msgspec.structs.replace(row, batch=batch)
