"""Batches for tests: input files, waiting for the end, reading results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

import httpx

ENDED = ("completed", "failed", "expired", "cancelled")


def chat_line(number: int, text: str | None = None, **fields: Any) -> dict[str, Any]:
    """One line; the fake engine's answer is the text, by default `answer NUMBER`."""
    messages = [{"role": "user", "content": f"say:answer {number}" if text is None else text}]
    body = {"model": "fake", "messages": messages, **fields}
    return {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def jsonl(lines: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def upload(client: httpx.Client, content: bytes, name: str = "in.jsonl", **fields: str) -> str:
    answer = client.post("/v1/files", data={"purpose": "batch", **fields}, files={"file": (name, content)})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def start(client: httpx.Client, content: bytes, **fields: Any) -> dict[str, Any]:
    asked = {
        "input_file_id": upload(client, content),
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        **fields,
    }
    answer = client.post("/v1/batches", json=asked)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def look(client: httpx.Client, batch_id: str) -> dict[str, Any]:
    answer = client.get(f"/v1/batches/{batch_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ended(client: httpx.Client, batch_id: str, within_s: float = 120.0) -> dict[str, Any]:
    """The batch in its last state."""
    deadline_s = time.monotonic() + within_s
    while (batch := look(client, batch_id))["status"] not in ENDED:
        assert time.monotonic() < deadline_s, batch
        time.sleep(0.05)
    return batch


def results(client: httpx.Client, batch: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The lines of the output and of the error file."""
    read = []
    for name in ("output_file_id", "error_file_id"):
        if batch[name] is None:
            read.append([])
            continue
        answer = client.get(f"/v1/files/{batch[name]}/content")
        assert answer.status_code == 200, answer.text
        read.append([json.loads(line) for line in answer.content.splitlines()])
    return read[0], read[1]
