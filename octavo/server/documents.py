"""Rows that are documents: each with a checksum and, beside it, the few columns that queries need.

Every row belongs to a tenant, and every question names one; a row of somebody else's is not there. Each method is one
transaction that has reached the disk when it returns.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from octavo.errors import OctavoError


class StoreError(OctavoError):
    """The database cannot be used now: it is full, away or damaged."""

    code = "storage_unavailable"


class Damaged(StoreError):
    """A row does not match its checksum."""

    code = "storage_damaged"


def table_of(name: str, meta: sa.MetaData) -> sa.Table:
    """One table of documents."""
    return sa.Table(
        name,
        meta,
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


Row = TypeVar("Row", bound=msgspec.Struct)


class Documents(Generic[Row]):
    """Files, or batches.

    key   gives a row's id, tenant, kind (what lists can be narrowed to), bytes and expiry
    """

    def __init__(
        self,
        engine: sa.Engine,
        table: sa.Table,
        kind: type[Row],
        key: Callable[[Row], tuple[str, str, str, int, int | None]],
    ) -> None:
        self._engine = engine
        self._table = table
        self._decoder: msgspec.json.Decoder[Row] = msgspec.json.Decoder(kind)
        self._key: Callable[[Row], tuple[str, str, str, int, int | None]] = key

    def add(self, *rows: Row) -> None:
        """All or none; those whose id is there are left as they are."""
        with begin(self._engine) as connection:
            self.add_in(connection, *rows)

    def add_in(self, connection: sa.Connection, *rows: Row) -> None:
        for row in rows:
            values = self._values(row)
            known = sa.select(self._table.c.seq).where(self._table.c.id == values["id"])
            if connection.execute(known).first() is None:
                connection.execute(self._table.insert().values(values))

    def get(self, row_id: str, tenant_id: str) -> Row | None:
        """None also for a row of another tenant's. Raises Damaged."""
        columns = self._table.c
        query = sa.select(self._table).where(columns.id == row_id, columns.tenant_id == tenant_id)
        with begin(self._engine) as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else self._decode(row)

    def change(self, row_id: str, how: Callable[[Row], Row]) -> Row | None:
        """Read, change and write back in one transaction; the new row, None when there is none. Raises Damaged."""
        with begin(self._engine) as connection:
            changed = self.change_in(connection, row_id, how)
        return None if changed is None else changed[1]

    def change_in(
        self, connection: sa.Connection, row_id: str, how: Callable[[Row], Row]
    ) -> tuple[Row, Row] | None:
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
        with begin(self._engine) as connection:
            connection.execute(self._table.delete().where(self._table.c.id == row_id))

    def page(
        self, tenant_id: str, *, kind: str | None, after: str | None, limit: int, is_newest_first: bool
    ) -> tuple[list[Row], bool] | None:
        """Up to `limit` rows behind row `after`, and whether there are more; None when there is no `after`."""
        columns = self._table.c
        mine = columns.tenant_id == tenant_id
        query = sa.select(self._table).where(mine)
        if kind is not None:
            query = query.where(columns.kind == kind)
        with begin(self._engine) as connection:
            if after is not None:
                place = sa.select(columns.seq).where(mine, columns.id == after)
                seq = connection.execute(place).scalar()
                if seq is None:
                    return None
                query = query.where(columns.seq < seq if is_newest_first else columns.seq > seq)
            order = columns.seq.desc() if is_newest_first else columns.seq.asc()
            rows = connection.execute(query.order_by(order).limit(limit + 1)).mappings().all()
        return [self._decode(row) for row in rows[:limit]], len(rows) > limit

    def of_kinds(self, kinds: Sequence[str]) -> tuple[list[Row], list[str]]:
        """Rows of all tenants, oldest first, and the ids of those that are damaged."""
        query = sa.select(self._table).where(self._table.c.kind.in_(kinds)).order_by(self._table.c.seq)
        good: list[Row] = []
        damaged: list[str] = []
        with begin(self._engine) as connection:
            for row in connection.execute(query).mappings():
                try:
                    good.append(self._decode(row))
                except Damaged:
                    damaged.append(row["id"])
        return good, damaged

    def expired(self, now: float) -> list[str]:
        query = sa.select(self._table.c.id).where(self._table.c.expires_at <= int(now))
        with begin(self._engine) as connection:
            return list(connection.execute(query).scalars())

    def ids(self) -> set[str]:
        with begin(self._engine) as connection:
            return set(connection.execute(sa.select(self._table.c.id)).scalars())

    def num_bytes(self, tenant_id: str) -> int:
        """What a tenant's rows take."""
        total = sa.func.coalesce(sa.func.sum(self._table.c.num_bytes), 0)
        query = sa.select(total).where(self._table.c.tenant_id == tenant_id)
        with begin(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def count(self, tenant_id: str, kinds: Sequence[str]) -> int:
        query = sa.select(sa.func.count()).where(
            self._table.c.tenant_id == tenant_id, self._table.c.kind.in_(kinds)
        )
        with begin(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def _values(self, row: Row) -> dict[str, Any]:
        row_id, tenant_id, kind, num_bytes, expires_at = self._key(row)
        document = msgspec.json.encode(row)
        values = {"id": row_id, "tenant_id": tenant_id, "kind": kind, "num_bytes": num_bytes}
        return values | {"expires_at": expires_at, "document": document, "crc": _crc(row_id, kind, document)}

    def _decode(self, row: Any) -> Row:
        document = row["document"]
        if not isinstance(document, bytes) or _crc(row["id"], row["kind"], document) != row["crc"]:
            raise Damaged(f"the stored row {row['id']} does not match its checksum")
        return self._decoder.decode(document)


def _crc(row_id: str, kind: str, document: bytes) -> int:
    return zlib.crc32(document, zlib.crc32(f"{row_id} {kind}".encode()))


@contextlib.contextmanager
def begin(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction whose database errors come out as StoreError."""
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        raise StoreError(f"the store cannot be used: {reason(error)}") from error


def reason(error: DBAPIError) -> str:
    """The driver's words, without the statement and its values."""
    return str(error.orig).splitlines()[0] if error.orig is not None else type(error).__name__
