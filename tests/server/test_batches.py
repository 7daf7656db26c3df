"""Batches through the official client and the fake engine: states, results, what is refused and when."""

from __future__ import annotations

import json
import time
import tracemalloc

import openai
import pytest

from octavo.api.batch_file import Invalid, Limits, scan
from tests.server import jobs
from tests.server.process import serving

LIMITS = ("--batch-max-lines", "40", "--batch-max-bytes", "64KiB", "--max-body-bytes", "16KiB")


@pytest.fixture(scope="module")
def small(folder, tmp_path_factory):
    """A server with low limits and two keys."""
    keys = ("--api-key", "first-key,second-key")
    data = ("--data-dir", str(tmp_path_factory.mktemp("data")))
    with serving([str(folder), *LIMITS, *keys, *data]) as served:
        served.client.headers["authorization"] = "Bearer first-key"
        yield served


def finished(client, batch_id):
    while (batch := client.batches.retrieve(batch_id)).status not in jobs.ENDED:
        time.sleep(0.05)
    return batch


def test_a_batch_from_upload_to_results(client):
    lines = [jobs.chat_line(number) for number in range(12)]
    lines[5] = jobs.chat_line(5, temperature=-1)
    file = client.files.create(file=("in.jsonl", jobs.jsonl(lines)), purpose="batch")
    assert (file.purpose, file.filename, file.bytes) == ("batch", "in.jsonl", len(jobs.jsonl(lines)))
    made = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"night": "1"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (made.object, made.status, made.metadata) == ("batch", "validating", {"night": "1"})
    assert made.expires_at - made.created_at == 24 * 3600
    batch = finished(client, made.id)
    assert batch.status == "completed"
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (12, 11, 1)
    assert made.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert batch.failed_at is batch.expired_at is batch.cancelled_at is batch.errors is None
    assert batch.model == "fake"
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).iter_lines()]
    assert [line["custom_id"] for line in answers] == [f"line-{n}" for n in range(12) if n != 5]
    for line in answers:
        number = int(line["custom_id"].removeprefix("line-"))
        body = line["response"]["body"]
        assert (line["error"], line["response"]["status_code"]) == (None, 200)
        assert body["choices"][0]["message"]["content"] == f"answer {number}"
        assert body["object"] == "chat.completion"
    assert len({line["id"] for line in answers}) == 11
    (failed,) = [json.loads(line) for line in client.files.content(batch.error_file_id).iter_lines()]
    assert failed["custom_id"] == "line-5"
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["param"] == "temperature"
    output = client.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output"
    assert output.expires_at - output.created_at == 3600
    usages = [line["response"]["body"]["usage"] for line in answers]
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in usages)
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens


def test_a_batch_of_completions_without_a_model(client):
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": {"prompt": f"say:{n}"}}
        for n in range(3)
    ]
    file = client.files.create(file=jobs.jsonl(lines), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="30min")
    batch = finished(client, made.id)
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).iter_lines()]
    assert [line["response"]["body"]["choices"][0]["text"] for line in answers] == ["0", "1", "2"]
    assert batch.error_file_id is None
    assert batch.expires_at - batch.created_at == 1800


def test_lists_are_cut_into_pages(client):
    ids = [
        client.batches.create(
            input_file_id=client.files.create(file=jobs.jsonl([jobs.chat_line(0)]), purpose="batch").id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
        ).id
        for _ in range(5)
    ]
    listed = [batch.id for batch in client.batches.list(limit=2)]
    assert listed[:5] == ids[::-1]
    page = client.batches.list(limit=2, after=ids[3])
    assert [batch.id for batch in page.data] == [ids[2], ids[1]]
    assert page.has_more
    for batch_id in ids:
        finished(client, batch_id)


def lines_of(count, **fields):
    return [jobs.chat_line(number, **fields) for number in range(count)]


