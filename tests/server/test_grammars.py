"""Grammars at the door: compiled in a process that may die of it, refused by name; the engine never notices."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.api.faults import HttpError
from octavo.core.sequence import Grammar
from octavo.errors import Busy, Unsupported
from octavo.link import frames
from octavo.server import grammars
from octavo.server.grammar_worker import Verdict
from octavo.server.grammars import Grammars
from tests.server.process import ROOT, Served, serving
from tests.server.test_faults import children, is_alive

CHAT = {"messages": [{"role": "user", "content": "say:hi"}]}


def schema(value: object) -> dict[str, object]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


def called(pid: int) -> str:
    return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()


def engine_pid(server: Served) -> int:
    (pid,) = [pid for pid in children(server.process.pid) if "fake_engine" in called(pid)]
    return pid


def worker_pid(server: Served) -> int:
    (pid,) = [pid for pid in children(server.process.pid) if "grammar_worker" in called(pid)]
    return pid


@pytest.fixture
def untouched(server: Served) -> Iterator[None]:
    """The engine is the same process after the test as before."""
    before = engine_pid(server)
    yield
    assert engine_pid(server) == before
    assert server.post("/v1/chat/completions", CHAT).status_code == 200


def refusal(
    server: Served, fields: dict[str, Any], path: str = "/v1/chat/completions"
) -> tuple[int, str, str, str]:
    body = {"prompt": "say:hi"} if path == "/v1/completions" else CHAT
    answer = server.post(path, {**body, **fields})
    error = answer.json().get("error") or {"code": "", "param": "", "message": ""}
    return answer.status_code, error["code"], error["param"], error["message"]


def one_of(i: int, count: int) -> dict[str, object]:
    """Objects with one required property each, so that no two of them are the same."""
    return {
        "anyOf": [
            {"type": "object", "properties": {f"p{i}_{j}": {}}, "required": [f"p{i}_{j}"]}
            for j in range(count)
        ]
    }


def deep(levels: int) -> dict[str, object]:
    made: dict[str, object] = {"type": "integer"}
    for i in range(levels):
        made = {
            "anyOf": [made, {"type": "object", "properties": {f"p{i}": made}, "additionalProperties": False}]
        }
    return made


TREE = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}

T08: dict[str, tuple[dict[str, object], str]] = {
    "recursion": (TREE, ""),
    "nothing but recursion": ({"$ref": "#"}, "invalid_grammar"),
    "10^4 values": ({"enum": [f"v{i}" for i in range(10_000)]}, ""),
    "10^5 values": ({"enum": list(range(100_000))}, "schema_too_complex"),
    "products of alternatives": ({"allOf": [one_of(i, 9) for i in range(7)]}, "schema_too_complex"),
    "nested alternatives": (deep(11), ""),
    "pattern that backtracks": ({"type": "string", "pattern": "^(a+)+$"}, ""),
    "pattern of many ways": ({"type": "string", "pattern": "^(.*a){40}(b|c|bc)*$"}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", T08)
@pytest.mark.usefixtures("untouched")
def test_t08_heavy_schemas_are_followed_or_refused_within_limits(server, name):
    value, code = T08[name]
    status, got, param, message = refusal(server, schema(value))
    assert (status, got) == ((400, code) if code else (200, ""))
    if code:
        assert param == "response_format.json_schema.schema"
        assert message.startswith(param)
    again = refusal(server, schema(value))
    assert again[:2] == (status, got)


@pytest.mark.usefixtures("untouched")
def test_t08_a_reference_is_never_fetched(server):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.3)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/schema.json"
        assert refusal(server, schema({"$ref": url}))[:2] == (400, "invalid_grammar")
        assert refusal(server, schema({"$id": url, "$ref": "other.json"}))[:2] == (400, "invalid_grammar")
        with pytest.raises(TimeoutError):
            listening.accept()


@pytest.mark.usefixtures("untouched")
def test_t08_deep_bodies_are_refused(server):
    for opening, closing in ((b'{"anyOf":[', b"]}"), (b"[", b"]"), (b'{"a":', b"}")):
        nested = opening * 20_000 + b"1" + closing * 20_000
        body = b'{"messages":[{"role":"user","content":"x"}],"guided_json":' + nested + b"}"
        answer = server.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] in ("invalid_json", "invalid_grammar", "schema_too_complex")


MALFORMED = [
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "unclosed group"),
    ({"structured_outputs": {"regex": "a(?=b)"}}, "structured_outputs.regex", "look-around"),
    ({"structured_outputs": {"grammar": "start: nobody"}}, "structured_outputs.grammar", "nobody"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least one"),
    ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice", "at least one character"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "not valid JSON"),
    ({"structured_outputs": {"json": 5}}, "structured_outputs.json", "JSON object"),
    ({"guided_grammar": 'root ::= "a'}, "guided_grammar", "cannot be read"),
    ({"guided_json": {"type": "object", "not": {}}}, "guided_json", "uses not"),
    (schema({"type": "strin"}), "response_format.json_schema.schema", "strin"),
    (
        schema({"properties": {"a": {"uniqueItems": True}}}),
        "response_format.json_schema.schema",
        "uniqueItems",
    ),
    (schema([]), "response_format.json_schema.schema", "JSON object"),
]


@pytest.mark.parametrize(("fields", "param", "named"), MALFORMED, ids=[one[1] + one[2] for one in MALFORMED])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.usefixtures("untouched")
def test_t09_a_malformed_one_right_after_a_valid_one(server, fields, param, named, path):
    for _ in range(3):
        assert refusal(server, {"structured_outputs": {"regex": "a+"}}, path)[0] == 200
        status, code, got, message = refusal(server, fields, path)
        assert (status, code, got) == (400, "invalid_grammar", param)
        assert named in message
        assert refusal(server, {**fields, "stream": True}, path)[:3] == (400, "invalid_grammar", param)


@pytest.mark.usefixtures("untouched")
def test_t09_wrong_types_are_refused_before_anything_is_compiled(server):
    for fields in ({"guided_regex": 5}, {"guided_choice": "a"}, {"response_format": {"type": "json_schema"}}):
        assert refusal(server, fields)[:2] == (400, "invalid_value")


@pytest.mark.usefixtures("untouched")
def test_t10_many_distinct_grammars_leave_nothing_behind(server, tmp_path):
    before, size = len(list(Path("/tmp").iterdir())), None
    for i in range(300):
        assert refusal(server, {"guided_regex": f"a{{{i + 1}}}b"})[0] == 200
        if i == 100:
            size = memory(worker_pid(server)), memory(server.process.pid)
    assert size is not None
    grown = memory(worker_pid(server)) - size[0], memory(server.process.pid) - size[1]
    assert max(grown) < 32 * 2**20, grown
    assert len(list(Path("/tmp").iterdir())) <= before + 2, "others may write there too"
    assert not list(tmp_path.iterdir())


def memory(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.usefixtures("untouched")
def test_t06_absurd_sizes_are_refused_by_name(server):
    for fields, param in (
        ({"n": 10**9}, "n"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"stop": [str(i) for i in range(10**5)]}, "stop"),
        ({"logit_bias": dict.fromkeys(map(str, range(70_000)), 1)}, "logit_bias"),
        ({"top_logprobs": 10**9, "logprobs": True}, "top_logprobs"),
        ({"bad_words": ["x"] * 10**5}, "bad_words"),
    ):
        assert refusal(server, fields)[:3] == (400, "invalid_value", param)
    for fields, param in (({"best_of": 10**9}, "best_of"), ({"logprobs": 10**9}, "logprobs")):
        assert refusal(server, fields, "/v1/completions")[:3] == (400, "invalid_value", param)


@pytest.mark.usefixtures("untouched")
def test_a_worker_that_is_killed_is_replaced(server):
    assert refusal(server, {"guided_regex": "k1"})[0] == 200
    first = worker_pid(server)
    os.kill(first, signal.SIGKILL)
    assert refusal(server, {"guided_regex": "k2"})[0] in (200, 400)
    assert refusal(server, {"guided_regex": "k3"})[0] == 200
    assert worker_pid(server) != first


def test_no_worker_outlives_its_server(folder):
    with serving([str(folder)]) as served:
        assert not [pid for pid in children(served.process.pid) if "grammar_worker" in called(pid)], (
            "none until asked"
        )
        assert refusal(served, {"guided_regex": "a"})[0] == 200
        pid = worker_pid(served)
    assert not is_alive(pid)
    with serving([str(folder)]) as served:
        assert refusal(served, {"guided_regex": "a"})[0] == 200
        pid = worker_pid(served)
        served.process.kill()
        served.process.wait()
        gone = threading.Event()
        for _ in range(500):
            if not is_alive(pid):
                break
            gone.wait(0.01)
        assert not is_alive(pid)


def test_a_model_without_a_tokenizer_has_no_grammars():
    with serving(["no-folder"]) as served:
        asked = {"prompt": "1 2", "guided_regex": "a"}
        status, code, param, message = refusal(served, asked, "/v1/completions")
        assert (status, code, param) == (400, "unsupported_parameter", "guided_regex")
        assert "without a tokenizer" in message


# ---- without HTTP


class Counting:
    """A worker that judges by the name of the grammar."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def judge(self, grammar: Grammar) -> Verdict:
        self.gate.wait()
        self.asked.append(grammar.source)
        return Verdict("invalid_grammar", "it is bad") if grammar.source.startswith("bad") else Verdict()

    def close(self) -> None:
        return


