"""Tenants of one server: whose key, on what terms, and that one's limits are its own."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.server.process import Served, serving
from tests.server.test_http import error_of
from tests.server.test_keyring import tenant_row

SYSTEM = "You are the operator's own assistant, and you are brief."
TEXT = "The following is public, as everybody knows. "
FILE = f"""
[[public_prefix]]
system = "{SYSTEM}"

[[public_prefix]]
text = "{TEXT}"

{tenant_row("plain", "key-of-plain")}
{tenant_row("rated", "key-of-rated", more="requests_per_minute = 3")}
{tenant_row("tokens", "key-of-tokens", more="tokens_per_minute = 100")}
{tenant_row("few", "key-of-few", more="max_concurrency = 2")}
{tenant_row("large", "key-of-large", "other-key-of-large", more="share = 4.0" + chr(10) + "priority = 5")}
{tenant_row("poor", "key-of-poor", more="monthly_tokens = 30")}
{tenant_row("gone", "key-of-gone", more="suspended = true")}
{tenant_row("hasty", "key-of-hasty", more="deadline_ms = 300")}
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def server(folder, keys) -> Iterator[Served]:
    with serving([str(folder), "--keys", str(keys)]) as served:
        yield served


def ask(
    served: Served, key: str, prompt: str = "say:x", path: str = "/v1/completions", **more
) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": prompt}]} if "chat" in path else {"prompt": prompt}
    return served.post(path, {**body, **more}, headers={"authorization": f"Bearer {key}"})


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


@contextlib.contextmanager
def waiting(served: Served, key: str, count: int) -> Iterator[None]:
    """So many requests of a tenant that run until the block ends."""
    running = []
    with ThreadPoolExecutor(count) as pool, contextlib.ExitStack() as open_streams:

        def begin(_: int) -> None:
            headers = {"authorization": f"Bearer {key}"}
            stream = served.client.stream(
                "POST", "/v1/completions", json={"prompt": "!forever !slow", "stream": True}, headers=headers
            )
            answer = open_streams.enter_context(stream)
            chunks = answer.iter_bytes()
            next(chunks)
            running.append(chunks)  # who lets go of it lets go of the stream

        list(pool.map(begin, range(count)))
        yield


def test_a_wrong_key_is_refused_and_a_right_one_is_its_tenant(server):
    assert ask(server, "no-key-at-all").status_code == 401
    assert said(ask(server, "key-of-plain", "!terms")) == "plain 1 0 0"


def test_shares_and_priorities_reach_the_engine(server):
    assert said(ask(server, "key-of-large", "!terms")) == "large 0.25 5 0"
    assert said(ask(server, "other-key-of-large", "!terms", priority=-7)) == "large 0.25 5 0"
    assert said(ask(server, "key-of-large", "!terms", priority=9)) == "large 0.25 9 0"


def test_a_rate_of_requests(server):
    for left in (2, 1, 0):
        answer = ask(server, "key-of-rated")
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
    refused = ask(server, "key-of-rated")
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-ratelimit-limit-requests" not in ask(server, "key-of-plain").headers
    looked = server.get("/v1/models", headers={"authorization": "Bearer key-of-rated"})
    assert looked.status_code == 200


def test_a_rate_of_tokens(server):
    first = ask(server, "key-of-tokens", "x" * 80 + "say:" + "y" * 10)
    assert first.status_code == 200
    refused = ask(server, "key-of-tokens", "z" * 60)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
    assert "tokens_per_minute" in error_of(refused)["message"]
    assert int(refused.headers["retry-after"]) >= 20
    assert refused.headers["x-ratelimit-limit-tokens"] == "100"


