"""What the files and batches of one server share: the store, the folder, and the thread that works on them."""

from __future__ import annotations

import asyncio
import errno
import re
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from octavo.api.faults import HttpError
from octavo.api.files import FileObject
from octavo.config import ServerConfig
from octavo.errors import RequestError
from octavo.server.documents import Documents, Row
from octavo.server.shelf import Shelf
from octavo.server.store import Store, StoredFile, open_sqlite, open_store
from octavo.server.tenants import Tenant

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of a list is asked for: up to `limit` rows behind the one named `after`."""

    limit: int
    after: str | None
    is_newest_first: bool

    @classmethod
    def of(cls, asked: Mapping[str, str], *, default: int, longest: int) -> Page:
        """From the query of a URL. Raises RequestError."""
        limit, order = asked.get("limit") or str(default), asked.get("order") or "desc"
        if not re.fullmatch(r"\d{1,9}", limit, re.ASCII) or not 1 <= int(limit) <= longest:
            raise RequestError(
                f"limit must be a whole number from 1 to {longest}, got {limit[:32]!r}", param="limit"
            )
        if order not in ("asc", "desc"):
            raise RequestError(f"order must be asc or desc, got {order[:32]!r}", param="order")
        return cls(limit=int(limit), after=asked.get("after") or None, is_newest_first=order == "desc")


class Storage:
    """Open from the start of a server to its end. Raises ConfigError when it cannot be used.

    uploading  bytes of uploads under way, by tenant; they count against its quota
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.shelf = Shelf(Path(config.data_dir).expanduser())
        try:
            self.store = self._open_store()
        except BaseException:
            self.shelf.close()
            raise
        self.uploading: dict[str, int] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-store")

    def _open_store(self) -> Store:
        if self.config.store_url is not None:
            return open_store(self.config.store_url)
        return open_sqlite(self.shelf.folder / "octavo.db")

    async def off_loop(self, work: Callable[[], _T]) -> _T:
        """Run what blocks in the store's own thread, one piece after another."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def file(self, tenant: Tenant, file_id: str) -> StoredFile:
        """Raises HttpError when the tenant has no such file, or had one that has expired."""
        row = await self.off_loop(lambda: self.store.files.get(file_id, tenant.tenant_id))
        if row is None or is_expired(row.file):
            raise HttpError("not_found", f"there is no file {file_id[:64]!r}", param="file_id")
        return row

    async def page(
        self, documents: Documents[Row], tenant: Tenant, *, kind: str | None, asked: Page
    ) -> tuple[list[Row], bool]:
        """A page of a tenant's rows, and whether there are more. Raises HttpError for an `after` that is not there."""
        page = await self.off_loop(
            lambda: documents.page(
                tenant.tenant_id,
                kind=kind,
                after=asked.after,
                limit=asked.limit,
                is_newest_first=asked.is_newest_first,
            )
        )
        if page is None:
            raise HttpError("not_found", "there is nothing of the id given as `after`", param="after")
        return page

    def sweep(self) -> int:
        """Remove files whose time is over, and what nothing refers to; for the store's thread.

        Only before uploads and batches begin may files without a row be removed: they write first.
        """
        expired = self.store.files.expired(time.time())
        for file_id in expired:
            self.store.files.remove(file_id)
            self.shelf.remove(file_id)
        for response_id in self.store.responses.expired(time.time()):
            self.store.responses.remove(response_id)
        return len(expired)

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self.store.close()
        self.shelf.close()


def is_expired(file: FileObject) -> bool:
    return file.expires_at is not None and file.expires_at <= time.time()


def new_id(prefix: str, separator: str = "-") -> str:
    """128 random bits: nobody finds another's by trying."""
    return f"{prefix}{separator}{secrets.token_hex(16)}"


def disk_error(error: OSError) -> HttpError:
    """A disk that took no more, for whoever sent the bytes."""
    if error.errno in NO_ROOM:
        return HttpError("storage_full", "the server's disk is full; delete files, or try again later")
    return HttpError("storage_unavailable", f"the server's disk failed: {error.strerror}")
