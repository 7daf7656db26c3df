"""Batches through SIGKILL, full disks and damaged files: each custom_id once, online requests untouched."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.server import jobs, postgres
from tests.server.process import Served, serving

NUM_LINES = 240


def slow_lines(count: int) -> list[dict[str, Any]]:
    """Each takes the fake engine a few pauses; every 40th fails for good."""
    return [
        jobs.chat_line(
            number, text=f"!slow say:{number}", **({"temperature": -1} if number % 40 == 7 else {})
        )
        for number in range(count)
    ]


def check_exactly_once(client: Any, batch: dict[str, Any], count: int) -> list[Any]:
    """Every line in one of the files, once, with its own answer; returns the output lines."""
    assert batch["status"] == "completed"
    output, errors = jobs.results(client, batch)
    seen = Counter(line["custom_id"] for line in [*output, *errors])
    assert seen == Counter(f"line-{number}" for number in range(count))
    assert [line["custom_id"] for line in errors] == [f"line-{n}" for n in range(count) if n % 40 == 7]
    for line in output:
        number = line["custom_id"].removeprefix("line-")
        assert line["response"]["body"]["choices"][0]["message"]["content"] == number
    assert batch["request_counts"] == {"total": count, "completed": len(output), "failed": len(errors)}
    return output


def check_usage(output: list[Any], batch: dict[str, Any], rows: list[tuple[int, int, int, float]]) -> None:
    """What the store has counted for the tenant's batches, summed over days, is what the answers say."""
    usages = [line["response"]["body"]["usage"] for line in output]
    tokens_in, tokens_out = (
        sum(usage[name] for usage in usages) for name in ("prompt_tokens", "completion_tokens")
    )
    assert batch["usage"]["input_tokens"] == tokens_in
    assert batch["usage"]["output_tokens"] == tokens_out
    total = [sum(column) for column in zip(*rows, strict=True)]
    assert total == [batch["request_counts"]["total"], tokens_in, tokens_out, (tokens_in + tokens_out) / 2]


def sqlite_usage(data: Path) -> list[tuple[int, int, int, float]]:
    with sqlite3.connect(data / "octavo.db") as database:
        query = "SELECT requests, input_tokens, output_tokens, weighted_tokens FROM usage WHERE is_batch"
        return list(database.execute(query))


def kill(served: Served) -> None:
    os.kill(served.process.pid, signal.SIGKILL)
    served.process.wait()


def run_through_kills(
    arguments: list[str], data: Path, count: int, next_kill: Callable[[int], int | None]
) -> tuple[dict[str, Any], list[Any]]:
    """Start a batch and kill the server whenever its ledger has `next_kill(lines)` lines, until that says None."""
    arguments = [*arguments, "--data-dir", str(data), "--batch-concurrency", "16"]
    batch_id: str | None = None
    while True:
        with serving(arguments) as served:
            if batch_id is None:
                batch_id = jobs.start(served.client, jobs.jsonl(slow_lines(count)))["id"]
            ledger = data / "batches" / batch_id
            goal = next_kill(lines_in(ledger))
            if goal is None:
                batch = jobs.ended(served.client, batch_id)
                return batch, check_exactly_once(served.client, batch, count)
            deadline_s = time.monotonic() + 120
            while lines_in(ledger) < goal and jobs.look(served.client, batch_id)["status"] not in jobs.ENDED:
                assert time.monotonic() < deadline_s
                time.sleep(0.002)
            kill(served)


def lines_in(ledger: Path) -> int:
    try:
        return max(0, ledger.read_bytes().count(b"\n") - 1)
    except FileNotFoundError:
        return 0


def test_a_batch_survives_sigkill_with_each_line_once(folder, tmp_path):
    goals = iter([0, 1, 60, 61, 140, NUM_LINES - 1, NUM_LINES, None])
    batch, output = run_through_kills([str(folder)], tmp_path, NUM_LINES, lambda _: next(goals))
    check_usage(output, batch, sqlite_usage(tmp_path))
    assert list((tmp_path / "batches").iterdir()) == []
    assert list((tmp_path / "incoming").iterdir()) == []
    assert len(list((tmp_path / "files").iterdir())) == 3


def test_a_batch_in_postgres_survives_sigkill(folder, tmp_path):
    with postgres.running() as server:
        url = postgres.new_database(server, "kills")
        goals = iter([0, 30, None])
        batch, output = run_through_kills(
            [str(folder), "--store-url", url], tmp_path, 80, lambda _: next(goals)
        )
        with psycopg.connect(url) as connection:
            query = "SELECT requests, input_tokens, output_tokens, weighted_tokens FROM usage"
            check_usage(output, batch, connection.execute(query).fetchall())
    assert not (tmp_path / "octavo.db").exists()


