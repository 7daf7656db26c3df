"""The operator's listener: what it does, who may use it, what it logs, and that the public port knows nothing of it."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.config import KNOBS, ServerConfig
from octavo.errors import ConfigError
from tests.server.process import Served, serving
from tests.server.test_faults import children, is_alive
from tests.server.test_http import error_of

KEY, ADMIN_KEY = "a-caller's-key", "the-operator's-own-key"
CALLS = [
    ("POST", "/admin/drain"),
    ("POST", "/admin/sleep"),
    ("POST", "/admin/wake"),
    ("POST", "/admin/reset_prefix_cache"),
    ("GET", "/admin/config"),
]


@contextmanager
def operated(folder: Path, where: Path, *more: str) -> Iterator[tuple[Served, httpx.Client]]:
    """A server with an operator's socket, and a client of it."""
    path = where / "admin.sock"
    arguments = [str(folder), "--api-key", KEY, "--admin-socket", str(path), "--admin-key", ADMIN_KEY, *more]
    with serving(arguments) as served:
        served.client.headers["authorization"] = f"Bearer {KEY}"
        transport = httpx.HTTPTransport(uds=str(path))
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        with httpx.Client(transport=transport, base_url="http://admin", headers=headers, timeout=60) as admin:
            yield served, admin


@pytest.fixture(scope="module")
def both(folder, tmp_path_factory) -> Iterator[tuple[Served, httpx.Client]]:
    with operated(folder, tmp_path_factory.mktemp("admin")) as made:
        yield made


def log_of(served: Served) -> str:
    """What the server has written, once it has been told to end."""
    served.process.terminate()
    assert served.process.stderr is not None
    written = served.process.stderr.read()
    served.process.wait(20)
    return written


def test_sleep_ends_the_engine_and_wake_starts_another(both):
    served, admin = both
    (engine,) = children(served.process.pid)
    slept = admin.post("/admin/sleep")
    assert slept.json()["status"] == "sleeping"
    assert not is_alive(engine)
    refused = served.post("/v1/completions", {"prompt": "x"})
    assert (refused.status_code, error_of(refused)["code"]) == (503, "no_ready_replica")
    assert served.get("/health/ready").status_code == 503
    assert served.health()["status"] == "sleeping"
    assert served.get("/health/live").status_code == 200
    assert admin.post("/admin/sleep").status_code == 503
    woken = admin.post("/admin/wake")
    assert woken.json()["status"] == "ready"
    (other,) = children(served.process.pid)
    assert other != engine
    assert served.post("/v1/completions", {"prompt": "say:x"}).json()["choices"][0]["text"] == "x"
    assert admin.post("/admin/wake").status_code == 409


def test_waking_while_it_falls_asleep_is_no_death_of_the_engine(folder, tmp_path):
    with operated(folder, tmp_path) as (served, admin), ThreadPoolExecutor(3) as pool:
        gate = tmp_path / "open"
        waiting = pool.submit(served.post, "/v1/completions", {"prompt": f"!gate={gate} say:done"})
        served.until(lambda health: health["requests"] == 1)
        sleeping = pool.submit(admin.post, "/admin/sleep")
        served.until(lambda health: health["status"] == "sleeping")
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(tmp_path / "admin.sock")),
            base_url="http://admin",
            headers=admin.headers,
            timeout=60,
        ) as other:
            waking = pool.submit(other.post, "/admin/wake")
            served.until(lambda health: health["status"] == "restarting")
            gate.touch()
            assert waking.result().json()["status"] == "ready"
        assert sleeping.result().status_code == 200
        assert waiting.result().json()["choices"][0]["text"] == "done"
        assert served.post("/v1/completions", {"prompt": "say:x"}).json()["choices"][0]["text"] == "x"
        assert "engine_died" not in log_of(served)


def test_the_prefix_cache_is_reset_by_the_engine(both):
    _, admin = both
    assert admin.post("/admin/reset_prefix_cache").json() == {"blocks_freed": 7}, "as the fake engine says"


def test_the_settings_are_shown_and_the_secrets_are_not(both):
    _, admin = both
    answer = admin.get("/admin/config")
    settings = answer.json()["settings"]
    assert set(settings) == {knob.name for knob in KNOBS}
    assert settings["api_key"] == settings["admin_key"] == "set"
    assert settings["max_queued_requests"] == 512
    assert KEY not in answer.text
    assert ADMIN_KEY not in answer.text


@pytest.mark.parametrize(("method", "path"), [*CALLS, ("GET", "/admin/nowhere"), ("GET", "/")])
@pytest.mark.parametrize(
    "header", ["", f"Bearer {KEY}", f"Bearer {ADMIN_KEY}x", f"Basic {ADMIN_KEY}", ADMIN_KEY, "Bearer"]
)
def test_nobody_without_the_operators_key_learns_anything(both, method, path, header):
    _, admin = both
    answer = admin.request(method, path, headers={"authorization": header})
    assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_other_methods_and_paths_are_refused(both, method, path):
    _, admin = both
    other = "GET" if method == "POST" else "POST"
    assert admin.request(other, path).status_code == 405
    assert admin.request(method, path + "/").status_code == 404
    assert admin.get("/v1/models").status_code == 404


