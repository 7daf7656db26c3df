"""Ledgers add up: to the last microsecond in themselves, and to the time that clients measured."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from pathlib import Path

import httpx
import pytest

from octavo.cli.main import main
from octavo.explain import ledger as causes
from octavo.explain.story import Story
from octavo.obs import recording
from tests.server.process import Served, serving
from tests.server.test_end_to_end import REAL
from tests.server.test_recordings import saved

FLAGS = ("--num-kv-blocks", "160", "--num-threads", "1", "--max-num-seqs", "12", "--max-model-len", "2048")
WORDS = (
    "def",
    "return",
    "import",
    "class",
    "self",
    "for",
    "in",
    "if",
    "while",
    "try",
    "with",
    "lambda",
    "yield",
)


async def loaded(server: Served, num_requests: int, concurrency: int, seed: int) -> dict[str, float]:
    """Seconds that clients measured, from sending to the end of the answer, by request id."""
    rng = random.Random(seed)
    jobs = [
        (" ".join(rng.choice(WORDS) for _ in range(rng.choice([10, 40, 200, 500]))), rng.randrange(8, 60))
        for _ in range(num_requests)
    ]
    walls: dict[str, float] = {}
    url = httpx.URL(server.url)

    async def client() -> None:
        while jobs:
            prompt, max_tokens = jobs.pop()
            body = json.dumps(
                {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
            ).encode()
            head = (
                f"POST /v1/completions HTTP/1.1\r\nhost: {url.host}\r\ncontent-type: application/json\r\n"
                f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            reader, writer = await asyncio.open_connection(url.host, url.port)
            begin_s = time.monotonic()
            writer.write(head.encode() + body)
            answer = await reader.read()
            wall_s = time.monotonic() - begin_s
            writer.close()
            assert b"data: [DONE]" in answer
            request_id = answer.partition(b"x-request-id: ")[2].partition(b"\r\n")[0]
            walls[request_id.decode()] = wall_s

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return walls


def under_load(folder: Path, num_requests: int, concurrency: int) -> tuple[Story, dict[str, float], Path]:
    with serving([*FLAGS, "--data-dir", str(folder)], REAL) as server:
        walls = asyncio.run(loaded(server, num_requests, concurrency, seed=5))
        os.kill(server.process.pid, signal.SIGUSR2)
        path = saved(folder)[0]
    return Story(recording.read(path)), walls, path


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Story, dict[str, float], Path]:
    return under_load(tmp_path_factory.mktemp("data"), 80, 20)


def shares(story: Story, walls: dict[str, float]) -> list[float]:
    """The sum of each ledger's lines, as a share of what its client measured."""
    found = []
    for _, life, ledger in story.ended():
        total_s = sum(line.seconds for line in ledger.lines)
        assert total_s == pytest.approx(ledger.wall_s, abs=1e-9)
        found.append(total_s / walls[story.served[life.request_id].request_id])
    return found


def test_lines_follow_one_another_without_a_gap(busy):
    story, walls, _ = busy
    count = 0
    for _, _, ledger in story.ended():
        at_s = ledger.from_s
        for line in ledger.lines:
            assert line.seconds > 0
            assert line.from_s == pytest.approx(at_s, abs=1e-9)
            at_s = line.from_s + line.seconds
        assert at_s == pytest.approx(ledger.to_s, abs=1e-9)
        count += 1
    assert count == len(walls) == 80


def test_they_are_no_more_than_clients_measured(busy):
    """A client's own time, before its bytes are sent and after ours have come, is no part of a ledger."""
    story, walls, _ = busy
    assert max(shares(story, walls)) < 1.01


@pytest.mark.slow
def test_a_thousand_ledgers_under_load_are_what_clients_measured(tmp_path):
    story, walls, _ = under_load(tmp_path, 1000, 24)
    found = shares(story, walls)
    missed = sorted(abs(share - 1) for share in found)
    print(
        f"{sum(one < 0.01 for one in missed)} of {len(missed)} within 1 %; p50 {missed[500]:.3%}, p99 {missed[989]:.3%}"
    )
    assert len(found) == 1000
    assert missed[500] < 0.01


def test_waiting_is_put_down_to_what_kept_it(busy):
    story, _, _ = busy
    kinds = {line.cause for _, _, ledger in story.ended() for line in ledger.lines}
    assert {
        causes.FRONT,
        causes.LINK,
        causes.WAITING,
        causes.PROMPT,
        causes.DECODE,
        causes.OTHER_PROMPTS,
    } <= kinds
    details = {
        line.detail for _, _, ledger in story.ended() for line in ledger.lines if line.cause == causes.WAITING
    }
    assert any("seats" in detail or "blocks" in detail for detail in details), details


def by_cause(ledger: causes.Ledger) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in ledger.lines:
        found[line.cause] = found.get(line.cause, 0.0) + line.seconds
    return found


def test_what_a_replay_knows_agrees_with_the_head_of_the_queue(busy):
    """The exact reasons of waiting come from a replay, the others from what was noted: the same time waited."""
    story, _, _ = busy
    (books,) = story.books
    slowest = max((life for _, life, _ in story.ended()), key=lambda life: life.ended_s - life.submitted_s)
    exact = books.ledger(slowest.request_id)
    noted = books.ledger(slowest.request_id, exact=False)
    assert by_cause(exact) == pytest.approx(by_cause(noted))
    assert "" not in {line.detail for line in exact.lines if line.cause == causes.WAITING}


def test_the_command_shows_one_request_and_all(busy, capsys):
    story, _, path = busy
    served = next(iter(story.served.values()))
    assert main(["explain", str(path), "--request", served.request_id, "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    whole = one["whole"]
    assert sum(total["seconds"] for total in whole["totals"]) == pytest.approx(whole["seconds"])
    assert one["to_first_token"]["seconds"] < whole["seconds"]
    assert main(["explain", str(path), "--request", served.request_id]) == 0
    text = capsys.readouterr().out
    assert "in all" in text
    assert "what ended the match" in text
    assert main(["explain", str(path)]) == 0
    assert "the slowest" in capsys.readouterr().out
    assert main(["explain", str(path), "--request", served.request_id[:-2] + "xx"]) == 2
    assert f"did you mean {served.request_id}" in capsys.readouterr().err


def test_a_trace_for_perfetto(busy, tmp_path, capsys):
    _, _, path = busy
    out = tmp_path / "trace.json"
    assert main(["explain", str(path), "--perfetto", str(out), "--json"]) == 0
    capsys.readouterr()
    events = json.loads(out.read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    assert all(event["dur"] >= 0 and event["ts"] >= -1 for event in events if event["ph"] == "X")