def test_requests_at_once(server):
    with waiting(server, "key-of-few", 2):
        refused = ask(server, "key-of-few")
        assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
        assert "max_concurrency" in error_of(refused)["message"]
        assert said(ask(server, "key-of-plain")) == "x"
    deadline_s = time.monotonic() + 10
    while ask(server, "key-of-few").status_code != 200:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_a_spent_month(server):
    codes = [ask(server, "key-of-poor", "12345678say:1234").status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    refused = ask(server, "key-of-poor")
    assert error_of(refused)["code"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"


def test_the_suspended(server):
    refused = ask(server, "key-of-gone")
    assert (refused.status_code, error_of(refused)["code"]) == (403, "permission_denied")


def test_public_prefixes_are_counted_and_a_salt_keeps_out_of_them(server):
    def public(**body) -> int:
        headers = {"authorization": "Bearer key-of-plain"}
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        choice = server.post(path, body, headers=headers).json()["choices"][0]
        text = choice["message"]["content"] if "messages" in body else choice["text"]
        return int(text.split()[-1])

    user = {"role": "user", "content": "!terms"}
    system = {"role": "system", "content": SYSTEM}
    # <bos><system> text <end><user>, one token per byte of text
    assert public(messages=[system, user]) == 2 + len(SYSTEM) + 2
    assert public(messages=[system, user], cache_salt="mine") == 0
    assert public(messages=[{"role": "system", "content": SYSTEM[:10] + "!"}, user]) == 2 + 10
    assert public(prompt=TEXT + "!terms") == len(TEXT)
    assert public(prompt=TEXT[:20] + "!terms") == 20


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_late_is_given_up(server, stream):
    began_s = time.monotonic()
    answer = ask(server, "key-of-plain", "!forever !slow", deadline_ms=300, stream=stream, max_tokens=4000)
    assert 0.25 < time.monotonic() - began_s < 5
    if stream:
        assert answer.status_code == 200
        assert '"code":"deadline_exceeded"' in answer.text.splitlines()[-2]
        assert "[DONE]" not in answer.text
    else:
        assert (answer.status_code, error_of(answer)["code"]) == (504, "deadline_exceeded")
        assert answer.headers["x-should-retry"] == "false"
    server.until(lambda health: health["requests"] == 0)


def test_a_tenants_own_deadline_bounds_what_a_request_asks_for(server):
    answer = ask(server, "key-of-hasty", "!wait", deadline_ms=60_000)
    assert (answer.status_code, error_of(answer)["code"]) == (504, "deadline_exceeded")
    message = server.post(
        "/v1/messages",
        {"max_tokens": 9, "messages": [{"role": "user", "content": "!wait"}]},
        headers={"x-api-key": "key-of-hasty"},
    )
    assert (message.status_code, message.json()["error"]["type"]) == (504, "timeout_error")


@pytest.mark.parametrize("value", [0, -1, 10**12])
def test_an_absurd_deadline_is_refused(server, value):
    refused = ask(server, "key-of-plain", deadline_ms=value)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "deadline_ms")


def test_usage_is_kept_across_servers_and_the_month_goes_on(folder, keys, tmp_path):
    arguments = [str(folder), "--keys", str(keys), "--data-dir", str(tmp_path)]
    with serving(arguments) as served:
        assert ask(served, "key-of-poor", "12345678say:1234").status_code == 200
        assert ask(served, "key-of-plain", "abcsay:abc").status_code == 200
    with contextlib.closing(sqlite3.connect(tmp_path / "octavo.db")) as store:
        rows = store.execute(
            "select tenant_id, requests, input_tokens, output_tokens, weighted_tokens from usage"
        )
        found = {row[0]: row[1:] for row in rows}
    assert found["poor"] == (1, 16, 4, 20.0)
    assert found["plain"] == (1, 10, 3, 13.0)
    with serving(arguments) as served:
        assert ask(served, "key-of-poor", "12345678say:1234").status_code == 200
        assert ask(served, "key-of-poor", "12345678say:1234").status_code == 429


def test_keys_are_read_again_when_told_and_a_wrong_file_changes_nothing(folder, tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text(tenant_row("one", "first-key"))
    with serving([str(folder), "--keys", str(path)]) as served:

        def reaches(key: str) -> bool:
            return ask(served, key).status_code == 200

        def after_reload(key: str, expected: bool) -> None:
            served.process.send_signal(signal.SIGHUP)
            deadline_s = time.monotonic() + 10
            while reaches(key) != expected:
                assert time.monotonic() < deadline_s
                time.sleep(0.02)

        assert reaches("first-key")
        assert not reaches("second-key")
        path.write_text(tenant_row("one", "first-key", "second-key"))
        after_reload("second-key", True)
        path.write_text("[[tenant]]\nid = 'one'\nkeys = ['second-key']")
        served.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert reaches("first-key")
        assert reaches("second-key")
        path.write_text(tenant_row("one", "second-key"))
        after_reload("first-key", False)


def test_a_wrong_file_is_told_before_anything_is_loaded(folder, tmp_path):
    import subprocess

    from tests.server.process import FAKE, ROOT

    path = tmp_path / "keys.toml"
    path.write_text("[[tenant]]\nid = 'a'\nkeys = ['secret-key-itself']")
    done = subprocess.run(
        [*FAKE, str(folder), "--keys", str(path), "--port", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "keys.toml: [[tenant]] 1" in done.stderr
    assert "secret-key-itself" not in done.stderr
