"""What a peer may try against the socket: heads, bodies, JSON, numbers, long texts, slow and vanishing readers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import select
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from octavo.server.gate import MAX_HEADERS
from octavo.server.protocol import HEAD_S, MAX_HEADER_BYTES, SafeProtocol, http_settings
from tests.server.process import Served, serving
from tests.server.test_faults import children
from tests.server.test_http import error_of

MIB = 2**20
JSON = {"content-type": "application/json"}


def connect(served: Served) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def rest(one: socket.socket) -> bytes:
    """Everything until the other end closes, however it does that."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := one.recv(65536):
            parts.append(part)
    return b"".join(parts)


def pour(one: socket.socket, piece: bytes, times: int) -> tuple[int, bytes]:
    """Send `piece` again and again until it is enough or the other end has had enough; what came back meanwhile."""
    sent, got = 0, b""
    for _ in range(times):
        try:
            one.sendall(piece)
        except OSError:
            break
        sent += len(piece)
        while select.select([one], [], [], 0)[0]:
            try:
                part = one.recv(65536)
            except OSError:
                return sent, got
            if not part:
                return sent, got
            got += part
    return sent, got


def rss(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def answers_still(served: Served) -> bool:
    answer = served.post("/v1/completions", {"prompt": "say:still"})
    return bool(answer.status_code == 200 and answer.json()["choices"][0]["text"] == "still")


# T03: heads


@pytest.mark.parametrize("piece", [b"a" * 65536, b"x-more: b\r\n" * 5000], ids=["one header", "many headers"])
def test_a_head_of_64_mib_is_refused_early_and_not_kept(server, piece):
    before = 0
    for attempt in range(3):
        with connect(server) as one:
            one.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-long: ")
            sent, got = pour(one, piece, 64 * MIB // len(piece))
            got += rest(one)
        assert sent < 16 * MIB
        if got:
            head, _, body = got.partition(b"\r\n\r\n")
            assert head.split()[1] == b"431"
            assert json.loads(body)["error"]["code"] == "headers_too_large"
        if attempt == 0:
            before = rss(server.process.pid)
    assert rss(server.process.pid) <= before + 2 * MIB
    assert answers_still(server)


def test_a_head_a_little_too_long_is_answered_with_431(server):
    with connect(server) as one:
        one.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-long: " + b"a" * MAX_HEADER_BYTES)
        head, _, body = rest(one).partition(b"\r\n\r\n")
    assert head.split()[1] == b"431"
    assert json.loads(body)["error"]["code"] == "headers_too_large"


def test_ten_thousand_short_headers_are_refused(server):
    for count in (MAX_HEADERS, 10_000):
        with connect(server) as one:
            one.sendall(
                b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
                + b"a:\r\n" * count
                + b"\r\n"
            )
            head, _, body = rest(one).partition(b"\r\n\r\n")
        assert head.split()[1] == b"431"
        assert json.loads(body)["error"]["code"] == "headers_too_large"
    assert server.get("/health", headers=[(f"x-{i}", "y") for i in range(100)]).status_code == 200


def test_what_is_no_http_is_refused_in_the_common_shape(server):
    with connect(server) as one:
        one.sendall(b"\x00\x01\x02 nonsense\r\n\r\n")
        head, _, body = rest(one).partition(b"\r\n\r\n")
    assert head.split()[1] == b"400"
    assert b"content-type: application/json" in head
    assert json.loads(body)["error"]["code"] == "invalid_http"


class Hasty(SafeProtocol):
    """With time limits a test can wait for."""

    head_s = 0.3
    stall_s = 0.3


@contextlib.asynccontextmanager
async def hasty(app: Any) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    config = uvicorn.Config(app, **(http_settings() | {"http": Hasty}))
    http = uvicorn.Server(config)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    task = asyncio.create_task(http._serve([listening]))
    while not http.started:
        await asyncio.sleep(0.01)
    try:
        yield http, listening.getsockname()[1]
    finally:
        http.should_exit = True
        await task


async def hello(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.mark.parametrize("start", [b"", b"G", b"GET / HTTP/1.1\r\nhost: localhost\r\nx-half: "])
def test_a_head_that_never_ends_closes_the_connection(start):
    async def scene() -> None:
        async with hasty(hello) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(start)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()

    asyncio.run(scene())
    assert SafeProtocol.head_s == HEAD_S <= 10


def test_dripping_a_head_does_not_buy_time():
    async def scene() -> None:
        async with hasty(hello) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            closed = asyncio.create_task(reader.read())
            with contextlib.suppress(ConnectionError):
                writer.write(b"GET / HTTP/1.1\r\nx: ")
                while not closed.done():
                    writer.write(b"a")
                    await writer.drain()
                    await asyncio.sleep(0.02)
            assert closed.done()
            writer.close()

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_the_second_request_of_a_connection_has_the_same_limit_and_good_ones_are_served():
    async def scene() -> None:
        async with hasty(hello) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                writer.write(GET)
                assert (await asyncio.wait_for(reader.readuntil(b"ok"), 20)).startswith(b"HTTP/1.1 200")
                await asyncio.sleep(0.4)  # longer than a head may take: between requests that is allowed
            writer.write(GET[:10])
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()

    asyncio.run(scene())


def test_a_body_in_its_time_is_not_taken_for_a_late_head():
    async def echo(_scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["more_body"]:
            body += message["body"]
        body += message["body"]
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", b"%d" % len(body))],
            }
        )
        await send({"type": "http.response.body", "body": body})

    async def scene() -> None:
        async with hasty(echo) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"POST / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 8\r\n\r\n"
            )
            for byte in b"12345678":
                writer.write(bytes([byte]))
                await asyncio.sleep(0.1)
            assert (await asyncio.wait_for(reader.read(), 20)).endswith(b"12345678")
            writer.close()

    asyncio.run(scene())


# T04: bodies


def post_head(*lines: str) -> bytes:
    return "\r\n".join(
        ["POST /v1/completions HTTP/1.1", "host: localhost", "content-type: application/json", *lines, "", ""]
    ).encode()


def test_a_body_of_a_gib_is_refused_by_its_announcement(server):
    with connect(server) as one:
        one.sendall(post_head(f"content-length: {2**30}"))
        got = b""
        while b"}}" not in got:
            got += one.recv(65536)
    assert got.split()[1] == b"413"


def test_a_body_of_a_gib_that_announces_nothing_is_cut_at_the_limit(server):
    piece = b"40000\r\n" + b"x" * 0x40000 + b"\r\n"
    before = 0
    for attempt in range(2):
        with connect(server) as one:
            one.sendall(post_head("transfer-encoding: chunked"))
            sent, got = pour(one, piece, 4096)
        assert got.split()[1] == b"413"
        assert sent < 256 * MIB
        if attempt == 0:
            before = rss(server.process.pid)
    assert rss(server.process.pid) <= before + 4 * MIB
    assert answers_still(server)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x\u00ff"])
def test_encoded_bodies_are_refused_unread(server, encoding):
    headers = {**JSON, "content-encoding": encoding.encode("latin-1")}
    answer = server.post("/v1/completions", content=b"\x1f\x8b" + b"\0" * 1000, headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type")


def test_a_refused_body_that_goes_on_is_passed_over_for_a_while_only():
    async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    async def scene() -> None:
        async with hasty(refuse) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n")
            assert (await asyncio.wait_for(reader.readuntil(b"no"), 20)).startswith(b"HTTP/1.1 413")
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()

    asyncio.run(scene())


# T05: JSON


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "invalid_json", None),
        ('{"odd": ' + "[" * 100_000 + "]" * 100_000 + ', "prompt": "x"}', "invalid_json", None),
        ('{"odd": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + ', "prompt": "x"}', "invalid_json", None),
        ('{"prompt": "x", "temperature": NaN}', "invalid_json", None),
        ('{"prompt": "x", "temperature": -Infinity}', "invalid_json", None),
        ('{"prompt": "x", "temperature": 1e999}', "invalid_value", "temperature"),
        ('{"prompt": "x", "seed": ' + "9" * 10_000 + "}", "invalid_value", "seed"),
        ('{"prompt": "x", "top_k": ' + "9" * 10_000 + "}", "invalid_value", "top_k"),
        ('{"prompt": "x", "max_tokens": 9223372036854775808}', "invalid_value", "max_tokens"),
        ('{"prompt": "x", "prompt": "y"}', "invalid_value", "prompt"),
        ('{"prompt": "x", "stream_options": {"include_usage": true, "include_usage": false}}', None, None),
        ('{"prompt": "x", "n": 1, "\\u006e": 2}', "invalid_value", "n"),
        ('{"prompt": "x", "stop": ["\\ud800"]}', None, None),
        ('{"prompt": "\\udc00\\ud800"}', None, None),
        ('{"\\ud800": 1, "prompt": "x"}', None, None),
        ('{"prompt": "x"} {"prompt": "y"}', "invalid_json", None),
        ('{"prompt": "x",}', "invalid_json", None),
        ("{'prompt': 'x'}", "invalid_json", None),
        ('{"prompt": "a\nb"}', "invalid_json", None),
        ('{"prompt": "x", "n": 1.5}', "invalid_value", "n"),
        ('{"prompt": "x", "user": {"a": ' + "[" * 100_000 + "}}", "invalid_json", None),
    ],
    ids=range(21),
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings"])
def test_json_that_is_out_of_bounds(server, path, body, code, param):
    word = {"/v1/completions": "prompt", "/v1/chat/completions": "messages", "/v1/embeddings": "input"}[path]
    if word != "prompt":
        body = body.replace('"prompt"', f'"{word}"')
    answer = server.post(path, content=body.encode(), headers=JSON)
    assert answer.status_code in ((400,) if word == "prompt" else (200, 400)), answer.text
    if answer.status_code == 400:
        error = error_of(answer)
        if word == "prompt" and code is not None:
            assert error["code"] == code
            assert error["param"] == param


