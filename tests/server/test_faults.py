"""An engine that dies, speaks nonsense or never starts; a server that is told to stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

from tests.server.process import FAKE, ROOT, Served, serving


def children(pid: int) -> list[int]:
    """Process ids whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ask(served: Served, got: list[object], prompt: str) -> threading.Thread:
    """Send a streaming request from a thread; its lines, or its error, go to `got`. Returns once it runs."""

    def send() -> None:
        body = {"prompt": prompt, "stream": True}
        try:
            with served.client.stream("POST", "/v1/completions", json=body) as answer:
                got.append([line for line in answer.iter_lines() if line])
        except httpx.HTTPError as error:
            got.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    served.until(lambda health: health["engine"].get("running") == 1)
    return thread


def test_ready_is_one_line_with_address_model_and_blocks(server):
    assert server.ready_line == f"ready: {server.url} (model fake, kv 100 blocks)\n"


def test_a_request_under_which_engines_crash_is_put_in_quarantine(folder):
    with serving([str(folder)]) as served:
        client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=60)
        fatal = {"model": "fake", "messages": [{"role": "user", "content": "!die abcdef"}]}
        with pytest.raises(openai.APIError, match=r"2 engines died .*SIGSEGV.* not tried again") as caught:
            list(client.chat.completions.create(**fatal, stream=True))
        assert caught.value.code == "request_quarantined"
        health = served.until(lambda health: health["status"] == "ready")
        assert health["engine"]["restarts"] == health["engine"]["epoch"] == 2
        assert "SIGSEGV" in health["engine"]["last_failure"]
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(**fatal)
        assert refused.value.code == "request_quarantined"
        assert refused.value.response.headers["x-should-retry"] == "false"
        served.until(lambda health: health["status"] == "ready" and health["engine"]["epoch"] == 4)
        back = [{"role": "user", "content": "say:back"}]
        answer = client.chat.completions.create(model="fake", messages=back)
        assert answer.choices[0].message.content == "back"
        assert len(children(served.process.pid)) == 1


@pytest.mark.parametrize(
    ("prompt", "words"), [("!garbage abcdef", "limit is"), ("!stray abcdef", "sent Loading")]
)
def test_an_engine_that_breaks_the_link_is_ended(folder, prompt, words):
    with serving([str(folder)]) as served:
        (engine,) = children(served.process.pid)
        answer = served.post("/v1/completions", {"prompt": prompt})
        assert answer.json()["error"]["code"] == "request_quarantined"
        assert words in answer.json()["error"]["message"]
        assert not is_alive(engine)


@pytest.mark.parametrize("held", [True, False])
def test_while_the_engine_restarts_requests_wait_or_are_refused_with_a_time(held):
    """`crash-later` fails to start once after its first death, so there is time to look."""
    with serving(["crash-later", *([] if held else ["--hold-s", "0"])]) as served:
        prompt = {"prompt": [1, 2, 3, 4]}
        before = served.post("/v1/completions", prompt)
        (engine,) = children(served.process.pid)
        os.kill(engine, signal.SIGKILL)
        served.until(lambda health: health["status"] == "restarting")
        assert served.get("/health/ready").status_code == 503
        assert served.get("/health/live").status_code == 200
        meanwhile = served.post("/v1/completions", prompt)
        if held:
            assert meanwhile.json()["choices"] == before.json()["choices"]
        else:
            assert (meanwhile.status_code, meanwhile.json()["error"]["code"]) == (503, "no_ready_replica")
            assert int(meanwhile.headers["retry-after"]) >= 1
        health = served.until(lambda health: health["status"] == "ready", 60)
        assert health["engine"]["epoch"] == 2
        after = served.post("/v1/completions", prompt)
        assert before.json()["choices"] == after.json()["choices"]


def test_other_weights_under_the_same_name_are_not_served_on():
    with serving(["swapped", "--hold-s", "0"]) as served:
        (engine,) = children(served.process.pid)
        os.kill(engine, signal.SIGKILL)
        health = served.until(lambda health: "weights" in (health["engine"]["last_failure"] or ""))
        assert "start it anew" in health["engine"]["last_failure"]
        assert health["status"] == "restarting"
        assert served.post("/v1/completions", {"prompt": [1]}).status_code == 503


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("missing", 3, ["model.safetensors: tensor 'lm_head' is missing"]),
        ("unfit", 2, ["one sequence needs 9 KV blocks"]),
        ("crash", 3, ["SIGSEGV", "while loading"]),
        ("other-version", 3, ["0.0.0", "install one version"]),
    ],
)
def test_an_engine_that_cannot_start_ends_the_server_with_its_words(model, code, words):
    done = subprocess.run(
        [*FAKE, model, "--port", "0"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "ready:" not in done.stdout
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_said_before_anything_is_loaded(server):
    port = server.url.rpartition(":")[2]
    command = [*FAKE, "missing", "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_requests_end_and_takes_no_new_ones(folder, number, tmp_path):
    with serving([str(folder)]) as served:
        (engine,) = children(served.process.pid)
        got: list[object] = []
        thread = ask(served, got, f"!gate={tmp_path}/open say:abc")
        served.process.send_signal(number)
        served.until(lambda health: health["status"] == "draining")
        refused = served.post("/v1/completions", {"prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        (tmp_path / "open").touch()
        thread.join(60)
        (lines,) = got
        assert lines[-1] == "data: [DONE]"
        assert served.process.wait(60) == 0
        assert not is_alive(engine)


def test_what_does_not_end_in_time_is_told_so(folder):
    with serving([str(folder), "--drain-s", "0.2"]) as served:
        got: list[object] = []
        thread = ask(served, got, "!wait")
        served.process.terminate()
        thread.join(60)
        (lines,) = got
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert served.process.wait(60) == 0


def test_a_second_signal_does_not_wait(folder):
    with serving([str(folder), "--drain-s", "1h"]) as served:
        got: list[object] = []
        thread = ask(served, got, "!wait")
        served.process.terminate()
        served.until(lambda health: health["status"] == "draining")
        served.process.terminate()
        assert served.process.wait(60) == 0
        thread.join(60)
        (lines,) = got
        assert "shutting_down" in lines[-1]


def test_no_engine_outlives_a_server_that_is_killed(folder):
    with serving([str(folder)]) as served:
        (engine,) = children(served.process.pid)
        served.process.kill()
        served.process.wait(60)
        deadline_s = time.monotonic() + 60
        while is_alive(engine):
            assert time.monotonic() < deadline_s
            time.sleep(0.02)


def test_no_prompt_and_no_key_reaches_the_log(folder):
    with serving([str(folder), "--api-key", "canary-key-123"]) as served:
        headers = {"x-api-key": "canary-key-123"}
        for prompt in (
            "say:canary-prompt",
            "!error canary-prompt",
            {"canary-prompt": 1},
            "!die canary-prompt",
        ):
            served.post("/v1/completions", {"prompt": prompt}, headers=headers)
        served.get("/v1/models", headers={"x-api-key": "canary-wrong"})
        served.process.terminate()
        _, said = served.process.communicate(timeout=60)
        assert "engine_died" in said
        assert "canary" not in said
