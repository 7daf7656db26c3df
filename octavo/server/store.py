"""What must outlive the server: files, batches and usage, in SQLite or PostgreSQL.

A row is a document with a checksum and, beside it, the few columns that queries need. Every row belongs to a tenant,
and every question names one; a row of somebody else's is not there. Each method is one transaction that has reached
the disk when it returns. Methods block: callers on an event loop go through `Storage.off_loop`.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from octavo.api.batches import Batch
from octavo.api.files import FileObject
from octavo.errors import ConfigError, OctavoError

VERSION = 1
LOCK_KEY = 0x6F637461766F
"""Names the advisory lock that one server holds on a PostgreSQL store."""

LOCK_WAIT_S = 3.0

_META = sa.MetaData()


def _documents(name: str) -> sa.Table:
    return sa.Table(
        name,
        _META,
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("tenant_id", sa.String(256), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("document", sa.LargeBinary, nullable=False),
        sa.Column("crc", sa.BigInteger, nullable=False),
        sa.Index(f"{name}_of_tenant", "tenant_id", "seq"),
        sa.Index(f"{name}_of_kind", "kind", "seq"),
    )


_FILES = _documents("files")
_BATCHES = _documents("batches")
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


class StoreError(OctavoError):
    """The database cannot be used now: it is full, away or damaged."""

    code = "storage_unavailable"


class Damaged(StoreError):
    """A row does not match its checksum."""

    code = "storage_damaged"


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


_Row = TypeVar("_Row", StoredFile, StoredBatch)


class Documents(Generic[_Row]):
    """Files, or batches.

    key   gives a row's id, tenant, kind (what lists can be narrowed to), bytes and expiry
    """

    def __init__(
        self,
        engine: sa.Engine,
        table: sa.Table,
        kind: type[_Row],
        key: Callable[[_Row], tuple[str, str, str, int, int | None]],
    ) -> None:
        self._engine = engine
        self._table = table
        self._decoder: msgspec.json.Decoder[_Row] = msgspec.json.Decoder(kind)
        self._key: Callable[[_Row], tuple[str, str, str, int, int | None]] = key

    def add(self, *rows: _Row) -> None:
        """All or none; those whose id is there are left as they are."""
        with _begin(self._engine) as connection:
            self.add_in(connection, *rows)

    def add_in(self, connection: sa.Connection, *rows: _Row) -> None:
        for row in rows:
            values = self._values(row)
            known = sa.select(self._table.c.seq).where(self._table.c.id == values["id"])
            if connection.execute(known).first() is None:
                connection.execute(self._table.insert().values(values))

    def get(self, row_id: str, tenant_id: str) -> _Row | None:
        """None also for a row of another tenant's. Raises Damaged."""
        columns = self._table.c
        query = sa.select(self._table).where(columns.id == row_id, columns.tenant_id == tenant_id)
        with _begin(self._engine) as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else self._decode(row)

    def change(self, row_id: str, how: Callable[[_Row], _Row]) -> _Row | None:
        """Read, change and write back in one transaction; the new row, None when there is none. Raises Damaged."""
        with _begin(self._engine) as connection:
            changed = self.change_in(connection, row_id, how)
        return None if changed is None else changed[1]

    def change_in(
        self, connection: sa.Connection, row_id: str, how: Callable[[_Row], _Row]
    ) -> tuple[_Row, _Row] | None:
        """The row before and after."""
        row_is = self._table.c.id == row_id
        found = connection.execute(sa.select(self._table).where(row_is).with_for_update()).mappings().first()
        if found is None:
            return None
        before = self._decode(found)
        after = how(before)
        if after != before:
            connection.execute(self._table.update().where(row_is).values(self._values(after)))
        return before, after

    def remove(self, row_id: str) -> None:
        with _begin(self._engine) as connection:
            connection.execute(self._table.delete().where(self._table.c.id == row_id))

    def page(
        self, tenant_id: str, *, kind: str | None, after: str | None, limit: int, is_newest_first: bool
    ) -> tuple[list[_Row], bool] | None:
        """Up to `limit` rows behind row `after`, and whether there are more; None when there is no `after`."""
        columns = self._table.c
        mine = columns.tenant_id == tenant_id
        query = sa.select(self._table).where(mine)
        if kind is not None:
            query = query.where(columns.kind == kind)
        with _begin(self._engine) as connection:
            if after is not None:
                place = sa.select(columns.seq).where(mine, columns.id == after)
                seq = connection.execute(place).scalar()
                if seq is None:
                    return None
                query = query.where(columns.seq < seq if is_newest_first else columns.seq > seq)
            order = columns.seq.desc() if is_newest_first else columns.seq.asc()
            rows = connection.execute(query.order_by(order).limit(limit + 1)).mappings().all()
        return [self._decode(row) for row in rows[:limit]], len(rows) > limit

    def of_kinds(self, kinds: Sequence[str]) -> tuple[list[_Row], list[str]]:
        """Rows of all tenants, oldest first, and the ids of those that are damaged."""
        query = sa.select(self._table).where(self._table.c.kind.in_(kinds)).order_by(self._table.c.seq)
        good: list[_Row] = []
        damaged: list[str] = []
        with _begin(self._engine) as connection:
            for row in connection.execute(query).mappings():
                try:
                    good.append(self._decode(row))
                except Damaged:
                    damaged.append(row["id"])
        return good, damaged

    def expired(self, now: float) -> list[str]:
        query = sa.select(self._table.c.id).where(self._table.c.expires_at <= int(now))
        with _begin(self._engine) as connection:
            return list(connection.execute(query).scalars())

    def ids(self) -> set[str]:
        with _begin(self._engine) as connection:
            return set(connection.execute(sa.select(self._table.c.id)).scalars())

    def num_bytes(self, tenant_id: str) -> int:
        """What a tenant's rows take."""
        total = sa.func.coalesce(sa.func.sum(self._table.c.num_bytes), 0)
        query = sa.select(total).where(self._table.c.tenant_id == tenant_id)
        with _begin(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def count(self, tenant_id: str, kinds: Sequence[str]) -> int:
        query = sa.select(sa.func.count()).where(
            self._table.c.tenant_id == tenant_id, self._table.c.kind.in_(kinds)
        )
        with _begin(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def _values(self, row: _Row) -> dict[str, Any]:
        row_id, tenant_id, kind, num_bytes, expires_at = self._key(row)
        document = msgspec.json.encode(row)
        values = {"id": row_id, "tenant_id": tenant_id, "kind": kind, "num_bytes": num_bytes}
        return values | {"expires_at": expires_at, "document": document, "crc": _crc(row_id, kind, document)}

    def _decode(self, row: Any) -> _Row:
        document = row["document"]
        if not isinstance(document, bytes) or _crc(row["id"], row["kind"], document) != row["crc"]:
            raise Damaged(f"the stored row {row['id']} does not match its checksum")
        return self._decoder.decode(document)


def _crc(row_id: str, kind: str, document: bytes) -> int:
    return zlib.crc32(document, zlib.crc32(f"{row_id} {kind}".encode()))


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
            raise ConfigError(f"the store cannot be opened: {_reason(error)}") from error

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
        with _begin(self._engine) as connection:
            changed = self.batches.change_in(connection, batch_id, how)
            if changed is None:
                return None
            before, after = changed
            self.files.add_in(connection, *files)
            if tally is not None and after.accounted_bytes != before.accounted_bytes:
                _add_usage(connection, after.tenant_id, tally)
            return after

    def usage(self, tenant_id: str) -> list[dict[str, Any]]:
        """A tenant's rows, by day."""
        query = sa.select(_USAGE).where(_USAGE.c.tenant_id == tenant_id).order_by(_USAGE.c.day)
        with _begin(self._engine) as connection:
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


@contextlib.contextmanager
def _begin(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction whose database errors come out as StoreError."""
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        raise StoreError(f"the store cannot be used: {_reason(error)}") from error


def _reason(error: DBAPIError) -> str:
    """The driver's words, without the statement and its values."""
    return str(error.orig).splitlines()[0] if error.orig is not None else type(error).__name__


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


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (_create,)
"""Step `i` leads from schema `i` to `i + 1`."""


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
