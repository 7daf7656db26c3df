"""Engines that die, freeze or are replaced while they answer: clients see a pause and the same answer.

The oracle is the answer the rule-following engine of the tests gives undisturbed; it checks by itself that what it
is told of an answer begun elsewhere is what it would have said.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.process import Served, serving
from tests.server.test_faults import children, is_alive
from tests.server.test_metrics import samples, summed

TEXT = "the quick brown fox jumps over"


def events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """The objects of a stream; fails where it ends without saying so."""
    for line in answer.iter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
    raise AssertionError("a clean close without a terminal event")


def chat(prompt: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], **fields}


def streamed(
    served: Served, body: dict[str, Any], after: dict[int, Callable[[], object]] | None = None
) -> tuple[dict[int, str], list[Any]]:
    """Texts and finish reasons by choice; `after` so many events something is done."""
    texts: dict[int, str] = {}
    reasons: list[Any] = []
    with served.client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200, answer.read()
        for number, event in enumerate(events(answer)):
            assert "error" not in event, event
            for choice in event["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + (
                    choice["delta"].get("content") or ""
                )
                if choice["finish_reason"]:
                    reasons.append((choice["index"], choice["finish_reason"], choice.get("stop_reason")))
            if after and number in after:
                after[number]()
    return texts, sorted(reasons)


def kill_engines(served: Served) -> None:
    for pid in children(served.process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


ASKED = {
    "one": chat(f"!slow say:{TEXT}"),
    "three": chat(f"!slow say:{TEXT}", n=3, max_tokens=20),
    "stop text over several tokens": chat(f"!slow say:{TEXT}", stop=["x jum"]),
    "with numbers": chat(f"!slow say:{TEXT}", stream_options={"include_usage": True}),
}


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    """One server for the tests that kill its engine and wait for the next."""
    with serving([str(folder)]) as made:
        yield made


@pytest.mark.parametrize("asked", ASKED)
def test_a_stream_goes_on_where_the_dead_engine_broke_off(served, asked):
    wanted = streamed(served, ASKED[asked])
    for cut in (0, 1, 4, 15):
        restarts = served.until(lambda health: health["status"] == "ready")["engine"]["restarts"]
        assert streamed(served, ASKED[asked], {cut: lambda: kill_engines(served)}) == wanted
        health = served.until(lambda health: health["requests"] == 0 and health["status"] == "ready")
        assert health["engine"]["restarts"] == restarts + 1
    assert wanted[0][0] in (TEXT, TEXT.partition("x jum")[0], TEXT[:20])


@pytest.mark.parametrize("fields", [{}, {"n": 2, "best_of": 3}, {"echo": True, "logprobs": 1}])
def test_an_answer_in_one_piece_is_the_same_too(served, fields):
    body = {"prompt": f"!slow say:{TEXT}", **fields}
    restarts = served.until(lambda health: health["status"] == "ready")["engine"]["restarts"]
    wanted = served.post("/v1/completions", body).json()
    killing = threading.Timer(0.4, kill_engines, [served])
    killing.start()
    got = served.post("/v1/completions", body).json()
    killing.join()
    assert (got["choices"], got["usage"]) == (wanted["choices"], wanted["usage"])
    assert served.until(lambda health: health["status"] == "ready")["engine"]["restarts"] == restarts + 1


def test_with_two_engines_the_other_one_goes_on_at_once(folder):
    with serving([str(folder), "--engines", "2"]) as served:
        pids = {int(served.post("/v1/completions", {"prompt": "!pid"}).json()["choices"][0]["text"])}
        assert len(children(served.process.pid)) == 2
        texts, _ = streamed(served, chat(f"!slow say:{TEXT}"), {5: lambda: kill_one(served)})
        assert texts == {0: TEXT}
        health = served.until(lambda health: all(one["status"] == "ready" for one in health["engines"]))
        assert len(health["engines"]) == 2
        assert pids
        found = samples(served)
        assert summed(found, "octavo_gateway_resume_gap_seconds_count") == 1
        assert 0 < summed(found, "octavo_gateway_resume_gap_seconds_sum") < 60


def kill_one(served: Served) -> None:
    """The engine that has something to do: processes are known by the epoch they were started with."""
    (busy,) = [one["epoch"] for one in served.health()["engines"] if one["requests"]]
    for pid in children(served.process.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if int(words[words.index(b"--epoch") + 1]) == busy:
            os.kill(pid, signal.SIGKILL)


def test_requests_are_spread_over_engines_and_a_known_beginning_finds_its_own(folder):
    with serving([str(folder), "--engines", "2"]) as served:

        def pid(prompt: str) -> int:
            return int(served.post("/v1/completions", {"prompt": prompt}).json()["choices"][0]["text"])

        endless = {"prompt": "!forever", "stream": True, "max_tokens": 10**6}
        long = "!pid " + "once upon a time " * 20
        first = pid(long)
        lines: list[Iterator[str]] = []
        with contextlib.ExitStack() as busy:
            for _ in range(3):
                answer = busy.enter_context(served.client.stream("POST", "/v1/completions", json=endless))
                lines.append(answer.iter_lines())
                next(lines[-1])
            assert {one["requests"] for one in served.health()["engines"]} == {1, 2}
            assert {pid(long + str(i)) for i in range(3)} == {first}, (
                "340 tokens saved are worth some company"
            )


def test_a_stopped_engine_is_found_out_and_what_it_says_later_is_nobodys(folder, tmp_path):
    with serving([str(folder)]) as served:
        (engine,) = children(served.process.pid)
        got = served.post("/v1/completions", {"prompt": f"!freeze={tmp_path}/frozen say:abc"})
        assert got.json()["choices"][0]["text"] == "abc"
        assert not is_alive(engine)
        assert "said nothing for" in served.health()["engine"]["last_failure"]


def test_an_engine_that_makes_no_steps_is_found_out_too(folder):
    with serving([str(folder)]) as served:
        served.post("/v1/completions", {"prompt": "say:warm"})
        got = served.post("/v1/completions", {"prompt": "!hang"}, timeout=90)
        assert got.json()["error"]["code"] == "request_quarantined"
        assert "made no step for" in got.json()["error"]["message"]


def test_bystanders_of_a_crash_are_none_the_worse(folder):
    """Everybody sees both crashes; run one by one, only the culprit's own run crashes again."""
    with serving([str(folder)]) as served:
        results: dict[str, httpx.Response] = {}

        def send(name: str, prompt: str) -> None:
            results[name] = httpx.post(f"{served.url}/v1/completions", json={"prompt": prompt}, timeout=60)

        prompts = {f"good {i}": f"!slow say:{TEXT[:12]}{i}" for i in range(6)} | {
            "bad": "!slow !die say:abcdef"
        }
        threads = [threading.Thread(target=send, args=pair) for pair in prompts.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert results["bad"].json()["error"]["code"] == "request_quarantined"
        for i in range(6):
            assert results[f"good {i}"].json()["choices"][0]["text"] == f"{TEXT[:12]}{i}"


def test_what_is_held_too_long_is_refused_in_so_many_words():
    with serving(["swapped", "--hold-s", "1.5"]) as served:
        with served.client.stream(
            "POST", "/v1/completions", json={"prompt": [1, 2], "stream": True, "max_tokens": 3000}
        ) as answer:
            kill_engines(served)
            lines = [line for line in answer.iter_lines() if line]
        if "[DONE]" not in lines[-1]:
            assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "no_ready_replica"
        late = served.post("/v1/completions", {"prompt": [1]})
        assert (late.status_code, late.json()["error"]["code"]) == (503, "no_ready_replica")
        assert served.health()["requests"] == 0


@pytest.mark.parametrize("num_engines", [1, 2])
def test_engines_are_replaced_under_load_and_nobody_notices(folder, num_engines, tmp_path):
    operated = ["--admin-socket", str(tmp_path / "admin.sock"), "--admin-key", "the-operator's-own-key"]
    with serving([str(folder), "--engines", str(num_engines), "--drain-s", "0.1", *operated]) as served:
        before = set(children(served.process.pid))
        got: list[tuple[dict[int, str], list[Any]]] = []
        body = chat(f"!slow say:{TEXT}", n=2)
        threads = [threading.Thread(target=lambda: got.append(streamed(served, body))) for _ in range(4)]
        for thread in threads:
            thread.start()
        served.until(lambda health: health["requests"] == 4)
        transport = httpx.HTTPTransport(uds=str(tmp_path / "admin.sock"))
        headers = {"authorization": "Bearer the-operator's-own-key"}
        with httpx.Client(transport=transport, base_url="http://x", headers=headers, timeout=60) as admin:
            assert admin.post("/admin/replace").json() == {"status": "ready", "engines_replaced": num_engines}
        for thread in threads:
            thread.join(60)
        assert got == [({0: TEXT, 1: f"#1 {TEXT}"}, [(0, "stop", None), (1, "stop", None)])] * 4
        assert not before & set(children(served.process.pid))


def test_a_client_that_leaves_while_nobody_serves_leaves_nothing():
    with serving(["swapped"]) as served:
        kill_engines(served)
        served.until(lambda health: health["status"] == "restarting")
        with pytest.raises(httpx.ReadTimeout):
            served.post("/v1/completions", {"prompt": [1, 2]}, timeout=0.5)
        served.until(lambda health: health["requests"] == 0 and health["engine"]["held"] == 0)


def test_random_kills_under_load_lose_repeat_and_change_nothing(folder):
    storm(folder, num_kills=12, num_clients=6)


@pytest.mark.slow
def test_two_hundred_random_kills_under_load_lose_repeat_and_change_nothing(folder):
    storm(folder, num_kills=200, num_clients=12)


def storm(folder: Path, num_kills: int, num_clients: int) -> None:
    with serving([str(folder), "--engines", "2"]) as served:
        over = threading.Event()
        failures: list[BaseException] = []
        num_answers = 0

        def client(number: int) -> None:
            nonlocal num_answers
            round_ = 0
            try:
                while not over.is_set():
                    text = f"{TEXT} {number}.{round_}"
                    n = 1 + round_ % 3
                    texts, reasons = streamed(served, chat(f"!slow say:{text}", n=n))
                    assert texts == {i: (f"#{i} " if i else "") + text for i in range(n)}
                    assert [reason for _, reason, _ in reasons] == ["stop"] * n
                    round_ += 1
                    num_answers += 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(num_clients)]
        for thread in threads:
            thread.start()
        killed = 0
        while killed < num_kills and not failures:
            time.sleep(0.35)
            pids = sorted(children(served.process.pid))
            if pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pids[killed % len(pids)], signal.SIGKILL)
                    killed += 1
        over.set()
        for thread in threads:
            thread.join(120)
        assert not failures, failures[0]
        assert num_answers >= num_clients
        health = served.until(lambda health: health["requests"] == 0)
        assert health["engine"]["resumed"] > num_kills // 4
