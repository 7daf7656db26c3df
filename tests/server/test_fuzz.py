"""Almost right requests over every route: each is answered or refused by name, and the server is none the worse."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from octavo.api.faults import ROWS
from octavo.server.app import described
from tests.server.fuzz import GOOD, Fuzzer, Request
from tests.server.process import Served, serving
from tests.server.test_hardening import answers_still, rss

DOCUMENT = json.loads(described(False, False))
MEANT = {"deadline_unattainable", "deadline_exceeded", "storage_quota_exceeded"}
"""Codes of statuses from 500 on that say something of the request."""
LAST_EVENTS = (b"data: [DONE]", b'"message_stop"', b"event: response.", b'"error"')
NUM_THREADS = 4
MIB = 2**20


@pytest.fixture(scope="module")
def server(folder) -> Iterator[Served]:
    with serving([str(folder), "--max-body-bytes", "1MiB", "--file-quota-bytes", "8MiB"]) as served:
        yield served


def ask(connection: http.client.HTTPConnection, request: Request) -> tuple[int, str, bytes]:
    connection.putrequest(request.method, request.path, skip_accept_encoding=True)
    for name, value in request.headers.items():
        connection.putheader(name, value)
    if request.body or request.method == "POST":
        connection.putheader("content-length", str(len(request.body)))
    connection.endheaders(request.body or None)
    answer = connection.getresponse()
    return answer.status, answer.getheader("content-type", ""), answer.read()


def problem(request: Request, status: int, kind: str, body: bytes) -> str | None:
    """What is wrong with an answer, or None."""
    if status >= 400:
        if request.method == "HEAD":
            return None if status < 500 else f"{status} to HEAD"
        error = json.loads(body)["error"]
        if error["code"] not in ROWS or not error["message"]:
            return f"no error of ours: {error}"
        if status >= 500 and error["code"] not in MEANT:
            return f"{status} {error}"
    elif kind.startswith("text/event-stream"):
        last = body.rstrip(b"\n").rpartition(b"\n\n")[2]
        if not body.endswith(b"\n\n") or not any(end in last for end in LAST_EVENTS):
            return f"a clean close without a terminal event: {last[:200]!r}"
    return None


def fuzz(served: Served, seed: int, count: int) -> tuple[Counter[int], list[str]]:
    """Statuses, and what went wrong."""
    fuzzer = Fuzzer(DOCUMENT, seed)
    host, port = served.url.removeprefix("http://").split(":")
    statuses: Counter[int] = Counter()
    problems: list[str] = []
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    with contextlib.closing(connection):
        for _ in range(count):
            request = fuzzer.request()
            try:
                status, kind, body = ask(connection, request)
                found = problem(request, status, kind, body)
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                status, found = 0, f"{type(error).__name__}: {error}"
                connection.close()
            statuses[status] += 1
            if found is not None:
                problems.append(f"{request}: {found}")
    return statuses, problems


def fuzz_together(served: Served, seed: int, count: int) -> Counter[int]:
    """In several threads, with what has to be true afterwards."""
    results: list[tuple[Counter[int], list[str]]] = []

    def one(number: int) -> None:
        results.append(fuzz(served, seed * NUM_THREADS + number, count // NUM_THREADS))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses: Counter[int] = sum((found[0] for found in results), Counter())
    problems = [line for found in results for line in found[1]]
    assert not problems, "\n".join(problems[:10])
    assert len(results) == NUM_THREADS
    health = served.until(lambda health: health["requests"] == 0 and health["engine"]["running"] == 0)
    assert health["engine"]["restarts"] == 0, health["engine"]["last_failure"]
    assert health["engine"]["kv_blocks_used"] == 0
    assert answers_still(served)
    return statuses


def test_good_requests_are_good(server):
    for path, bodies in GOOD.items():
        for body in bodies:
            status = server.post(path, body).status_code
            assert status == (404 if path == "/v1/batches" else 200), (path, body)


def test_the_same_seed_gives_the_same_requests():
    first, second = Fuzzer(DOCUMENT, 3), Fuzzer(DOCUMENT, 3)
    assert [first.request() for _ in range(50)] == [second.request() for _ in range(50)]


def test_two_thousand_almost_right_requests(server, record_property):
    statuses = fuzz_together(server, seed=1, count=2000)
    record_property("statuses", dict(statuses))
    assert statuses[200] > 200
    assert statuses[400] > 400


@pytest.mark.slow
def test_a_hundred_thousand_almost_right_requests_leave_no_trace(server, record_property):
    fuzz_together(server, seed=2, count=8000)
    before = rss(server.process.pid)
    statuses = fuzz_together(server, seed=3, count=100_000)
    record_property("statuses", dict(statuses))
    grown = rss(server.process.pid) - before
    print(f"{dict(statuses)}, grown by {grown / MIB:.1f} MiB")
    assert grown < 64 * MIB