def made(worker: Any, **more: Any) -> Grammars:
    ready = frames.Ready(
        model="m", model_path=None, tokenizer_path="nowhere", fingerprint="", dtype="", device="", vocab_size=9,
        max_model_len=9, num_parameters=1, num_kv_blocks=1, block_tokens=1,
    )  # fmt: skip
    found = Grammars(ready, **more)
    found.worker = worker
    return found


def regex(source: str) -> Grammar:
    return Grammar(kind="regex", source=source)


def test_t10_verdicts_are_remembered_within_bytes():
    async def scenario() -> None:
        worker = Counting()
        gate = made(worker, max_bytes=100_000)
        for i in range(100_000):
            gate._remember(f"{i}".encode(), Verdict())
            assert gate.num_bytes <= 100_000
        for i in range(500):
            await gate.check(regex(f"a{i}"))
        assert gate.num_bytes <= 100_000
        await gate.check(regex("a499"))
        assert len(worker.asked) == 500
        await gate.check(regex("a0"))
        assert len(worker.asked) == 501, "the oldest had been forgotten"
        gate.close()

    asyncio.run(scenario())


def test_equal_grammars_share_one_verdict_and_a_caller_that_leaves_spoils_nothing():
    async def scenario() -> None:
        worker = Counting()
        worker.gate.clear()
        gate = made(worker)
        checks = [asyncio.ensure_future(gate.check(regex("bad"), "f")) for _ in range(5)]
        await asyncio.sleep(0)
        checks[0].cancel()
        worker.gate.set()
        found = await asyncio.gather(*checks, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert all(isinstance(one, HttpError) and one.code == "invalid_grammar" for one in found[1:])
        assert worker.asked == ["bad"]
        with pytest.raises(HttpError, match="f: it is bad"):
            await gate.check(regex("bad"), "f")
        assert worker.asked == ["bad"]
        await gate.check(None)
        gate.close()

    asyncio.run(scenario())


def test_too_many_that_wait_are_sent_away():
    async def scenario() -> None:
        worker = Counting()
        worker.gate.clear()
        gate = made(worker)
        checks = [asyncio.ensure_future(gate.check(regex(f"a{i}"))) for i in range(grammars.MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await gate.check(regex("one more"))
        worker.gate.set()
        await asyncio.gather(*checks)
        await gate.check(regex("one more"))
        gate.close()

    asyncio.run(scenario())


def test_a_worker_that_cannot_start_is_an_error_of_ours(tmp_path):
    async def scenario() -> None:
        gate = made(None)
        gate.worker = grammars.Worker(str(tmp_path / "missing"), 9)
        for _ in range(2):
            with pytest.raises(HttpError) as caught:
                await gate.check(regex("a"))
            assert caught.value.code == "internal_error"
            assert "no such folder" in str(caught.value)
        assert gate.num_bytes == 0, "not remembered"
        gate.worker = None
        with pytest.raises(Unsupported):
            await gate.check(regex("a"))
        gate.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("work", "ending"),
    [
        ("_limit_memory(2**26); bytearray(2**28)", "MemoryError"),
        ("_limit_memory(2**26); bytearray(2**24); print('fits')", "fits"),
        ("signal.setitimer(signal.ITIMER_PROF, 0.05)\nwhile True: pass", ""),
    ],
)
def test_the_limits_of_the_worker_bite(work, ending):
    code = f"import signal\nfrom octavo.server.grammar_worker import _limit_memory\n{work}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    if ending:
        assert ending in done.stdout + done.stderr
    else:
        assert done.returncode == -signal.SIGPROF
