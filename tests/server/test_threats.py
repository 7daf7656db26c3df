"""Who has no key, or another tenant's ids, or a page in somebody's browser. Rows of docs/security.md."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import random
import re
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from octavo.server import bodies, keyring
from octavo.server.app import ALL
from octavo.server.console import STATIC
from octavo.server.guesses import FREE, LONGEST_S, MAX_ADDRESSES, Guesses
from tests.server.process import Served, serving
from tests.server.test_hardening import answers_still, connect, listening_ports, rss
from tests.server.test_http import error_of

KEY, OTHER_KEY = "the-first-tenant's", "the-second-tenant's"
KEYLESS = {"/health", "/health/live", "/health/ready", "/ping", *STATIC}
MIB = 2**20


@pytest.fixture(scope="module")
def locked(folder) -> Iterator[Served]:
    with serving([str(folder), "--api-key", f"{KEY},{OTHER_KEY}"]) as served:
        yield served


# T01: without a key

PLACES = """
    / /v1 /v2 /api /docs /redoc /swagger.json /openapi.yaml /ping /load /pause /resume /env /debug /debug/pprof /config
    /admin /admin/drain /admin/sleep /admin/wake /admin/config /admin/keys /admin/reset_prefix_cache /.env /.git/config
    /etc/passwd /static /console /ui /dashboard /robots.txt /metrics/ /health/x /version/
"""
FOREIGN = """
    /sleep /wake_up /reset_prefix_cache /collective_rpc /invocations /classify /score /rerank /v1/score /v1/rerank
    /generate /get_model_info /flush_cache /update_weights /slots /props /lora-adapters /api/chat /api/generate
    /api/tags /v1/load_lora_adapter /v1/unload_lora_adapter /inference/v1/generate /tokenizer_info /server_info
