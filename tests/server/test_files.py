"""Files through the official client and by hand: uploads that stream, limits, quotas, damage, expiry."""

from __future__ import annotations

import itertools
import socket
import sqlite3
import threading
import time
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.server import jobs
from tests.server.process import serving

LIMIT, QUOTA = 64 * 1024, 160 * 1024


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def small(folder, data):
    """A server with a low limit and quota, and keys, so that each test can be a tenant of its own."""
    keys = ",".join(f"key-number-{number}" for number in range(60))
    limits = ("--max-file-bytes", str(LIMIT), "--file-quota-bytes", str(QUOTA))
    with serving([str(folder), *limits, "--api-key", keys, "--data-dir", str(data)]) as served:
        yield served


numbers = itertools.count()


@pytest.fixture
def mine(small):
    """A client of the server with a key of the test's own."""
    key = {"authorization": f"Bearer key-number-{next(numbers)}"}
    with httpx.Client(base_url=small.url, headers=key, timeout=60) as client:
        yield client


def until(true) -> None:
    deadline_s = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_file_comes_back_as_it_went(client):
    content = bytes(range(256)) * 20_000
    file = client.files.create(file=("näme.bin", content), purpose="user_data")
    assert (file.object, file.bytes, file.filename, file.status) == (
        "file", len(content), "näme.bin", "processed",
    )  # fmt: skip
    assert len(file.id) == len("file-") + 32
    assert client.files.content(file.id).read() == content
    assert client.files.retrieve(file.id) == file
    assert client.files.delete(file.id).deleted
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            gone(file.id)
        assert caught.value.code == "not_found"


def test_lists_by_purpose_order_and_page(client):
    ids = [client.files.create(file=b"x", purpose="user_data").id for _ in range(5)]
    other = client.files.create(file=b"y", purpose="batch").id
    listed = [file.id for file in client.files.list(purpose="user_data", order="asc", limit=2)]
    assert listed[-5:] == ids
    newest = client.files.list(limit=2)
    assert [file.id for file in newest.data] == [other, ids[4]]
    assert newest.has_more
    older = client.files.list(limit=2, after=ids[4])
    assert [file.id for file in older.data] == [ids[3], ids[2]]
    for file_id in [*ids, other]:
        client.files.delete(file_id)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=10001", "order=up"])