def wrong(place, **change):
    made = lines_of(4)
    made[place] |= change
    return jobs.jsonl(made)


BODY = jobs.chat_line(0)["body"]
LONG = (
    b'{"custom_id": "long", "method": "POST", "url": "/v1/chat/completions", "body": {"x": "' + b"y" * 40_000
)


@pytest.mark.parametrize(
    ("content", "code", "line", "param"),
    [
        (jobs.jsonl(lines_of(41)), "too_many_lines", 41, None),
        (wrong(2, body={**BODY, "model": "other"}), "mismatched_model", 3, "body.model"),
        (wrong(2, body={"messages": []}), "mismatched_model", 3, "body.model"),
        (jobs.jsonl(lines_of(2, model="other")), "model_not_found", 1, "body.model"),
        (wrong(3, custom_id="line-1"), "duplicate_custom_id", 4, "custom_id"),
        (wrong(1, custom_id=""), "invalid_custom_id", 2, "custom_id"),
        (wrong(1, url="/v1/completions"), "invalid_url", 2, "url"),
        (wrong(1, method="GET"), "invalid_method", 2, "method"),
        (wrong(0, body={**BODY, "stream": True}), "unsupported_parameter", 1, "body.stream"),
        (wrong(0, body=[1]), "invalid_json", 1, "body"),
        (wrong(0, custom_id=7), "invalid_request", 1, None),
        (jobs.jsonl(lines_of(2)) + b'{"custom_id": "x",\n', "invalid_json", 3, None),
        (jobs.jsonl(lines_of(2)) + b"\xff\xfe\n", "invalid_json", 3, None),
        (jobs.jsonl(lines_of(1)) + b'{"body": ' + b"[" * 5000 + b"\n", "invalid_json", 2, None),
        (jobs.jsonl(lines_of(1)) + LONG + b'"}}\n' + jobs.jsonl(lines_of(1)), "line_too_long", 2, None),
        (jobs.jsonl(lines_of(9, text="x" * 8000)), "file_too_large", 9, None),
        (b"", "empty_file", None, None),
        (b"\n \n", "empty_file", None, None),
    ],
)
def test_a_bad_file_fails_with_its_line_and_runs_nothing(small, content, code, line, param):
    steps = small.health()["engine"].get("steps")
    made = jobs.start(small.client, content)
    batch = jobs.ended(small.client, made["id"])
    assert batch["status"] == "failed"
    assert batch["failed_at"] >= batch["created_at"]
    assert batch["output_file_id"] is batch["error_file_id"] is batch["in_progress_at"] is None
    first = batch["errors"]["data"][0]
    assert (first["code"], first["line"], first["param"]) == (code, line, param)
    assert len(batch["errors"]["data"]) == (2 if code == "line_too_long" else 1)
    assert small.health()["engine"].get("steps") == steps


