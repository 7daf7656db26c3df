"""What must outlive the server: files, batches and usage, in SQLite or PostgreSQL.

Methods block: callers on an event loop go through `Storage.off_loop`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from octavo.api.batches import Batch
from octavo.api.files import FileObject
from octavo.errors import ConfigError
from octavo.server.documents import Documents, begin, reason, table_of

VERSION = 2
LOCK_KEY = 0x6F637461766F
"""Names the advisory lock that one server holds on a PostgreSQL store."""

LOCK_WAIT_S = 3.0

_META = sa.MetaData()


_FILES = table_of("files", _META)
_BATCHES = table_of("batches", _META)
_RESPONSES = table_of("responses", _META)
_SCHEMA = sa.Table("schema_version", _META, sa.Column("version", sa.Integer, nullable=False))
_USAGE = sa.Table(
    "usage",
    _META,
    sa.Column("tenant_id", sa.String(256), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("is_batch", sa.Boolean, primary_key=True),
    *(
        sa.Column(name, sa.BigInteger, nullable=False)
        for name in ("requests", "input_tokens", "output_tokens")
    ),
    sa.Column("weighted_tokens", sa.Float, nullable=False),
)


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file and what its contents must be: SHA-256 in hexadecimal."""

    tenant_id: str
    file: FileObject
    digest: str


class StoredBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch and what the runner needs to go on with it.

    namespace         of the tenant's cached prefixes
    outcome           how it will end once its files are written: completed, expired or cancelled
    output_id, error_id   names of these files, chosen at the start so that writing them twice makes one
    output_expires_s  how long they are kept
    accounted_bytes   how much of its ledger usage and counts include
    digest            of the input, in hexadecimal, once it has been read
    """

    tenant_id: str
    namespace: bytes
    batch: Batch
    output_id: str
    error_id: str
    outcome: str = "completed"
    output_expires_s: int | None = None
    accounted_bytes: int = 0
    digest: str | None = None


class StoredResponse(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of /v1/responses that later ones may go on from.

    body         as it was sent
    items        what was asked, each with an id
    previous_id  the answer it went on from
    """

    tenant_id: str
    response_id: str
    created_at: int
    expires_at: int
    body: msgspec.Raw
    items: list[msgspec.Raw]
    previous_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Usage to add: of one tenant on one day.

    weight  of a token in `weighted_tokens`, 0.5 for batches
    """

    day: str
    is_batch: bool
    requests: int
    input_tokens: int
    output_tokens: int
    weight: float


class Store:
    """One open database. Raises ConfigError from `__init__` when it cannot be used, StoreError later."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._lock: sa.Connection | None = None
        self.files: Documents[StoredFile] = Documents(
            engine,
            _FILES,
            StoredFile,
            lambda row: (
                row.file.id, row.tenant_id, row.file.purpose, row.file.bytes, row.file.expires_at
            ),
        )  # fmt: skip
        self.batches: Documents[StoredBatch] = Documents(
            engine,
            _BATCHES,
            StoredBatch,
            lambda row: (row.batch.id, row.tenant_id, row.batch.status, 0, None),
        )
        self.responses: Documents[StoredResponse] = Documents(
            engine,
            _RESPONSES,
            StoredResponse,
            lambda row: (row.response_id, row.tenant_id, "response", len(row.body), row.expires_at),
        )
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        try:
            if self._engine.dialect.name == "postgresql":
                self._lock = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                _take_lock(self._lock)
            else:
                with self._engine.connect() as connection:
                    verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
                if verdict != "ok":
                    raise ConfigError(f"the database {self._engine.url.database} is damaged: {verdict}")
            _migrate(self._engine)
        except DBAPIError as error:
            raise ConfigError(f"the store cannot be opened: {reason(error)}") from error

    def settle(
        self,
        batch_id: str,
        how: Callable[[StoredBatch], StoredBatch],
        *,
        tally: Tally | None = None,
        files: Sequence[StoredFile] = (),
    ) -> StoredBatch | None:
        """Change a batch, count usage and add files in one transaction; the new row, None when there is none.

        tally  is counted when `how` moves `accounted_bytes`, so that trying again counts it once
        """
        with begin(self._engine) as connection:
            changed = self.batches.change_in(connection, batch_id, how)
            if changed is None:
                return None
            before, after = changed
            self.files.add_in(connection, *files)
            if tally is not None and after.accounted_bytes != before.accounted_bytes:
                _add_usage(connection, after.tenant_id, tally)
            return after

    def add_usage(self, tallies: Mapping[str, Tally]) -> None:
        """Count usage in, by tenant."""
        with begin(self._engine) as connection:
            for tenant_id, tally in tallies.items():
                _add_usage(connection, tenant_id, tally)

    def weighted_tokens(self, tenant_ids: Sequence[str], month: str) -> dict[str, float]:
        """What tenants have used in a month ("2026-11"); those that have used nothing are left out."""
        columns = _USAGE.c
        query = (
            sa.select(columns.tenant_id, sa.func.sum(columns.weighted_tokens))
            .where(columns.tenant_id.in_(tenant_ids), columns.day.startswith(month))
            .group_by(columns.tenant_id)
        )
        with begin(self._engine) as connection:
            return {tenant_id: float(total) for tenant_id, total in connection.execute(query)}

    def usage(self, tenant_id: str) -> list[dict[str, Any]]:
        """A tenant's rows, by day."""
        query = sa.select(_USAGE).where(_USAGE.c.tenant_id == tenant_id).order_by(_USAGE.c.day)
        with begin(self._engine) as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
        self._engine.dispose()