@pytest.mark.parametrize(
    "raw", [b'{"prompt": "\xff"}', b'{"prompt": "\xed\xa0\x80"}', b'\xef\xbb\xbf{"prompt": "x"}']
)
def test_bytes_that_are_no_text(server, raw):
    answer = server.post("/v1/completions", content=raw, headers=JSON)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_json")


# T06: numbers


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 10**9}, "n"),
        ({"n": 129}, "n"),
        ({"best_of": 10**9}, "best_of"),
        ({"logprobs": 10**9}, "logprobs"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stop": [f"s{i}" for i in range(100_000)]}, "stop"),
        ({"stop_token_ids": list(range(100_000))}, "stop_token_ids"),
        ({"logit_bias": {str(i): 1 for i in range(100_000)}}, "logit_bias"),
        ({"top_k": 2**64}, "top_k"),
        ({"beam_width": 10**6}, "beam_width"),
        ({"temperature": 1e300}, "temperature"),
    ],
)
def test_numbers_out_of_bounds_are_refused_by_name(server, more, param):
    with wide(server):
        answer = server.post("/v1/completions", {"prompt": "x", **more})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


@pytest.mark.parametrize("value", [2**31, -(2**31), 2**63, 2**64, -(2**63) - 1])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
def test_a_priority_no_frame_can_carry(server, path, value):
    answer = server.post(path, {"prompt": "x", "input": "x", "priority": value})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "priority")