def test_every_bad_line_is_named_up_to_a_hundred(small):
    lines = [jobs.chat_line(n % 2) for n in range(30)]
    batch = jobs.ended(small.client, jobs.start(small.client, jobs.jsonl(lines))["id"])
    assert [error["line"] for error in batch["errors"]["data"]] == list(range(3, 31))


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"endpoint": "/v1/models"}, 400, "invalid_value", "endpoint"),
        ({"completion_window": "25h"}, 400, "invalid_value", "completion_window"),
        ({"completion_window": "soon"}, 400, "invalid_value", "completion_window"),
        ({"input_file_id": "file-" + "0" * 32}, 404, "not_found", "file_id"),
        ({"metadata": {str(n): "x" for n in range(17)}}, 400, "invalid_value", "metadata"),
        ({"metadata": {"k": "x" * 513}}, 400, "invalid_value", "metadata"),
        ({"metadata": {"k": 1}}, 400, "invalid_value", "metadata[...]"),
        ({"priority": 1}, 400, "invalid_value", None),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
            400,
            "invalid_value",
            "output_expires_after.seconds",
        ),
    ],
)
def test_a_bad_request_is_refused_at_once(small, change, status, code, param):
    asked = {
        "input_file_id": jobs.upload(small.client, jobs.jsonl(lines_of(1))),
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    answer = small.post("/v1/batches", {**asked, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)


def test_only_batch_files_make_a_batch(small):
    file_id = jobs.upload(small.client, b"text", purpose="user_data")
    asked = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    assert small.post("/v1/batches", asked).json()["error"]["param"] == "input_file_id"


def test_another_tenant_sees_nothing(small):
    made = jobs.start(small.client, jobs.jsonl(lines_of(2)))
    batch = jobs.ended(small.client, made["id"])
    stranger = {"authorization": "Bearer second-key"}
    asked = {"input_file_id": made["input_file_id"], "endpoint": "/v1/chat/completions"}
    attempts = [
        small.get(f"/v1/batches/{batch['id']}", headers=stranger),
        small.post(f"/v1/batches/{batch['id']}/cancel", headers=stranger),
        small.get(f"/v1/files/{batch['output_file_id']}", headers=stranger),
        small.get(f"/v1/files/{batch['output_file_id']}/content", headers=stranger),
        small.client.delete(f"/v1/files/{batch['input_file_id']}", headers=stranger),
        small.get(f"/v1/files?after={batch['input_file_id']}", headers=stranger),
        small.get(f"/v1/batches?after={batch['id']}", headers=stranger),
        small.post("/v1/batches", {**asked, "completion_window": "24h"}, headers=stranger),
    ]
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in attempts] == [
        (404, "not_found")
    ] * 8
    assert small.get("/v1/files", headers=stranger).json()["data"] == []
    assert small.get("/v1/batches", headers=stranger).json()["data"] == []
    assert jobs.results(small.client, batch)[0]
    assert small.get("/v1/batches", headers={"authorization": ""}).status_code == 401


def test_cancelling_keeps_what_is_answered_and_names_the_rest(small, tmp_path):
    gate = tmp_path / "gate"
    lines = lines_of(30)
    for number in range(10, 30):
        lines[number] = jobs.chat_line(number, text=f"!gate={gate} x")
    made = jobs.start(small.client, jobs.jsonl(lines))
    while jobs.look(small.client, made["id"])["request_counts"]["completed"] < 10:
        time.sleep(0.05)
    in_use = small.client.delete(f"/v1/files/{made['input_file_id']}")
    assert (in_use.status_code, in_use.json()["error"]["code"]) == (409, "file_in_use")
    told = small.post(f"/v1/batches/{made['id']}/cancel").json()
    assert told["status"] in ("cancelling", "cancelled")
    batch = jobs.ended(small.client, made["id"])
    assert batch["status"] == "cancelled"
    assert batch["cancelling_at"] <= batch["cancelled_at"]
    assert batch["request_counts"] == {"total": 30, "completed": 10, "failed": 20}
    output, errors = jobs.results(small.client, batch)
    assert [line["custom_id"] for line in output] == [f"line-{n}" for n in range(10)]
    assert [line["custom_id"] for line in errors] == [f"line-{n}" for n in range(10, 30)]
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    small.until(lambda health: health["requests"] == 0 and health["engine"]["running"] == 0)
    again = small.post(f"/v1/batches/{made['id']}/cancel")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    assert small.client.delete(f"/v1/files/{made['input_file_id']}").json()["deleted"] is True


def test_a_finished_batch_cannot_be_cancelled(small):
    batch = jobs.ended(small.client, jobs.start(small.client, jobs.jsonl(lines_of(1)))["id"])
    refused = small.post(f"/v1/batches/{batch['id']}/cancel")
    assert refused.status_code == 400
    assert "completed" in refused.json()["error"]["message"]


def test_an_expired_batch_keeps_what_is_answered(small):
    lines = [jobs.chat_line(0), jobs.chat_line(1, text="!wait")]
    made = jobs.start(small.client, jobs.jsonl(lines), completion_window="2s")
    batch = jobs.ended(small.client, made["id"])
    assert batch["status"] == "expired"
    assert batch["expires_at"] <= batch["expired_at"]
    output, errors = jobs.results(small.client, batch)
    assert [line["custom_id"] for line in output] == ["line-0"]
    assert [(line["custom_id"], line["response"], line["error"]["code"]) for line in errors] == [
        ("line-1", None, "batch_expired")
    ]


def test_a_line_that_fails_the_engine_is_tried_again_and_then_reported(small):
    lines = [jobs.chat_line(0), jobs.chat_line(1, text="!error abc"), jobs.chat_line(2)]
    batch = jobs.ended(small.client, jobs.start(small.client, jobs.jsonl(lines))["id"])
    assert batch["status"] == "completed"
    output, errors = jobs.results(small.client, batch)
    assert [line["custom_id"] for line in output] == ["line-0", "line-2"]
    (failed,) = errors
    assert failed["response"]["status_code"] == 500
    assert failed["response"]["body"]["error"]["code"] == "engine_error"


def test_a_killed_engine_costs_no_line(folder):
    lines = [*lines_of(6), jobs.chat_line(6, text="!die abcdef"), *map(jobs.chat_line, range(7, 12))]
    with serving([str(folder)]) as served:
        batch = jobs.ended(served.client, jobs.start(served.client, jobs.jsonl(lines))["id"])
        output, errors = jobs.results(served.client, batch)
        assert [line["custom_id"] for line in output] == [f"line-{n}" for n in range(12) if n != 6]
        assert [line["custom_id"] for line in errors] == ["line-6"]
        assert served.health()["engine"]["restarts"] >= 2


def test_a_busy_engine_is_asked_again(small):
    """The engine always refuses this line, so the batch waits with it until its time is over."""
    lines = [jobs.chat_line(0), jobs.chat_line(1, text="!busy")]
    batch = jobs.ended(
        small.client, jobs.start(small.client, jobs.jsonl(lines), completion_window="3s")["id"]
    )
    assert batch["status"] == "expired"
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}