@pytest.mark.slow
def test_thousands_of_lines_through_a_sigkill_every_few_seconds(folder, tmp_path):
    count, rng = 4000, random.Random(4)
    kills = iter(range(14))

    def next_kill(lines: int) -> int | None:
        return None if next(kills, None) is None else min(count, lines + rng.randint(0, count // 8))

    batch, output = run_through_kills([str(folder)], tmp_path, count, next_kill)
    check_usage(output, batch, sqlite_usage(tmp_path))


def test_sigterm_leaves_the_lines_under_way_to_the_next_server(folder, tmp_path):
    arguments = [str(folder), "--data-dir", str(tmp_path), "--batch-concurrency", "4"]
    with serving(arguments) as served:
        batch_id = jobs.start(served.client, jobs.jsonl(slow_lines(60)))["id"]
        ledger = tmp_path / "batches" / batch_id
        served.until(lambda _: lines_in(ledger) >= 10)
        served.process.terminate()
        assert served.process.wait(20) == 0
    assert lines_in(ledger) < 60
    with serving(arguments) as served:
        check_exactly_once(served.client, jobs.ended(served.client, batch_id), 60)


def test_a_full_disk_pauses_batches_and_nothing_else(folder, tmp_path):
    """The limit on file sizes stands for the disk: no file of the server's may grow any more."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with serving([str(folder), "--data-dir", str(tmp_path)]) as served:
        batch_id = jobs.start(served.client, jobs.jsonl(slow_lines(NUM_LINES)))["id"]
        ledger = tmp_path / "batches" / batch_id
        served.until(lambda _: lines_in(ledger) >= 10)
        full = ledger.stat().st_size + 100
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
        served.until(lambda health: health["requests"] == 0 and health["engine"]["running"] == 0)
        written = lines_in(ledger)
        assert written < NUM_LINES
        assert jobs.look(served.client, batch_id)["status"] == "in_progress"
        answer = served.post("/v1/completions", {"prompt": "say:online"})
        assert answer.json()["choices"][0]["text"] == "online"
        refused = served.post("/v1/files", data={"purpose": "batch"}, files={"file": b"x" * (full + 1)})
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full")
        assert lines_in(ledger) == written
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, unlimited)
        batch = jobs.ended(served.client, batch_id)
        output = check_exactly_once(served.client, batch, NUM_LINES)
        check_usage(output, batch, sqlite_usage(tmp_path))
        served.process.terminate()
        served.process.wait(20)
        log = served.process.stderr.read()
    assert "batches_wait_for_disk" in log
    assert "batches_go_on" in log


def halfway(folder: Path, data: Path, count: int = 80) -> tuple[list[str], str]:
    """A batch of which about half is answered, and no server: its arguments and the batch's id."""
    arguments = [str(folder), "--data-dir", str(data), "--batch-concurrency", "8"]
    with serving(arguments) as served:
        batch_id = jobs.start(served.client, jobs.jsonl(slow_lines(count)))["id"]
        served.until(lambda _: lines_in(data / "batches" / batch_id) >= count // 2)
        kill(served)
    return arguments, batch_id


@pytest.mark.parametrize("how", ["torn", "flipped", "zeroed", "cut"])
def test_damaged_results_are_computed_again(folder, tmp_path, how):
    arguments, batch_id = halfway(folder, tmp_path)
    ledger = tmp_path / "batches" / batch_id
    content = bytearray(ledger.read_bytes())
    middle = len(content) // 2
    if how == "torn":
        content += content[middle : middle + 300].rstrip(b"\n")
    elif how == "flipped":
        content[middle] ^= 1
    elif how == "zeroed":
        content[middle : middle + 4096] = bytes(len(content[middle : middle + 4096]))
    else:
        del content[middle:]
    ledger.write_bytes(content)
    with serving(arguments) as served:
        check_exactly_once(served.client, jobs.ended(served.client, batch_id), 80)


def test_a_ledger_without_its_beginning_fails_the_batch_aloud(folder, tmp_path):
    arguments, batch_id = halfway(folder, tmp_path)
    ledger = tmp_path / "batches" / batch_id
    content = bytearray(ledger.read_bytes())
    content[20] ^= 1
    ledger.write_bytes(content)
    with serving(arguments) as served:
        batch = jobs.ended(served.client, batch_id)
        assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "results_damaged")


def test_a_changed_input_fails_the_batch_aloud(folder, tmp_path):
    arguments, batch_id = halfway(folder, tmp_path)
    (source,) = (tmp_path / "files").iterdir()
    source.write_bytes(source.read_bytes().replace(b"say:7", b"say:8", 1))
    with serving(arguments) as served:
        batch = jobs.ended(served.client, batch_id)
        assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "input_damaged")


def test_a_damaged_row_is_noticed_and_the_others_go_on(folder, tmp_path):
    arguments, batch_id = halfway(folder, tmp_path)
    with serving(arguments) as served:
        other = jobs.start(served.client, jobs.jsonl(slow_lines(60)))["id"]
        kill(served)
    with sqlite3.connect(tmp_path / "octavo.db") as database:
        change = "UPDATE batches SET document = CAST(replace(document, ?, ?) AS BLOB) WHERE id = ?"
        database.execute(change, (b"/v1/chat/completions", b"/v1/chut/completions", batch_id))
    database.close()
    with serving(arguments) as served:
        answer = served.get(f"/v1/batches/{batch_id}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "storage_damaged")
        check_exactly_once(served.client, jobs.ended(served.client, other), 60)


def test_a_batch_waits_for_its_model(folder, tmp_path):
    arguments, batch_id = halfway(folder, tmp_path)
    with serving([*arguments, "--served-model-name", "another"]) as served:
        served.post("/v1/completions", {"prompt": "say:x"})
        assert jobs.look(served.client, batch_id)["status"] == "in_progress"
    with serving(arguments) as served:
        check_exactly_once(served.client, jobs.ended(served.client, batch_id), 80)