@contextlib.contextmanager
def wide(server: Served) -> Iterator[None]:
    """The engine has nothing of it: no step, no request."""
    before = server.health()["engine"].get("steps")
    yield
    assert server.until(lambda health: health["requests"] == 0)["engine"].get("steps") == before


# T07: long texts


def test_two_megabytes_without_a_space_and_a_hundred_thousand_messages(folder, record_property):
    """Refused; meanwhile short requests are answered. How late the loop was is a figure, not a verdict."""
    long = {"prompt": "x" * (2 * MIB)}
    many = {"messages": [{"role": "user", "content": "x"} for _ in range(100_000)]}
    with serving([str(folder), "--max-body-bytes", "32MiB"]) as served:

        async def scene() -> tuple[list[httpx.Response], list[float]]:
            async with httpx.AsyncClient(base_url=served.url, timeout=120) as client:
                heavy = [
                    asyncio.create_task(client.post("/v1/completions", json=long)),
                    asyncio.create_task(client.post("/v1/chat/completions", json=many)),
                ]
                lags = []
                while not all(task.done() for task in heavy):
                    started_s = time.perf_counter()
                    assert (await client.get("/health/live")).status_code == 200
                    short = await client.post("/v1/completions", json={"prompt": "say:short"})
                    assert short.json()["choices"][0]["text"] == "short"
                    lags.append(time.perf_counter() - started_s)
                return [task.result() for task in heavy], sorted(lags)

        answers, lags = asyncio.run(scene())
        assert [answer.status_code for answer in answers] == [400, 400], [one.text[:300] for one in answers]
        assert len(lags) > 3, "short requests were answered while the long ones were read"
        record_property("short_request_p50_s", lags[len(lags) // 2])
        record_property("short_request_max_s", lags[-1])
        assert len(children(served.process.pid)) == 1
        assert served.health()["engine"]["restarts"] == 0


# T16: what listens


def listening_ports(pid: int) -> set[int]:
    """TCP ports that a process listens on."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))
            inodes |= {found[1]} if found else set()
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in inodes:
                ports.add(int(columns[1].rpartition(":")[2], 16))
    return ports


def test_only_the_api_port_listens(server):
    assert listening_ports(server.process.pid) == {int(server.url.rpartition(":")[2])}
    assert children(server.process.pid)
    for child in children(server.process.pid):
        assert listening_ports(child) == set()


# T20 and T21: readers


def test_a_reader_that_takes_nothing_is_cut_off_and_its_sender_told():
    sent, over = [], asyncio.Event()

    async def endless(_scope: Any, receive: Any, send: Any) -> None:
        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            over.set()

        watching = asyncio.create_task(leave())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not over.is_set():
            await send({"type": "http.response.body", "body": b"x" * 4096, "more_body": True})
            sent.append(4096)
            await asyncio.sleep(0)
        await watching

    async def scene() -> None:
        async with hasty(endless) as (http, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
            writer.write(GET)
            await asyncio.wait_for(over.wait(), 30)
            assert not http.server_state.connections
            assert sum(sent) < 64 * MIB, "what waits for a reader is bounded"
            writer.close()
            del reader

    asyncio.run(scene())


def test_a_slow_reader_that_goes_on_reading_is_not_cut_off():
    body = b"y" * (2 * MIB)

    async def large(_scope: Any, _receive: Any, send: Any) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", b"%d" % len(body))],
            }
        )
        await send({"type": "http.response.body", "body": body})

    async def scene() -> None:
        async with hasty(large) as (_, port):
            with socket.socket() as raw:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
                raw.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(raw, ("127.0.0.1", port))
                await loop.sock_sendall(raw, GET.replace(b"host:", b"connection: close\r\nhost:"))
                got, started_s = 0, loop.time()
                while part := await loop.sock_recv(raw, 16384 if loop.time() - started_s < 1.5 else 65536):
                    got += len(part)
                    if loop.time() - started_s < 1.5:  # five times the limit
                        await asyncio.sleep(0.02)
            assert got > len(body)

    asyncio.run(scene())


def leave_early(served: Served, count: int) -> None:
    """Open a stream, read its first token, close; many at a time."""

    async def one(client: httpx.AsyncClient, gate: asyncio.Semaphore) -> None:
        body = {"prompt": "!forever", "max_tokens": 4000, "stream": True}
        async with gate, client.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            async for _ in answer.aiter_lines():
                return

    async def storm() -> None:
        gate = asyncio.Semaphore(32)
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
            await asyncio.gather(*(one(client, gate) for _ in range(count)))

    asyncio.run(storm())
    health = served.until(lambda health: health["requests"] == 0 and health["engine"]["running"] == 0)
    assert health["engine"]["kv_blocks_used"] == 0
    assert health["engine"]["restarts"] == 0
    assert answers_still(served)


def test_a_storm_of_readers_that_leave_after_one_token(server):
    leave_early(server, 200)


@pytest.mark.slow
def test_ten_thousand_readers_that_leave_after_one_token(server):
    before = rss(server.process.pid)
    leave_early(server, 10_000)
    assert rss(server.process.pid) < before + 64 * MIB


# T24: pages of others


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://[::1", "//"]
)
@pytest.mark.parametrize("call", ["POST /v1/files", "POST /v1/completions", "DELETE /v1/files/x"])
def test_a_page_of_another_origin_cannot_act_without_a_key(server, origin, call):
    method, path = call.split()
    form = (
        {"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "user_data"}}
        if path == "/v1/files"
        else {}
    )
    refused = server.client.request(method, path, headers={"origin": origin}, **form)
    assert (refused.status_code, error_of(refused)["code"]) == (403, "cross_origin")


def test_a_page_of_the_server_itself_and_whoever_names_no_origin_may(server):
    for headers in ({}, {"origin": server.url}, {"origin": server.url.upper()}):
        assert server.post("/v1/completions", {"prompt": "say:a"}, headers=headers).status_code == 200


def test_with_a_key_the_origin_does_not_matter(folder):
    with serving([str(folder), "--api-key", "a-caller's-key"]) as served:
        headers = {"origin": "https://app.example", "authorization": "Bearer a-caller's-key"}
        assert served.post("/v1/completions", {"prompt": "say:a"}, headers=headers).status_code == 200
        headers["authorization"] = "Bearer another-key"
        assert served.post("/v1/completions", {"prompt": "say:a"}, headers=headers).status_code == 401