TRICKS = [
    "/admin/config",
    "/admin",
    "//admin/config",
    "///admin/config",
    "/./admin/config",
    "/v1/../admin/config",
    "/v1/%2e%2e/admin/config",
    "/v1/..%2fadmin%2fconfig",
    "/%61dmin/config",
    "/admin%2fconfig",
    "/admin/config/",
    "/admin/config;x=1",
    "/admin/config?x",
    "/admin\\config",
    "/v1/models/../../admin/config",
    "/health/../admin/config",
    "/health/live/../../admin/config",
    "http://admin/admin/config",
    "/ADMIN/config",
    "/admin/drain",
    "/v1/../admin/drain",
    "/%2fadmin/drain",
    "/admin/sleep",
]


METHODS = ["GET", "POST", "HEAD", "PUT", "OPTIONS", "DELETE", "TRACE", "ADMIN"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key", [KEY, ADMIN_KEY])
def test_the_public_port_knows_nothing_of_it(both, method, key):
    served, _ = both
    (engine,) = children(served.process.pid)
    for path in TRICKS:
        head, body = raw(served, method, path, key)
        status = int(head.split()[1])
        if key == ADMIN_KEY:
            assert status == 401, (path, head)
        else:
            assert status in (404, 405), (path, head)
        if body:
            code = json.loads(body)["error"]["code"]
            assert code in ("not_found", "model_not_found", "method_not_allowed", "invalid_api_key"), path
    assert children(served.process.pid) == [engine]
    assert served.health()["status"] == "ready"


def raw(served: Served, method: str, path: str, key: str) -> tuple[bytes, bytes]:
    """Each method comes from an address of its own: wrong keys of one address have to wait."""
    source = (f"127.0.1.{METHODS.index(method) + 1}", 0)
    where = served.url.removeprefix("http://").split(":")
    with socket.create_connection(where, timeout=20, source_address=source) as one:
        one.sendall(
            f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\ncontent-length: 0\r\n"
            "connection: close\r\n\r\n".encode()
        )
        head, _, body = b"".join(iter(lambda: one.recv(65536), b"")).partition(b"\r\n\r\n")
    return head, body


def test_drain_ends_what_runs_and_then_the_server(folder, tmp_path):
    gate = tmp_path / "gate"
    with (
        operated(folder, tmp_path) as (served, admin),
        served.client.stream(
            "POST", "/v1/completions", json={"prompt": f"!gate={gate} say:whole", "stream": True}
        ) as answer,
    ):
        drained = admin.post("/admin/drain")
        assert (drained.status_code, drained.json()["requests"]) == (202, 1)
        served.until(lambda health: health["status"] == "draining")
        refused = served.post("/v1/completions", {"prompt": "x"})
        assert (refused.status_code, error_of(refused)["code"]) == (503, "shutting_down")
        gate.touch()
        lines = list(answer.iter_lines())
        assert "data: [DONE]" in lines
        served.process.wait(20)
    assert served.process.returncode == 0
    assert not (tmp_path / "admin.sock").exists()


def test_every_call_is_in_the_log_and_no_key_is(folder, tmp_path):
    with operated(folder, tmp_path) as (served, admin):
        admin.get("/admin/config")
        admin.get("/admin/config", headers={"authorization": "Bearer wrong-wrong-wrong"})
        admin.post("/admin/reset_prefix_cache")
        admin.delete("/admin/odd%0apath")
        written = [line for line in log_of(served).splitlines() if " admin_call " in line]
    found = [(line.split("path=")[1].split()[0], line.split("status=")[1].split()[0]) for line in written]
    assert found[:3] == [
        ("/admin/config", "200"),
        ("/admin/config", "401"),
        ("/admin/reset_prefix_cache", "200"),
    ]
    assert len(found) == 4
    assert all(secret not in line for line in written for secret in (KEY, ADMIN_KEY, "wrong-wrong-wrong"))


def test_the_socket_is_for_its_owner_alone_and_a_dead_one_is_replaced(folder, tmp_path):
    path = tmp_path / "admin.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with operated(folder, tmp_path) as (_, admin):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert admin.get("/admin/config").status_code == 200


def test_a_tcp_port_of_its_own(folder):
    port = free_port()
    with serving([str(folder), "--admin-port", str(port), "--admin-key", ADMIN_KEY]):
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        answer = httpx.get(f"http://127.0.0.1:{port}/admin/config", headers=headers)
        assert answer.json()["settings"]["admin_host"] == "127.0.0.1"
        assert httpx.get(f"http://127.0.0.1:{port}/admin/config").status_code == 401


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"admin_port": 9000}, "need an admin_key"),
        ({"admin_socket": "/tmp/x"}, "need an admin_key"),
        ({"admin_port": 70000, "admin_key": ADMIN_KEY}, "admin_port"),
        ({"admin_port": 9000, "admin_key": "short"}, "at least 16"),
        ({"admin_port": 9000, "admin_key": ADMIN_KEY, "api_key": (ADMIN_KEY,)}, "must not be one of"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServerConfig(**settings)


def test_the_log_is_json_where_that_is_asked_for(folder, tmp_path):
    with operated(folder, tmp_path, "--log-format", "json") as (served, admin):
        admin.get("/admin/config")
        events = [json.loads(line) for line in log_of(served).splitlines() if line.startswith("{")]
    (call,) = [event for event in events if event["event"] == "admin_call"]
    assert (call["path"], call["status"], call["level"]) == ("/admin/config", 200, "info")
    assert "draining" in {event["event"] for event in events}
