"""/v1/files: upload, list, look at, read, delete."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import BinaryIO

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from octavo.api.faults import HttpError
from octavo.api.files import BATCH_OUTPUT, PURPOSES, ExpiresAfter, FileDeleted, FileList, FileObject
from octavo.errors import RequestError
from octavo.server.documents import StoreError
from octavo.server.gate import json_response
from octavo.server.shelf import Draft
from octavo.server.storage import Page, Storage, disk_error, is_expired, new_id
from octavo.server.store import StoredFile
from octavo.server.tenants import Tenant
from octavo.server.upload import Form, expires_after, receive

READ_BYTES = 1 << 20
MAX_NAME_CHARS = 255
LONGEST_LIST = 10_000


async def upload(request: Request) -> Response:
    """POST /v1/files."""
    storage: Storage = request.state.front.storage_or_refuse()
    tenant: Tenant = request.state.caller.tenant
    file_id = new_id("file")
    used = await storage.off_loop(lambda: storage.store.files.num_bytes(tenant.tenant_id))
    try:
        with (
            _Room(storage, tenant, used) as room,
            Draft(storage.shelf.incoming / file_id, storage.shelf.path(file_id)) as draft,
        ):
            form = await receive(request, draft, room.take)
            row = StoredFile(
                tenant_id=tenant.tenant_id, file=_described(form, file_id, draft), digest=draft.digest
            )

            def keep() -> None:
                draft.commit()
                try:
                    storage.store.files.add(row)
                except StoreError:
                    storage.shelf.remove(file_id)
                    raise

            await storage.off_loop(keep)
    except OSError as error:
        raise disk_error(error) from error
    return json_response(row.file)


class _Room:
    """What a tenant may still store; an upload counts from its first byte."""

    def __init__(self, storage: Storage, tenant: Tenant, used: int) -> None:
        self._uploading = storage.uploading
        self._max_bytes = storage.config.max_file_bytes
        self._quota = storage.config.file_quota_bytes
        self._tenant_id = tenant.tenant_id
        self._used = used
        self._taken = 0

    def take(self, num_bytes: int) -> None:
        """The file has grown to so many bytes. Raises HttpError when that is too much."""
        if num_bytes > self._max_bytes:
            text = f"the file has more than {self._max_bytes} bytes (max_file_bytes); split it"
            raise HttpError("request_too_large", text, param="file")
        self._note(num_bytes)
        if self._used + self._uploading[self._tenant_id] > self._quota:
            text = (
                f"your files would take more than {self._quota} bytes (file_quota_bytes); delete some first"
            )
            raise HttpError("storage_quota_exceeded", text, param="file")

    def _note(self, num_bytes: int) -> None:
        now = self._uploading.get(self._tenant_id, 0) + num_bytes - self._taken
        self._taken = num_bytes
        self._uploading[self._tenant_id] = now

    def __enter__(self) -> _Room:
        self._note(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._note(0)
        if not self._uploading[self._tenant_id]:
            del self._uploading[self._tenant_id]


def _described(form: Form, file_id: str, draft: Draft) -> FileObject:
    """Raises RequestError for a purpose or an expiry that is none."""
    purpose = form.fields.get("purpose")
    if purpose not in PURPOSES:
        raise RequestError(f"purpose must be one of {', '.join(PURPOSES)}, got {purpose!r}", param="purpose")
    created_at, expires_at = int(time.time()), None
    if (given := expires_after(form.fields)) is not None:
        anchor, seconds = given
        if not re.fullmatch(r"\d{1,9}", seconds, re.ASCII):
            raise RequestError(
                f"expires_after.seconds must be a whole number, got {seconds[:32]!r}",
                param="expires_after.seconds",
            )
        asked = ExpiresAfter(anchor=anchor, seconds=int(seconds))
        asked.check("expires_after")
        expires_at = created_at + asked.seconds
    return FileObject(
        id=file_id,
        bytes=draft.num_bytes,
        created_at=created_at,
        expires_at=expires_at,
        filename=(form.filename or "unnamed")[:MAX_NAME_CHARS],
        purpose=purpose,
    )


async def list_files(request: Request) -> Response:
    """GET /v1/files."""
    storage: Storage = request.state.front.storage_or_refuse()
    asked = request.query_params
    rows, has_more = await storage.page(
        storage.store.files,
        request.state.caller.tenant,
        kind=asked.get("purpose") or None,
        asked=Page.of(asked, default=LONGEST_LIST, longest=LONGEST_LIST),
    )
    data = [row.file for row in rows if not is_expired(row.file)]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return json_response(FileList(data=data, first_id=first, last_id=last, has_more=has_more))


async def one_file(request: Request) -> Response:
    """GET /v1/files/{id}."""
    storage: Storage = request.state.front.storage_or_refuse()
    row = await storage.file(request.state.caller.tenant, request.path_params["file_id"])
    return json_response(row.file)


async def delete(request: Request) -> Response:
    """DELETE /v1/files/{id}. The input of a batch that has not ended stays."""
    storage: Storage = request.state.front.storage_or_refuse()
    row = await storage.file(request.state.caller.tenant, request.path_params["file_id"])
    file_id = row.file.id
    if request.state.front.batches.uses(file_id):
        raise HttpError("file_in_use", "a batch still reads this file; cancel it first, or wait for its end")

    def remove() -> None:
        storage.store.files.remove(file_id)
        storage.shelf.remove(file_id)

    await storage.off_loop(remove)
    return json_response(FileDeleted(id=file_id))


async def content(request: Request) -> Response:
    """GET /v1/files/{id}/content. An answer that does not match its checksum is never complete."""
    storage: Storage = request.state.front.storage_or_refuse()
    row = await storage.file(request.state.caller.tenant, request.path_params["file_id"])
    try:
        file = await asyncio.to_thread(storage.shelf.open, row.file.id)
    except OSError:
        raise HttpError("storage_damaged", "the contents of this file are gone from the disk") from None
    headers = {
        "content-length": str(row.file.bytes),
        "content-disposition": "attachment",
        "x-content-type-options": "nosniff",
    }
    kind = "application/jsonl" if row.file.purpose in ("batch", BATCH_OUTPUT) else "application/octet-stream"
    return StreamingResponse(_contents(file, row), headers=headers, media_type=kind)


async def _contents(file: BinaryIO, row: StoredFile) -> AsyncIterator[bytes]:
    """The bytes, the last of them only when all are as they were written. Raises HttpError otherwise."""
    held = b""
    with contextlib.closing(file):
        parts = _parts(file)
        digest = hashlib.sha256()
        while part := await asyncio.to_thread(next, parts, b""):
            digest.update(part)
            if held:
                yield held
            held = part
    if digest.hexdigest() != row.digest:
        raise HttpError("storage_damaged", "the contents of this file are not what was stored")
    if held:
        yield held


def _parts(file: BinaryIO) -> Iterator[bytes]:
    while part := file.read(READ_BYTES):
        yield part
