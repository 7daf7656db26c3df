"""The store on SQLite and on a real PostgreSQL: tenants apart, pages in order, once is once, damage is noticed."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from octavo.api.batches import Batch, RequestCounts
from octavo.api.files import FileObject
from octavo.errors import ConfigError
from octavo.server import store as stores
from octavo.server.documents import Damaged, StoreError
from octavo.server.store import Store, StoredBatch, StoredFile, Tally, open_store
from tests.server import postgres

counter = itertools.count()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with postgres.running() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'octavo.db'}"
    server = request.getfixturevalue("postgres_url")
    return postgres.new_database(server, f"test_{next(counter)}")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = open_store(url)
    yield made
    made.close()


def a_file(number: int, tenant: str = "a", **fields) -> StoredFile:
    described = {"id": f"file-{number}", "bytes": 10, "created_at": 1, "filename": "f", "purpose": "batch"}
    return StoredFile(tenant_id=tenant, file=FileObject(**{**described, **fields}), digest="00")


def a_batch(number: int, tenant: str = "a", **fields) -> StoredBatch:
    batch = Batch(
        id=f"batch_{number}", endpoint="/v1/completions", input_file_id="file-1", completion_window="24h",
        created_at=1, expires_at=2,
    )  # fmt: skip
    return StoredBatch(
        tenant_id=tenant,
        namespace=b"\x00\xff",
        batch=msgspec.structs.replace(batch, **fields),
        output_id="file-o",
        error_id="file-e",
    )


def test_a_row_belongs_to_its_tenant(store):
    store.files.add(a_file(1), a_file(2, "b"))
    assert store.files.get("file-1", "a") == a_file(1)
    assert store.files.get("file-1", "b") is None
    assert store.files.get("file-3", "a") is None
    assert store.files.page("b", kind=None, after="file-1", limit=5, is_newest_first=True) is None
    assert (store.files.num_bytes("a"), store.files.num_bytes("c")) == (10, 0)


def test_adding_an_id_again_changes_nothing(store):
    store.files.add(a_file(1))
    store.files.add(a_file(1, bytes=99), a_file(2))
    assert store.files.get("file-1", "a") == a_file(1)
    assert store.files.ids() == {"file-1", "file-2"}


@pytest.mark.parametrize("is_newest_first", [True, False])
def test_pages_hold_every_row_once_in_order(store, is_newest_first):
    for number in range(7):
        store.files.add(
            a_file(number, purpose="batch" if number % 2 else "user_data"), a_file(number + 100, "b")
        )
    seen, after, more = [], None, True
    while more:
        rows, more = store.files.page("a", kind=None, after=after, limit=3, is_newest_first=is_newest_first)
        seen += [row.file.id for row in rows]
        after = seen[-1]
    expected = [f"file-{number}" for number in range(7)]
    assert seen == (expected[::-1] if is_newest_first else expected)
    rows, _ = store.files.page("a", kind="batch", after=None, limit=9, is_newest_first=False)
    assert [row.file.id for row in rows] == ["file-1", "file-3", "file-5"]


def test_changes_move_a_row_between_kinds(store):
    store.batches.add(a_batch(1), a_batch(2))

    def begin(row: StoredBatch) -> StoredBatch:
        return msgspec.structs.replace(row, batch=msgspec.structs.replace(row.batch, status="in_progress"))

    assert store.batches.change("batch_2", begin) == begin(a_batch(2))
    assert store.batches.change("batch_9", begin) is None
    assert store.batches.of_kinds(["in_progress"]) == ([begin(a_batch(2))], [])
    assert store.batches.count("a", ["validating", "in_progress"]) == 2
    assert store.batches.count("b", ["validating"]) == 0


def settled(store: Store, upto: int, counts: RequestCounts) -> StoredBatch | None:
    def how(row: StoredBatch) -> StoredBatch:
        if row.accounted_bytes >= upto:
            return row
        batch = msgspec.structs.replace(row.batch, request_counts=counts)
        return msgspec.structs.replace(row, accounted_bytes=upto, batch=batch)

    tally = Tally(day="2026-01-01", is_batch=True, requests=2, input_tokens=30, output_tokens=10, weight=0.5)
    return store.settle("batch_1", how, tally=tally, files=[a_file(5)])


def test_usage_is_counted_with_the_row_and_once(store):
    store.batches.add(a_batch(1))
    for _ in range(3):  # as after an answer that got lost
        row = settled(store, 100, RequestCounts(total=4, completed=2))
        assert row is not None
        assert (row.accounted_bytes, row.batch.request_counts.completed) == (100, 2)
    settled(store, 150, RequestCounts(total=4, completed=4))
    (usage,) = store.usage("a")
    assert usage == {
        "tenant_id": "a", "day": "2026-01-01", "is_batch": True, "requests": 4, "input_tokens": 60,
        "output_tokens": 20, "weighted_tokens": 40.0,
    }  # fmt: skip
    assert store.usage("b") == []
    assert store.files.ids() == {"file-5"}


def test_what_is_raised_inside_leaves_nothing(store):
    store.batches.add(a_batch(1))

    def how(_row: StoredBatch) -> StoredBatch:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.settle("batch_1", how, files=[a_file(1)])
    assert store.files.ids() == set()


def test_changes_of_one_row_from_several_threads_all_count(store):
    store.batches.add(a_batch(1))

    def add(row: StoredBatch) -> StoredBatch:
        return msgspec.structs.replace(row, accounted_bytes=row.accounted_bytes + 1)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: store.batches.change("batch_1", add), range(40)))
    row = store.batches.get("batch_1", "a")
    assert row is not None
    assert row.accounted_bytes == 40


def test_files_that_have_expired(store):
    store.files.add(a_file(1, expires_at=100), a_file(2, expires_at=200), a_file(3))
    assert store.files.expired(150.0) == ["file-1"]
    store.files.remove("file-1")
    assert store.files.expired(150.0) == []


def test_everything_is_there_after_opening_again(url):
    first = open_store(url)
    first.files.add(a_file(1))
    first.close()
    second = open_store(url)
    assert second.files.get("file-1", "a") == a_file(1)
    second.close()


def test_a_changed_row_is_noticed_and_the_others_are_read(store):
    store.batches.add(a_batch(1), a_batch(2))
    with store._engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE batches SET document = :document WHERE id = 'batch_1'"),
            {"document": msgspec.json.encode(a_batch(1, status="completed"))},
        )
    with pytest.raises(Damaged, match="batch_1"):
        store.batches.get("batch_1", "a")
    assert store.batches.of_kinds(["validating"]) == ([a_batch(2)], ["batch_1"])


def test_a_newer_schema_is_refused(url):
    first = open_store(url)
    with first._engine.begin() as connection:
        connection.execute(sa.text("UPDATE schema_version SET version = 99"))
    first.close()
    with pytest.raises(ConfigError, match="schema 99"):
        open_store(url)


def test_older_schemas_are_brought_up_step_by_step(url, monkeypatch):
    first = open_store(url)
    first.files.add(a_file(1))
    first.close()

    def step(connection: sa.Connection) -> None:
        connection.execute(sa.text("CREATE TABLE later (x INTEGER)"))

    monkeypatch.setattr(stores, "MIGRATIONS", (*stores.MIGRATIONS, step))
    monkeypatch.setattr(stores, "VERSION", 3)
    for _ in range(2):
        second = open_store(url)
        assert second.files.ids() == {"file-1"}
        with second._engine.begin() as connection:
            assert connection.execute(sa.text("SELECT version FROM schema_version")).scalars().all() == [3]
            connection.execute(sa.text("INSERT INTO later VALUES (1)"))
        second.close()


def test_one_server_per_postgres_database(postgres_url, monkeypatch):
    url = postgres.new_database(postgres_url, f"test_{next(counter)}")
    first = open_store(url)
    with monkeypatch.context() as patched:
        patched.setattr(stores, "LOCK_WAIT_S", 0.0)
        with pytest.raises(ConfigError, match="another server"):
            open_store(url)
    first.close()
    open_store(url).close()


def test_a_sqlite_file_with_bad_pages_is_not_opened(tmp_path):
    path = tmp_path / "octavo.db"
    made = open_store(f"sqlite:///{path}")
    made.files.add(*[a_file(number, filename="x" * 200) for number in range(200)])
    made.close()
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    assert len(content) > 5 * 4096
    content[2 * 4096 : 5 * 4096] = b"\xa5" * (3 * 4096)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"damaged|cannot be opened"):
        open_store(f"sqlite:///{path}")
    path.write_bytes(b"no database at all" * 400)
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_store(f"sqlite:///{path}")


def test_a_full_database_says_so_and_works_again(tmp_path):
    made = open_store(f"sqlite:///{tmp_path / 'octavo.db'}")
    made.files.add(a_file(0))

    def limit(pages: int) -> None:
        with made._engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    limit(1)
    with pytest.raises(StoreError, match="full"):
        made.files.add(*[a_file(number, filename="x" * 4000) for number in range(1, 40)])
    limit(10**6)
    assert made.files.ids() == {"file-0"}
    made.files.add(a_file(1))
    made.close()


@pytest.mark.parametrize(
    "url", ["mysql://root:secret@host/x", "no url: secret", "postgresql://u:secret@/x?host=/nowhere"]
)
def test_a_bad_url_is_refused_without_showing_it(url):
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)
