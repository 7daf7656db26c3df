"""Requests that are sent again under their key: one answer, read by whoever asks."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from octavo.server import replays
from octavo.server.replays import Replay, Replays
from octavo.server.tenants import Caller, Tenant
from tests.server.process import Served, serving
from tests.server.test_http import error_of

PATH = "/v1/completions"
KEYS = ("first-tenants-key", "second-tenants-key")


@pytest.fixture(scope="module")
def served(folder) -> Iterator[Served]:
    with serving([str(folder), "--api-key", ",".join(KEYS), "--keep-alive-s", "0.1"]) as made:
        yield made


def ask(
    served: Served, key: str | None, prompt: str, tenant: str = KEYS[0], path: str = PATH, **more
) -> httpx.Response:
    headers = {"authorization": f"Bearer {tenant}"} | ({"idempotency-key": key} if key else {})
    body = {"messages": [{"role": "user", "content": prompt}]} if "chat" in path else {"prompt": prompt}
    return served.post(path, {**body, **more}, headers=headers)


@pytest.mark.parametrize("path", [PATH, "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_same_request_gets_the_same_bytes(served, path, stream):
    key = f"same-{path}-{stream}"
    first = ask(served, key, "say:hello", path=path, stream=stream)
    again = ask(served, key, "say:hello", path=path, stream=stream)
    assert first.status_code == again.status_code == 200
    assert first.content == again.content
    assert first.headers["content-type"] == again.headers["content-type"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    if stream:
        assert again.text.rstrip().endswith("data: [DONE]")
    other = ask(served, key + "-other", "say:hello", path=path, stream=stream)
    assert other.content != first.content


def test_another_body_under_the_key_is_a_conflict(served):
    assert ask(served, "reused", "say:a").status_code == 200
    refused = ask(served, "reused", "say:b")
    assert (refused.status_code, error_of(refused)["code"]) == (409, "conflict")
    assert refused.headers["x-should-retry"] == "false"
    other_path = ask(served, "reused", "say:a", path="/v1/chat/completions")
    assert other_path.status_code == 409
    assert ask(served, "reused", "say:a").headers["idempotent-replayed"] == "true"


def test_another_tenant_has_keys_of_its_own(served):
    mine = ask(served, "shared-word", "say:mine")
    other = ask(served, "shared-word", "say:other", tenant=KEYS[1])
    assert other.status_code == 200
    assert "idempotent-replayed" not in other.headers
    assert mine.content != other.content


def test_a_refusal_is_not_kept(served):
    assert ask(served, "refused", "!refuse").status_code == 400
    assert ask(served, "refused", "say:now").status_code == 200


def test_a_failure_is_not_kept_and_no_clean_end_is_shown(served):
    failed = ask(served, "failed", "!error", stream=True)
    assert "engine_error" in failed.text
    assert "[DONE]" not in failed.text
    assert "idempotent-replayed" not in ask(served, "failed", "!error", stream=True).headers


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é"])
def test_a_key_that_is_none_is_refused(served, key):
    headers = [(b"authorization", f"Bearer {KEYS[0]}".encode()), (b"idempotency-key", key.encode("latin-1"))]
    refused = served.client.post(PATH, json={"prompt": "x"}, headers=headers)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "idempotency-key")


@pytest.mark.parametrize("stream", [False, True])
def test_those_who_come_while_it_runs_read_along(served, stream):
    prompt = "!slow say:" + "abcdefghij"
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: ask(served, f"along-{stream}", prompt, stream=stream), range(5)))
    without_pings = {
        answer.text.replace(": keep-alive\n\n", "").replace(": ping\n\n", "") for answer in answers
    }
    assert len(without_pings) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_who_comes_back_finds_the_answer_going_on(served, stream):
    """The client leaves in the middle; the answer goes on without it and is there when it asks again."""
    key, prompt = f"back-{stream}", "!slow say:" + "abcdefghijklmnop"
    headers = {"authorization": f"Bearer {KEYS[0]}", "idempotency-key": key}
    body = {"prompt": prompt, "stream": stream}
    if stream:
        with served.client.stream("POST", PATH, json=body, headers=headers) as left:
            next(left.iter_bytes())
    else:
        with pytest.raises(httpx.TimeoutException):
            served.client.post(PATH, json=body, headers=headers, timeout=0.3)
    time.sleep(0.2)
    again = ask(served, key, prompt, stream=stream)
    assert again.headers["idempotent-replayed"] == "true"
    assert ("[DONE]" in again.text) if stream else (again.json()["choices"][0]["text"] == "abcdefghijklmnop")
    served.until(lambda health: health["requests"] == 0)


def test_the_official_client_gets_it_too(served):
    with openai.OpenAI(base_url=served.url + "/v1", api_key=KEYS[0], max_retries=0) as client:
        texts = [
            client.completions.create(
                model="fake", prompt="say:twice", extra_headers={"Idempotency-Key": "official"}
            ).id
            for _ in range(2)
        ]
    assert texts[0] == texts[1]


def test_a_server_that_was_killed_draws_the_same_seed_for_the_key(folder):
    """The real seeds: the fake engine does not draw, so what it was sent is looked at."""
    found = []
    for _ in range(2):
        with serving([str(folder), "--api-key", ",".join(KEYS)]) as served:
            ask(served, None, "say:x")
            found.append([said(ask(served, key, "!seed")) for key in ("seeded", "other", None)])
            os.kill(served.process.pid, signal.SIGKILL)
            served.process.wait()
    assert found[0][:2] == found[1][:2]
    assert len(set(found[0])) == 3


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def ended(num_bytes: int) -> Replay:
    made = Replay(b"digest")
    made.begin({}, is_stream=False)
    made.add(bytes(num_bytes))
    made.end()
    return made


def test_the_oldest_are_given_up_for_room_and_all_for_age(monkeypatch):
    kept = Replays()
    caller = Caller(tenant=Tenant(tenant_id="a"))
    third = replays.MAX_BYTES // 3
    for name in "abcd":
        kept._known["a", name] = ended(third)
    assert kept.find(caller, "a", b"digest") is None
    assert kept.find(caller, "b", b"digest") is not None
    monkeypatch.setattr(replays, "KEEP_S", -1.0)
    assert kept.find(caller, "b", b"digest") is None
    assert not kept._known


@pytest.mark.parametrize("comes_back", [False, True])
def test_an_answer_nobody_reads_is_given_up_after_a_while(monkeypatch, comes_back):
    monkeypatch.setattr(replays, "GRACE_S", 0.05)
    abandoned = []

    class Abandoned:
        def abandon(self) -> None:
            abandoned.append(True)

    async def story() -> None:
        replay = Replay(b"")
        replay.runs_as(Abandoned())
        with replay.client():
            await asyncio.sleep(0.1)
        if comes_back:
            with replay.client():
                await asyncio.sleep(0.1)
                assert not abandoned
                replay.end()
        await asyncio.sleep(0.1)

    asyncio.run(story())
    assert bool(abandoned) is not comes_back
