"""One batch, from where its row says it is to its end.

    validating ──> failed
        └──> in_progress ──> finalizing ──> completed | expired
                 └──> cancelling ──> cancelled

Where a batch is stands in the store; which of its lines are answered stands in its ledger. Each step starts from these
two, so it may be done again after a crash. What a disk or a database refuses is tried again until it works; batches
wait meanwhile, and nothing else does.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import msgspec

from octavo.api.batch_file import Index, Invalid, Limits, scan
from octavo.api.batches import BatchError, LineError, RequestCounts
from octavo.api.files import BATCH_OUTPUT, FileObject
from octavo.errors import OctavoError, UnknownModel
from octavo.server.batch_run import DISK_RETRY_S, Job, LineRun, Sums
from octavo.server.documents import Damaged, StoreError
from octavo.server.endpoints import BATCHED
from octavo.server.front import Front
from octavo.server.ledger import Header, Ledger
from octavo.server.metering import BATCH_WEIGHT
from octavo.server.pace import Pace
from octavo.server.shelf import Draft
from octavo.server.storage import Storage
from octavo.server.store import StoredBatch, StoredFile, Tally
from octavo.server.tenants import Tenant

ACCOUNT_S = 1.0
"""How far the counts of a batch may lag behind what is written."""
MAX_OPEN, MAX_OPEN_OF_TENANT = 16, 2
"""Batches whose lines run side by side; the others wait for their turn."""
ROOM_AROUND_BODY = 4096

_UNANSWERED = {
    "expired": LineError(code="batch_expired", message="the batch expired before this line was answered"),
    "cancelled": LineError(
        code="batch_cancelled", message="the batch was cancelled before this line was answered"
    ),
}
_T = TypeVar("_T")


class Failed(Exception):
    """The batch cannot go on; `errors` say why."""

    def __init__(self, *errors: BatchError) -> None:
        super().__init__(errors[0].code)
        self.errors = list(errors)


class Shared:
    """What the batches of one server have in common.

    pace     how many lines run at once, over all batches
    reading  held while a whole file is checked
    """

    def __init__(self, front: Front, storage: Storage) -> None:
        config = storage.config
        self.front = front
        self.storage = storage
        self.pace = Pace(min(config.batch_concurrency, max(1, config.max_queued_requests // 2)))
        self.reading = asyncio.Semaphore(1)
        self._open = asyncio.Semaphore(MAX_OPEN)
        self._open_of_tenant: dict[str, asyncio.Semaphore] = {}

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
            self.front.log.note("batches_go_on")
        else:
            because = error.strerror if isinstance(error, OSError) else str(error)
            self.front.log.warn("batches_wait_for_disk", because=because)

    def turn(self, tenant_id: str) -> tuple[asyncio.Semaphore, asyncio.Semaphore]:
        """What a batch holds while its lines run; the tenant's own first."""
        own = self._open_of_tenant.setdefault(tenant_id, asyncio.Semaphore(MAX_OPEN_OF_TENANT))
        return own, self._open