"""


def guessed_routes() -> list[str]:
    """What other servers have, what admins have, and what dictionaries would try."""
    known = sorted({*f"{PLACES} {FOREIGN}".split()} - KEYLESS)
    words = [
        "user",
        "keys",
        "tenants",
        "usage",
        "logs",
        "trace",
        "profile",
        "shell",
        "exec",
        "state",
        "dump",
        "stats",
    ]
    tails = [
        "",
        "/1",
        "/list",
        "?all=1",
        "/../../admin",
        "%2f..%2fadmin",
        ";x=1",
        "//",
        "/%00",
        "\\..\\",
        ".json",
        "/..",
    ]
    return [*known, *(f"/v1/{word}{tail}" for word, tail in itertools.product(words, tails))]


def test_without_a_key_nothing_answers_but_the_probes(locked):
    for operation in ALL:
        path = re.sub(r"{[^}]*}", "some-id", operation.path)
        status = locked.client.request(operation.method, path).status_code
        assert status == (200 if path in KEYLESS else 401), (operation.method, path)
    assert len(guessed_routes()) >= 200
    for path in guessed_routes():
        for method in ("GET", "POST"):
            assert locked.client.request(method, path).status_code == 401, (method, path)


def test_with_a_key_what_is_guessed_is_not_there(locked):
    headers = {"authorization": f"Bearer {KEY}"}
    for path in guessed_routes():
        assert locked.get(path, headers=headers).status_code == 404, path


# T02: guessing keys


def test_wrong_keys_wait_longer_and_longer_and_right_ones_never():
    now = 0.0
    guesses = Guesses(lambda: now)
    waits = [guesses.wait_s("there") for _ in range(FREE + 12)]
    assert waits[:FREE] == [0.0] * FREE
    assert waits[FREE:] == sorted(waits[FREE:])
    assert waits[FREE] > 0
    assert waits[-1] == LONGEST_S
    assert guesses.wait_s("elsewhere") == 0.0
    now += 3600.0
    assert guesses.wait_s("there") == 0.0
    for number in range(3 * MAX_ADDRESSES):
        guesses.wait_s(str(number))
    assert len(guesses._known) == MAX_ADDRESSES


def test_a_run_of_wrong_keys_is_held_up_and_the_right_key_is_not(folder):
    with serving([str(folder), "--api-key", KEY]) as served:

        async def scene() -> None:
            async with httpx.AsyncClient(base_url=served.url, timeout=30) as client:
                began_s = time.monotonic()

                async def wrong(number: int) -> None:
                    answer = await client.get("/v1/models", headers={"x-api-key": f"guess-{number}"})
                    assert answer.status_code == 401

                guessing = [asyncio.create_task(wrong(number)) for number in range(FREE + 20)]
                await asyncio.sleep(0.2)
                asked_s = time.monotonic()
                assert (await client.get("/v1/models", headers={"x-api-key": KEY})).status_code == 200
                assert time.monotonic() - asked_s < 1.0
                await asyncio.gather(*guessing)
                assert time.monotonic() - began_s >= LONGEST_S

        asyncio.run(scene())


def test_every_digest_is_compared_whatever_the_key_begins_with(monkeypatch):
    """The key itself meets no comparison: two keys that begin alike have digests that do not."""
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    keys = [f"octavo-{number:064d}" for number in range(8)]
    ring = keyring.read(None, keys)
    for key in (keys[0], keys[-1], keys[3][:-1] + "x", "x" + keys[3][1:], "", "ö"):
        compared.clear()
        ring.tenant(key)
        assert len(compared) == len(keys)
        assert all(len(one) == len(other) == 32 for one, other in compared)


@pytest.mark.slow
def test_the_time_a_guess_takes_says_nothing_of_how_much_of_it_is_right():
    key = keyring.new_key()[0]
    ring = keyring.read(None, [key])
    guesses = [key[:right] + "!" * (len(key) - right) for right in range(0, len(key), 4)]
    rng = random.Random(1)
    times: dict[int, list[int]] = {right: [] for right in range(len(guesses))}
    for _ in range(10_000):
        which = rng.randrange(len(guesses))
        began = time.perf_counter_ns()
        ring.tenant(guesses[which])
        times[which].append(time.perf_counter_ns() - began)
    medians = [sorted(one)[len(one) // 2] for one in times.values()]
    places = list(range(len(medians)))
    mean_place, mean = sum(places) / len(places), sum(medians) / len(medians)
    slope = sum((a - mean_place) * (b - mean) for a, b in zip(places, medians, strict=True)) / sum(
        (a - mean_place) ** 2 for a in places
    )
    assert abs(slope) * len(places) < 0.1 * mean, "less than a tenth from nothing right to all right"


# T04: a body that drips


def test_a_body_that_drips_is_refused_in_time(monkeypatch):
    from starlette.requests import Request

    monkeypatch.setattr(bodies, "BODY_S", 0.3)

    async def receive() -> dict[str, object]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def scene() -> None:
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
        with pytest.raises(bodies.HttpError, match="did not arrive within") as refused:
            await bodies.read_body(Request(scope, receive), MIB)
        assert refused.value.code == "request_timeout"

    asyncio.run(scene())


# T16: every port, random bytes, idle connections


def test_a_thousand_idle_connections_keep_nobody_out_and_are_closed(server):
    before = rss(server.process.pid)
    with contextlib.ExitStack() as opened:
        idle = [opened.enter_context(connect(server)) for _ in range(1000)]
        assert answers_still(server)
        for one in idle:
            one.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b"", "closed by the server, within its time for a head"
    assert rss(server.process.pid) < before + 64 * MIB
    assert answers_still(server)


@pytest.mark.parametrize(
    "junk",
    [
        random.Random(7).randbytes(4096),
        b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",  # a pickle
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f",  # the greeting of ZeroMQ
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
        b"*1\r\n$4\r\nPING\r\n",
    ],
)
def test_bytes_that_are_no_http_to_every_port_that_listens(server, junk):
    for port in listening_ports(server.process.pid):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
            one.sendall(junk)
            one.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                got = one.recv(65536)
                assert not got or got.startswith(b"HTTP/1.1 4")
    assert answers_still(server)


# T22: ids of others


def test_ids_of_another_tenant_are_not_there_and_cannot_be_guessed(locked):
    mine, other = ({"authorization": f"Bearer {key}"} for key in (KEY, OTHER_KEY))
    form = {"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "batch"}}
    file_id = locked.client.post("/v1/files", headers=mine, **form).json()["id"]
    asked = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    batch_id = locked.post("/v1/batches", asked, headers=mine).json()["id"]
    response_id = locked.post("/v1/responses", {"input": "say:secret"}, headers=mine).json()["id"]
    ids = {"file_id": file_id, "batch_id": batch_id, "response_id": response_id}
    for one in ids.values():
        assert re.search(r"[0-9a-f]{32}$", one), "128 random bits"
    tried = 0
    for operation in ALL:
        name = next((name for name in ids if f"{{{name}}}" in operation.path), None)
        if name is None:
            continue
        path = operation.path.replace(f"{{{name}}}", ids[name])
        refused = locked.client.request(operation.method, path, headers=other)
        assert (refused.status_code, error_of(refused)["code"]) == (404, "not_found"), path
        unknown = locked.client.request(
            operation.method, path[:-3] + "000" if path.endswith(ids[name]) else path, headers=other
        )
        assert unknown.status_code == 404
        tried += 1
    assert tried >= 9
    refused = locked.post("/v1/responses", {"input": "x", "previous_response_id": response_id}, headers=other)
    assert refused.status_code == 404
    assert locked.get(f"/v1/responses/{response_id}", headers=mine).status_code == 200


# T24: a name that leads here


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "[evil]", "127.0.0.1.evil.example"],
)
@pytest.mark.parametrize("call", ["GET /v1/models", "POST /v1/completions", "GET /v1/files", "GET /metrics"])
def test_a_strange_name_for_a_loopback_address_is_refused(server, host, call):
    method, path = call.split()
    body = {"json": {"prompt": "say:a"}} if method == "POST" else {}
    headers = {"host": host, "origin": f"http://{host}"}
    refused = server.client.request(method, path, headers=headers, **body)
    assert (refused.status_code, error_of(refused)["code"]) == (403, "cross_origin")
    assert "--allowed-hosts" in error_of(refused)["message"]


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8000",
        "api.localhost",
        "127.0.0.1",
        "[::1]:8000",
        "192.0.2.7:80",
        socket.gethostname(),
    ],
)
def test_its_own_names_and_addresses_are_taken(server, host):
    answer = server.post("/v1/completions", {"prompt": "say:a"}, headers={"host": host})
    assert answer.status_code == 200


def test_a_name_the_operator_allows_is_taken_and_so_is_any_with_a_key(folder, locked):
    with serving([str(folder), "--allowed-hosts", "LLM.Example,other.example"]) as served:
        for host, status in (("llm.example:443", 200), ("LLM.example", 200), ("evil.example", 403)):
            answer = served.post("/v1/completions", {"prompt": "say:a"}, headers={"host": host})
            assert answer.status_code == status
    headers = {"host": "llm.example", "authorization": f"Bearer {KEY}"}
    assert locked.get("/v1/models", headers=headers).status_code == 200


# T15: addresses in requests


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://2130706433:{port}/",
        "http://169.254.169.254/latest/meta-data",
        "http:\\\\127.0.0.1:{port}\\",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
    ],
)
def test_nothing_is_fetched_for_an_image(server, address):
    """Every address gets the same words, and nobody is called."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = address.replace("{port}", str(listening.getsockname()[1]))
        chat = [{"type": "image_url", "image_url": {"url": url}}]
        items = [{"type": "input_image", "image_url": url}]
        blocks = [{"type": "image", "source": {"type": "url", "url": url}}]
        for path, more, part in (
            ("/v1/chat/completions", {}, chat),
            ("/v1/responses", {}, items),
            ("/v1/messages", {"max_tokens": 4}, blocks),
        ):
            field = "input" if path == "/v1/responses" else "messages"
            refused = server.post(path, {field: [{"role": "user", "content": part}], **more})
            assert refused.status_code == 400
            assert url not in refused.text
        listening.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listening.accept()