def test_lines_stand_behind_every_request(small):
    lines = [jobs.chat_line(0, text="!priority"), jobs.chat_line(1, text="!priority", priority=-5)]
    batch = jobs.ended(small.client, jobs.start(small.client, jobs.jsonl(lines))["id"])
    output, _ = jobs.results(small.client, batch)
    given = [int(line["response"]["body"]["choices"][0]["message"]["content"]) for line in output]
    online = small.post("/v1/completions", {"prompt": "!priority", "priority": 2**31 - 1}).json()
    assert min(given) > int(online["choices"][0]["text"])


def test_a_line_of_two_hundred_megabytes_is_never_in_memory(tmp_path):
    path = tmp_path / "in.jsonl"
    with path.open("wb") as file:
        file.write(jobs.jsonl([jobs.chat_line(0)]))
        file.truncate(200 * 10**6)
        file.seek(0, 2)
        file.write(b"\n" + jobs.jsonl([jobs.chat_line(1)]))
    limits = Limits(max_lines=50_000, max_bytes=300 * 10**6, max_line_bytes=10**6)
    tracemalloc.start()
    try:
        url = "/v1/chat/completions"
        with path.open("rb") as file, pytest.raises(Invalid) as caught:
            scan(file, limits, endpoint=url, urls=[url], check_model=lambda _name: None)
        assert tracemalloc.get_traced_memory()[1] < 16 * 10**6
    finally:
        tracemalloc.stop()
    assert [(error.code, error.line) for error in caught.value.errors] == [("line_too_long", 2)]


def test_the_client_names_a_missing_batch(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.batches.retrieve("batch_" + "0" * 32)
    assert caught.value.code == "not_found"