def open_store(url: str) -> Store:
    """The database behind `sqlite:///PATH` or `postgresql://...`. Raises ConfigError, which never shows the URL."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise ConfigError("store_url is no URL; write postgresql://USER:PASSWORD@HOST/DATABASE") from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ConfigError(f"store_url begins with {parsed.drivername!r}; postgresql:// is what can be used")
    try:
        engine = sa.create_engine(parsed, pool_pre_ping=parsed.drivername != "sqlite")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"PostgreSQL needs the module {error.name}; install it with `pip install 'octavo[postgres]'`"
        ) from None
    if parsed.drivername == "sqlite":
        event.listen(engine, "connect", _sqlite_connect)
        event.listen(engine, "begin", _sqlite_begin)
    return Store(engine)


def open_sqlite(path: Path) -> Store:
    return open_store(sa.URL.create("sqlite", database=str(path)).render_as_string())


def _take_lock(connection: sa.Connection) -> None:
    """Held as long as the connection lives. One that has died a moment ago may still seem to hold it."""
    deadline_s = time.monotonic() + LOCK_WAIT_S
    while not connection.execute(sa.select(sa.func.pg_try_advisory_lock(LOCK_KEY))).scalar():
        if time.monotonic() > deadline_s:
            raise ConfigError("another server works with this store_url; give each its own database")
        time.sleep(0.1)


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say, see below
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: sa.Connection) -> None:
    """Take the write lock at once, so that reading and then writing cannot meet somebody else's write."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _migrate(engine: sa.Engine) -> None:
    """Bring the schema to VERSION, step by step, in one transaction. Raises ConfigError for a newer one."""
    with engine.begin() as connection:
        has_schema = sa.inspect(connection).has_table(_SCHEMA.name)
        found = connection.execute(sa.select(_SCHEMA.c.version)).scalar() if has_schema else None
        version = found or 0
        if version > VERSION:
            raise ConfigError(
                f"the store has schema {version}, this is Octavo with schema {VERSION}; use a newer Octavo"
            )
        for step in MIGRATIONS[version:]:
            step(connection)
        if version != VERSION:
            connection.execute(_SCHEMA.delete())
            connection.execute(_SCHEMA.insert().values(version=VERSION))


def _create(connection: sa.Connection) -> None:
    _META.create_all(connection)


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (_create, _create)
"""Step `i` leads from schema `i` to `i + 1`; the second adds a table."""


def _add_usage(connection: sa.Connection, tenant_id: str, tally: Tally) -> None:
    columns = _USAGE.c
    key = {"tenant_id": tenant_id, "day": tally.day, "is_batch": tally.is_batch}
    is_row = sa.and_(*(columns[name] == value for name, value in key.items()))
    amounts = {
        "requests": tally.requests,
        "input_tokens": tally.input_tokens,
        "output_tokens": tally.output_tokens,
        "weighted_tokens": (tally.input_tokens + tally.output_tokens) * tally.weight,
    }
    added = {name: columns[name] + amount for name, amount in amounts.items()}
    if connection.execute(_USAGE.update().where(is_row).values(added)).rowcount == 0:
        connection.execute(_USAGE.insert().values(key | amounts))