class BatchLife:
    """One batch from where it is to its end. Raises Failed."""

    def __init__(self, shared: Shared, row: StoredBatch) -> None:
        self._shared = shared
        self._front = shared.front
        self._storage = shared.storage
        self._row = row
        self._cancelled = asyncio.Event()
        if row.batch.status == "cancelling":
            self._cancelled.set()
        self._deadline_s = time.monotonic() + max(0.0, row.batch.expires_at - time.time())
        self._accounted = Sums()

    @property
    def input_file_id(self) -> str:
        return self._row.batch.input_file_id

    @property
    def status(self) -> str:
        """Where it is, a wish to cancel it included."""
        is_going = self._row.batch.status in ("validating", "in_progress")
        return "cancelling" if is_going and self._cancelled.is_set() else self._row.batch.status

    @property
    def left_s(self) -> float:
        """Until it expires; below 0 when it has."""
        return self._deadline_s - time.monotonic()

    @property
    def _id(self) -> str:
        return self._row.batch.id

    def cancel(self) -> None:
        """The store says that it is to be cancelled."""
        self._cancelled.set()

    async def run(self) -> None:
        """Each step starts from what the store says, so that any of them may be the first."""
        async with self._shared.reading:
            index = await self._shared.persist(self._read)
        if self._row.batch.status in ("validating", "in_progress"):
            await self._change(partial(_begun, index=index))
        job = await self._shared.persist(lambda: self._job(index))
        try:
            if self._row.batch.status == "in_progress":
                await self._run_lines(job)
            await self._account(job)
            await self._finish(job)
        finally:
            job.close()
        await self._shared.persist(lambda: self._storage.shelf.ledger(self._id).unlink(missing_ok=True))

    async def _change(
        self,
        how: Callable[[StoredBatch], StoredBatch],
        tally: Tally | None = None,
        files: Sequence[StoredFile] = (),
    ) -> None:
        store = self._storage.store
        row = await self._shared.persist(lambda: store.settle(self._id, how, tally=tally, files=files))
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
                    urls=BATCHED,
                    check_model=self._front.check_model if is_new else lambda _name: None,
                )
        except FileNotFoundError:
            raise Failed(_problem("input_missing", "the input file is gone")) from None
        except Invalid as invalid:
            raise Failed(*invalid.errors) from None
        expected = row.digest or (stored.digest if stored is not None else None)
        if index.digest.hex() != expected:
            raise Failed(_problem("input_damaged", "the input file is not what was uploaded"))
        return index

    def _job(self, index: Index) -> Job:
        row = self._row
        header = Header(self._id, index.digest.hex())
        try:
            ledger = Ledger(self._storage.shelf.ledger(self._id), header, len(index))
        except OctavoError as error:
            raise Failed(_problem("results_damaged", "the results written so far cannot be read")) from error
        if ledger.num_damaged:
            self._front.log.warn("ledger_damaged", batch=self._id, lines=ledger.num_damaged)
        try:
            input_file = self._storage.shelf.open(row.batch.input_file_id)
            known = self._front.keyring.tenants.get(row.tenant_id)
            tenant = known or Tenant(tenant_id=row.tenant_id, namespace=row.namespace)
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
        own, shared = self._shared.turn(self._row.tenant_id)
        async with own, shared:
            await self._wait_for_model()
            run = LineRun(
                self._front,
                job,
                self._shared.pace,
                on_written=lambda _: None,
                on_disk=self._shared.note_disk,
            )
            accounting = asyncio.create_task(self._account_along(job))
            try:
                await run.run()
            except OctavoError as error:
                raise Failed(_problem(error.code, str(error))) from error
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
        files, counts = await self._shared.persist(lambda: self._write_files(job))
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
                raise Failed(_problem("results_damaged", str(error))) from error
            files = []
            for draft, file_id, kind in ((output, row.output_id, "output"), (errors, row.error_id, "error")):
                if draft.num_bytes:
                    draft.commit()
                    files.append(_result_file(row, file_id, kind, draft))
        return files, RequestCounts(total=len(job.index), completed=counts[0], failed=counts[1])


def _result_file(row: StoredBatch, file_id: str, kind: str, draft: Draft) -> StoredFile:
    created_at = now()
    file = FileObject(
        id=file_id,
        bytes=draft.num_bytes,
        created_at=created_at,
        expires_at=None if row.output_expires_s is None else created_at + row.output_expires_s,
        filename=f"{row.batch.id}_{kind}.jsonl",
        purpose=BATCH_OUTPUT,
    )
    return StoredFile(tenant_id=row.tenant_id, file=file, digest=draft.digest)


def _problem(code: str, message: str) -> BatchError:
    return BatchError(code=code, message=message)


def now() -> int:
    """Seconds since 1970, as the wire has them."""
    return int(time.time())


def _begun(row: StoredBatch, *, index: Index) -> StoredBatch:
    """The input has been read; unless somebody has cancelled the batch meanwhile, it runs."""
    batch = row.batch
    if batch.status == "validating":
        batch = msgspec.structs.replace(batch, status="in_progress", in_progress_at=now())
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
    batch = msgspec.structs.replace(row.batch, status="finalizing", finalizing_at=now())
    return msgspec.structs.replace(row, batch=batch, outcome=outcome)


def _ended(row: StoredBatch, *, outcome: str, counts: RequestCounts, written: set[str]) -> StoredBatch:
    times = {f"{outcome}_at": now()}
    batch = msgspec.structs.replace(
        row.batch,
        status=outcome,
        request_counts=counts,
        output_file_id=row.output_id if row.output_id in written else None,
        error_file_id=row.error_id if row.error_id in written else None,
        **times,
    )
    return msgspec.structs.replace(row, batch=batch)
