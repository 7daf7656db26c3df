"""All batches of a server: new ones, those an earlier server left, and who asks for them."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Sequence

import msgspec

from octavo.api.batches import OPEN, BatchError, BatchErrors, BatchRequest
from octavo.api.batches import Batch as WireBatch
from octavo.api.faults import HttpError
from octavo.obs.log import Log
from octavo.server.batch_life import BatchLife, Failed, Shared, now
from octavo.server.documents import Damaged, StoreError
from octavo.server.endpoints import BATCHED
from octavo.server.front import Front
from octavo.server.storage import Storage, new_id
from octavo.server.store import StoredBatch
from octavo.server.tenants import Tenant

LOOK_S = 0.1
SWEEP_S = 60.0


class Batches:
    """Starts and stops the lives of batches; see `batch_life`."""

    def __init__(self, front: Front, storage: Storage) -> None:
        self._front = front
        self._storage = storage
        self._log: Log = front.log
        self._shared = Shared(front, storage)
        self._following: dict[str, asyncio.Task[None]] = {}
        self._lives: dict[str, BatchLife] = {}
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

    @property
    def lives(self) -> Sequence[BatchLife]:
        """Batches that have not ended, of all tenants."""
        return list(self._lives.values())

    def uses(self, file_id: str) -> bool:
        """Whether a batch that has not ended reads this file."""
        return any(life.input_file_id == file_id for life in self._lives.values())

    async def create(self, tenant: Tenant, asked: BatchRequest) -> WireBatch:
        """Raises RequestError and HttpError; what is wrong inside the file shows later, in the batch."""
        window_s = asked.window_s()
        asked.check()
        if asked.endpoint not in BATCHED:
            known = ", ".join(sorted(BATCHED))
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
            batch = msgspec.structs.replace(batch, status="cancelling", cancelling_at=now())
            return msgspec.structs.replace(row, batch=batch, outcome="cancelled")

        batch = await self.get(tenant, batch_id)
        if batch.status in OPEN:
            row = await self._storage.off_loop(lambda: self._storage.store.batches.change(batch_id, mark))
            assert row is not None
            batch = row.batch
        if batch.status not in ("cancelling", "cancelled"):
            text = f"the batch is {batch.status}; only one that is validating or in progress can be cancelled"
            raise HttpError("invalid_value", text)
        if batch_id in self._lives:
            self._lives[batch_id].cancel()
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
        life = self._lives[batch_id] = BatchLife(self._shared, row)
        task = self._following[batch_id] = asyncio.create_task(self._whole_life(batch_id, life))

        def forget(_: object) -> None:
            del self._following[batch_id], self._lives[batch_id]

        task.add_done_callback(forget)

    async def _whole_life(self, batch_id: str, life: BatchLife) -> None:
        try:
            await life.run()
        except Failed as failed:
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
                row.batch, status="failed", failed_at=now(), errors=BatchErrors(data=errors)
            )
            return msgspec.structs.replace(row, batch=batch)

        await self._shared.persist(lambda: self._storage.store.batches.change(batch_id, fail))
        await self._shared.persist(lambda: self._storage.shelf.ledger(batch_id).unlink(missing_ok=True))

    async def _look(self) -> None:
        seen: object = None
        while True:
            await asyncio.sleep(LOOK_S)
            stats = self._front.fleet.stats
            if stats is not None and stats is not seen:
                seen = stats
                online = max(0, len(self._front.running) - self._shared.pace.running)
                self._shared.pace.look(waiting=stats.num_waiting, online=online)

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


def _new_row(tenant: Tenant, asked: BatchRequest, window_s: float) -> StoredBatch:
    created_s = time.time()
    batch = WireBatch(
        id=new_id("batch", "_"),
        endpoint=asked.endpoint,
        input_file_id=asked.input_file_id,
        completion_window=asked.completion_window,
        created_at=int(created_s),
        expires_at=int(created_s + window_s),
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
