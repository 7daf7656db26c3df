"""The surface below the client: routes, keys, bodies, warnings, event streams byte by byte, odd input."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import Iterator

import httpx
import pytest

from octavo.server.run import bind
from tests.server.process import Served, serving

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "say:hi"}]}
KEY, OTHER_KEY = "key-one-long-enough", "key-two-long-enough"


def error_of(answer: httpx.Response) -> dict[str, object]:
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"
    return dict(body["error"])


def events(server: Served, body: object, path: str = "/v1/chat/completions") -> list[bytes]:
    """The stream cut at empty lines."""
    answer = server.post(path, body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content.endswith(b"\n\n")
    return answer.content.split(b"\n\n")[:-1]


def test_a_chat_stream_byte_by_byte(server):
    *data, done = events(server, {**CHAT, "stream": True})
    assert done == b"data: [DONE]"
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in data]
    first, *middle, last = chunks
    common = {"id", "object", "created", "model", "choices", "system_fingerprint"}
    assert all(set(chunk) == common for chunk in chunks)
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in middle)
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert len({chunk["id"] for chunk in chunks}) == len({chunk["created"] for chunk in chunks}) == 1


def test_usage_is_null_on_all_chunks_but_the_last(server):
    *data, _ = events(server, {**CHAT, "stream": True, "stream_options": {"include_usage": True}})
    usages = [json.loads(event.removeprefix(b"data: "))["usage"] for event in data]
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert usages[-1]["total_tokens"] == usages[-1]["prompt_tokens"] + usages[-1]["completion_tokens"]


def test_silence_is_filled_with_comments(server):
    body = {"model": "fake", "prompt": "!slow say:" + "x" * 4, "stream": True}
    assert b": keep-alive" not in events(server, body, "/v1/completions"), "0.05 s per token, 0.1 s allowed"
    with server.client.stream("POST", "/v1/completions", json={**body, "prompt": "!wait"}) as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": keep-alive"
        assert next(lines) == ""
        assert next(lines) == ": keep-alive"
    server.until(lambda health: health["engine"]["running"] == 0)


def test_a_failed_stream_ends_with_an_error_event_and_no_done(server):
    found = events(server, {**CHAT, "messages": [{"role": "user", "content": "!error abc"}], "stream": True})
    assert found[-1].startswith(b'data: {"error":')
    assert b"data: [DONE]" not in found
    found = events(server, {"model": "fake", "prompt": "!error abc", "stream": True}, "/v1/completions")
    assert found[-1].startswith(b'data: {"error":')


def test_unknown_fields_are_named_in_a_header(server):
    for stream in (False, True):
        answer = server.post(
            "/v1/chat/completions", {**CHAT, "stream": stream, "top_a": 1, "verbosity": "low"}
        )
        assert answer.status_code == 200
        assert answer.headers["x-octavo-warning"] == "without effect: top_a, verbosity"
    assert "x-octavo-warning" not in server.post("/v1/chat/completions", CHAT).headers


def test_request_ids_come_back_or_are_made(server):
    made = server.get("/v1/models").headers["x-request-id"]
    assert re.fullmatch(r"req-[0-9a-f]{24}", made)
    given = server.get("/v1/models", headers={"x-request-id": "mine.1-2:3"})
    assert given.headers["x-request-id"] == "mine.1-2:3"
    for bad in ("a b", "x" * 200, "<script>"):
        assert (
            server.get("/v1/models", headers={"x-request-id": bad}).headers["x-request-id"].startswith("req-")
        )


def test_health_says_what_it_knows(server):
    health = server.until(lambda health: "steps" in health["engine"])
    assert health["status"] == "ready"
    assert health["model"] == "fake"
    assert health["engine"]["kv_blocks"] == 100
    assert server.get("/health/ready").json() == {"status": "ready"}
    assert server.get("/health/live").status_code == 200
    assert set(server.get("/version").json()) == {"version"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1", 404, "not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "//v1/models", 404, "not_found"),
        ("GET", "/v1/models/../../health", 404, "model_not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("POST", "/v1/embedding", 404, "not_found"),
    ],
)
def test_the_router_refuses_in_the_same_shape(server, method, path, status, code):
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=20) as raw:
        raw.sendall(
            f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
        )
        head, _, body = b"".join(iter(lambda: raw.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert json.loads(body)["error"]["code"] == code


def test_a_body_must_say_that_it_is_json(server):
    answer = server.post(
        "/v1/completions", content=b'{"prompt": "x"}', headers={"content-type": "text/plain"}
    )
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type")
    answer = server.post(
        "/v1/completions",
        content=b'{"prompt": "say:x"}',
        headers={"content-type": "Application/JSON; charset=utf-8"},
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b'{"prompt": NaN}', b"[" * 100_000])
def test_bodies_that_are_no_requests(server, body):
    answer = server.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_json")


def test_a_body_that_is_too_large_is_refused_announced_or_not(server):
    def parts() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(40):
            yield b"x" * 65536

    headers = {"content-type": "application/json"}
    announced = server.post("/v1/completions", content=b"x" * (2**20 + 1), headers=headers)
    chunked = server.post("/v1/completions", content=parts(), headers=headers)
    for answer in (announced, chunked):
        assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")
        assert answer.headers["x-should-retry"] == "false"
        assert "max_body_bytes" in answer.json()["error"]["message"]


def test_too_many_prompts_at_once_and_token_ids_out_of_range(server):
    answer = server.post("/v1/completions", {"prompt": ["a"] * 513})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "prompt")
    assert "512" in answer.json()["error"]["message"]
    for bad in ([-1], [2**31], [[1], [2**63]]):
        answer = server.post("/v1/completions", {"prompt": bad})
        assert (answer.status_code, error_of(answer)["param"]) == (400, "prompt")


@pytest.mark.parametrize("text", ["\x00", "\ud800", "🙂" * 50, "\u2028", "a\r\nb", '"}\n\ndata: [DONE]\n\n'])
def test_odd_texts_come_back_whole_or_are_refused_by_name(server, text):
    body = json.dumps({"prompt": "say:" + text, "max_tokens": 1000}).encode()
    headers = {"content-type": "application/json"}
    answer = server.post("/v1/completions", content=body, headers=headers)
    if text == "\ud800":
        assert answer.status_code == 400
        return
    assert answer.json()["choices"][0]["text"] == text
    streamed = server.post("/v1/completions", content=body[:-1] + b', "stream": true}', headers=headers)
    events = streamed.content.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-2]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00" * 64,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1 HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * 200_000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_the_server_goes_on(server, junk):
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=20) as raw:
        with contextlib.suppress(OSError):  # it may have hung up on us before the end
            raw.sendall(junk)
            raw.shutdown(socket.SHUT_WR)
        answer = b""
        while part := _received(raw):
            answer += part
    assert answer == b"" or answer.split()[1][:1] == b"4"
    assert server.post("/v1/chat/completions", CHAT).status_code == 200


def _received(raw: socket.socket) -> bytes:
    try:
        return raw.recv(65536)
    except ConnectionResetError:
        return b""


def test_a_body_cut_off_leaves_nothing_behind(server):
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=20) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b'content-length: 100\r\n\r\n{"prompt": '
        )
    assert server.until(lambda health: health["requests"] == 0)["status"] == "ready"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["!forever", "!wait"])
def test_a_client_that_leaves_cancels_its_request(server, stream, prompt):
    before = server.until(lambda health: health["engine"]["running"] == 0)["engine"]["waiting"]
    body = json.dumps({"prompt": prompt, "max_tokens": 100_000, "stream": stream}).encode()
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=20) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        if stream:
            assert raw.recv(100).startswith(b"HTTP/1.1 200")
        server.until(lambda health: health["engine"]["running"] == 1)
    after = server.until(lambda health: health["engine"]["running"] == 0)
    assert after["engine"]["waiting"] == before + 1, "the fake engine counts cancels there"
    assert after["requests"] == 0


def test_a_slow_reader_gets_everything_and_stops_nobody_else(server):
    text = "abcdefghij" * 300
    body = json.dumps({"prompt": "say:" + text, "max_tokens": 4000, "stream": True}).encode()
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(20)
        host, port = server.url.removeprefix("http://").split(":")
        raw.connect((host, int(port)))
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            b"content-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        assert server.post("/v1/chat/completions", CHAT).json()["choices"][0]["message"]["content"] == "hi"
        got = b"".join(iter(lambda: raw.recv(2000), b""))
    found = re.findall(rb'"text":"([a-j]*)"', got)
    assert b"".join(found).decode() == text
    assert b"data: [DONE]" in got


@pytest.fixture(scope="module")
def locked(folder) -> Iterator[Served]:
    """A server that wants keys, and answers to another name."""
    arguments = [str(folder), "--served-model-name", "org/nice", "--max-queued-requests", "2"]
    with serving([*arguments, "--api-key", f"{KEY},{OTHER_KEY}"]) as served:
        yield served


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong-key"},
        {"authorization": "Bearer"},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"x-api-key": "nö".encode()},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/org/nice", "/version", "/nowhere"])
def test_every_route_but_health_wants_a_key(locked, headers, path):
    answer = locked.get(path, headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert KEY not in answer.text
    assert locked.post("/v1/chat/completions", CHAT, headers=headers).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {OTHER_KEY}"}, {"x-api-key": KEY}],
)
def test_any_of_the_keys_opens(locked, headers):
    assert locked.get("/v1/models", headers=headers).json()["data"][0]["id"] == "org/nice"
    assert locked.get("/v1/models/org/nice", headers=headers).status_code == 200
    for path in ("/health", "/health/live", "/health/ready"):
        assert locked.get(path).status_code == 200


def test_callers_with_a_key_share_no_cache_with_the_public(locked, server):
    ask = {"prompt": "say:x"}
    private = locked.post("/v1/completions", ask, headers={"x-api-key": KEY}).json()
    public = server.post("/v1/completions", ask).json()
    salted = server.post("/v1/completions", {**ask, "cache_salt": "mine"}).json()
    cached = [one["usage"]["prompt_tokens_details"]["cached_tokens"] for one in (private, public, salted)]
    assert cached == [1, 3, 1], "the fake engine says 3 for the public namespace"


def test_a_full_queue_refuses_and_says_when_to_come_back(locked):
    headers = {"x-api-key": KEY}
    waits = {"method": "POST", "url": "/v1/completions", "json": {"prompt": "!wait", "stream": True}}
    with (
        locked.client.stream(**waits, headers=headers),
        locked.client.stream(**waits, headers=headers),
    ):
        locked.until(lambda health: health["engine"].get("running") == 2)
        answer = locked.post("/v1/completions", {"prompt": "x"}, headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (429, "overloaded")
        assert answer.headers["retry-after"] == "2", "one place at half a request per second"
    locked.until(lambda health: health["requests"] == 0)
    assert locked.post("/v1/completions", {"prompt": "say:x"}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("template", "hint"),
    [(None, "no chat template"), ("{% for %}", "not valid"), ("{{ 1 / 0 }}", "cannot render")],
)
def test_a_model_that_cannot_chat_says_so_and_completes(folder, tmp_path, template, hint):
    config = {"bos_token": "<bos>", "eos_token": "<end>"} | (
        {} if template is None else {"chat_template": template}
    )
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with serving([str(tmp_path)]) as served:
        answer = served.post("/v1/chat/completions", CHAT)
        assert (answer.status_code, error_of(answer)["param"]) == (400, "messages")
        assert hint in answer.json()["error"]["message"]
        completed = served.post("/v1/completions", {"prompt": "say:hi"})
        assert completed.json()["choices"][0]["text"] == "hi"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_is_written_does_not_wait_for_acknowledgements(host):
    """Nagle's algorithm holds back the second part of an answer until the first is acknowledged, up to 40 ms later."""

    async def scene() -> int:
        accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        async with await asyncio.start_server(
            lambda _, writer: accepted.put_nowait(writer), sock=bind(host, 0)
        ) as made:
            port = made.sockets[0].getsockname()[1]
            _, client = await asyncio.open_connection(host, port)
            writer = await accepted.get()
            nodelay = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            client.close()
            writer.close()
            return int(nodelay)

    assert asyncio.run(scene()) != 0