def test_bad_questions_about_lists(mine, query):
    answer = mine.get(f"/v1/files?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.partition("=")[0])


def test_a_file_that_expires(client, mine, data):
    file = client.files.create(
        file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    for fields in (
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "soon"},
        {"expires_after[anchor]": "then", "expires_after[seconds]": "3600"},
        {"expires_after[seconds]": "3600"},
    ):
        answer = mine.post("/v1/files", data={"purpose": "batch", **fields}, files={"file": b"x"})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith("expires_after.")
    assert not list((data / "incoming").iterdir())


def test_an_expired_file_is_gone_before_it_is_swept(mine, data):
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file_id = jobs.upload(mine, b"old", **fields)
    with sqlite3.connect(data / "octavo.db") as database:
        (document,) = database.execute("SELECT document FROM files WHERE id = ?", (file_id,)).fetchone()
        past = int(time.time()) - 10
        expires = document.split(b'"expires_at":')[1].split(b",")[0]
        document = document.replace(b'"expires_at":' + expires, b'"expires_at":%d' % past)
        crc = zlib.crc32(document, zlib.crc32(f"{file_id} batch".encode()))
        database.execute(
            "UPDATE files SET document = ?, crc = ?, expires_at = ? WHERE id = ?",
            (document, crc, past, file_id),
        )
    database.close()
    assert mine.get(f"/v1/files/{file_id}").status_code == 404
    assert mine.get(f"/v1/files/{file_id}/content").status_code == 404
    assert mine.get("/v1/files").json()["data"] == []


def test_the_limit_of_one_file(mine, data):
    assert len(jobs.upload(mine, b"x" * LIMIT)) == 37
    answer = mine.post("/v1/files", data={"purpose": "batch"}, files={"file": b"x" * (LIMIT + 1)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert answer.headers["x-should-retry"] == "false"
    assert not list((data / "incoming").iterdir())


def test_the_quota_of_a_tenant(mine):
    ids = [jobs.upload(mine, b"x" * LIMIT) for _ in range(QUOTA // LIMIT)]
    answer = mine.post("/v1/files", data={"purpose": "batch"}, files={"file": b"x" * LIMIT})
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_quota_exceeded")
    other = {"authorization": "Bearer key-number-59"}
    others = mine.post("/v1/files", data={"purpose": "batch"}, files={"file": b"x" * LIMIT}, headers=other)
    assert others.status_code == 200
    mine.delete(f"/v1/files/{ids[0]}")
    jobs.upload(mine, b"x" * LIMIT)


def test_uploads_at_the_same_time_share_the_quota(small, mine):
    """Each is within the quota alone; together they are not, so one at least is refused."""
    release = threading.Event()
    num = QUOTA // LIMIT + 2
    arrived = threading.Barrier(num + 1)
    statuses = []

    def send() -> None:
        def body():
            yield b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
            yield b"x" * (LIMIT - 1)
            arrived.wait(30)
            release.wait(30)
            yield b"x\r\n--b--\r\n"

        kind = {"content-type": "multipart/form-data; boundary=b"}
        try:
            statuses.append(
                httpx.post(f"{small.url}/v1/files", content=body(), headers={**kind, **key}).status_code
            )
        except httpx.HTTPError:  # refused while it was still sending
            statuses.append(507)

    key = {"authorization": mine.headers["authorization"]}
    threads = [threading.Thread(target=send) for _ in range(num)]
    for thread in threads:
        thread.start()
    arrived.wait(30)
    release.set()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 507}
    assert statuses.count(200) <= QUOTA // LIMIT
    stored = mine.get("/v1/files").json()["data"]
    assert len(stored) == statuses.count(200)
    assert sum(file["bytes"] for file in stored) <= QUOTA


@pytest.mark.parametrize(
    ("form", "status", "param"),
    [
        ({"files": {"file": b"x"}}, 400, "purpose"),
        ({"data": {"purpose": "assistants"}, "files": {"file": b"x"}}, 400, "purpose"),
        ({"data": {"purpose": "batch_output"}, "files": {"file": b"x"}}, 400, "purpose"),
        ({"files": {"purpose": (None, "batch")}}, 400, "file"),
        ({"data": {"purpose": "x" * 2000}, "files": {"file": b"x"}}, 400, "purpose"),
        ({"files": [("file", b"x"), ("file", b"y")]}, 400, "file"),
        ({"files": [(f"f{n}", (None, "x")) for n in range(17)]}, 400, None),
        ({"json": {"purpose": "batch"}}, 415, None),
        ({"content": b"--b\r\n", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, None),
        ({"content": b"nonsense", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, None),
        ({"content": b"--b", "headers": {"content-type": "multipart/form-data"}}, 415, None),
    ],
)
def test_a_bad_form_is_refused_and_leaves_nothing(mine, data, form, status, param):
    answer = mine.post("/v1/files", **form)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert not list((data / "incoming").iterdir())
    assert mine.get("/v1/files").json()["data"] == []


def test_a_sender_who_leaves_leaves_nothing(small, mine, data):
    place = urlsplit(small.url)
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: {mine.headers['authorization']}\r\n"
        "content-type: multipart/form-data; boundary=b\r\ncontent-length: 50000\r\n\r\n"
        '--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
    )
    with socket.create_connection((place.hostname, place.port)) as connection:
        connection.sendall(head.encode() + b"x" * 10_000)
        until(lambda: list((data / "incoming").iterdir()))
    until(lambda: not list((data / "incoming").iterdir()))
    assert mine.get("/v1/files").json()["data"] == []


def test_contents_that_have_changed_on_the_disk_never_arrive_whole(mine, data):
    content = b"a line of text\n" * 2000
    file_id = jobs.upload(mine, content)
    path = data / "files" / file_id
    damaged = bytearray(content)
    damaged[100] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(httpx.RemoteProtocolError):
        mine.get(f"/v1/files/{file_id}/content")
    path.unlink()
    answer = mine.get(f"/v1/files/{file_id}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "storage_damaged")


def test_file_names_are_not_logged_or_used_as_paths(folder, tmp_path):
    with serving([str(folder), "--data-dir", str(tmp_path)]) as served:
        file_id = jobs.upload(served.client, b"x", name="../../canary-4711")
        assert served.get(f"/v1/files/{file_id}").json()["filename"] == "../../canary-4711"
        assert [path.name for path in (tmp_path / "files").iterdir()] == [file_id]
        served.process.terminate()
        served.process.wait(20)
        assert "canary" not in served.process.stderr.read()


def test_what_a_crash_left_behind_is_removed_at_the_start(folder, tmp_path):
    with serving([str(folder), "--data-dir", str(tmp_path)]) as served:
        kept = jobs.upload(served.client, b"kept")
    for name in ("incoming", "files", "batches"):
        (tmp_path / name / "orphan").write_bytes(b"half")
    with serving([str(folder), "--data-dir", str(tmp_path)]) as served:
        assert served.get(f"/v1/files/{kept}/content").content == b"kept"
        for name, left in (("incoming", []), ("files", [kept]), ("batches", [])):
            assert [path.name for path in (tmp_path / name).iterdir()] == left


def test_a_folder_that_is_taken_costs_files_and_nothing_else(folder, tmp_path):
    arguments = [str(folder), "--data-dir", str(tmp_path)]
    with serving(arguments) as first, serving(arguments) as second:
        refused = second.get("/v1/files")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
        assert "another server" in refused.json()["error"]["message"]
        assert second.post("/v1/completions", {"prompt": "say:x"}).status_code == 200
        assert first.get("/v1/files").status_code == 200
