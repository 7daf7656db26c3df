"""Requests that are almost right: from good ones and from the types of the OpenAPI document, by seeded accidents."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

USER = {"role": "user", "content": "say:yes"}
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GOOD: Mapping[str, Sequence[Any]] = {
    "/v1/chat/completions": [
        {"model": "fake", "messages": [USER], "max_tokens": 5, "temperature": 0.5, "seed": 1, "n": 2},
        {
            "messages": [{"role": "system", "content": "be"}, USER],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        {
            "messages": [USER],
            "logprobs": True,
            "top_logprobs": 3,
            "stop": ["e", "x"],
            "logit_bias": {"5": 1.5},
        },
        {"messages": [USER], "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
        {
            "messages": [USER],
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        },
        {
            "messages": [USER, {"role": "assistant", "content": "so"}, USER],
            "chat_template_kwargs": {"thinking": True},
        },
    ],
    "/v1/completions": [
        {"prompt": "say:hi", "max_tokens": 3, "echo": True, "logprobs": 2},
        {"prompt": ["say:a", "say:b"], "best_of": 2, "n": 1, "stream": False},
        {"prompt": [[65, 66], [67]], "max_tokens": 0, "echo": True, "stream": True},
        {
            "prompt": "say:hi",
            "structured_outputs": {"choice": ["a", "b"]},
            "stop_token_ids": [3],
            "bad_words": ["x"],
        },
    ],
    "/v1/embeddings": [
        {"input": "a text", "encoding_format": "base64", "dimensions": 4},
        {"input": [[65, 66], [67, 68]], "model": "fake"},
    ],
    "/v1/responses": [
        {
            "input": "say:hi",
            "instructions": "be",
            "max_output_tokens": 4,
            "store": False,
            "metadata": {"a": "b"},
        },
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "say:x"}]}], "stream": True},
        {"input": "say:hi", "text": {"format": {"type": "json_object"}}, "reasoning": {"effort": "low"}},
    ],
    "/v1/messages": [
        {"max_tokens": 4, "messages": [USER], "system": "be", "stop_sequences": ["q"], "stream": True},
        {"max_tokens": 4, "messages": [{"role": "user", "content": [{"type": "text", "text": "say:y"}]}]},
    ],
    "/v1/responses/input_tokens": [{"input": "abc", "instructions": "d"}],
    "/v1/messages/count_tokens": [{"messages": [USER], "system": "s"}],
    "/v1/batches": [{"input_file_id": "file-0", "endpoint": "/v1/completions", "completion_window": "24h"}],
    "/tokenize": [{"prompt": "abc", "return_token_strs": True}, {"messages": [USER]}],
    "/v1/tokenize": [{"prompt": "abc"}],
    "/detokenize": [{"tokens": [65, 66]}],
    "/v1/detokenize": [{"tokens": [65, 66]}],
}
ODD: Sequence[Any] = (
    None, True, False, 0, -1, 1, 2, 7, 129, 2**31 - 1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0,
    1e-320, 1e308, "", "a", "0", "auto", "none", "null", "\x00", "\u202e", "\ud800", "\U0001f600", "é" * 40, "x" * 3000,
    "../../etc/passwd", "<script>", "%s%n", "file-0", [], [[]], [None], [1, "a"], [[[[[]]]]], {}, {"": None},
    {"a": {"a": {}}}, {"type": "text"}, {"type": "object", "properties": []}, {"$ref": "http://127.0.0.1:1/x"},
    {"role": "user"},
)  # fmt: skip
HEADERS: Sequence[Mapping[str, bytes]] = (
    {"content-type": b"text/plain"},
    {"content-type": b"application/json; charset=utf-16"},
    {"content-encoding": b"gzip"},
    {"idempotency-key": b"the-same"},
    {"idempotency-key": b""},
    {"x-request-id": b"\xff\xfe"},
    {"x-request-id": b"a" * 4000},
    {"traceparent": b"00-zz-zz-01"},
    {"authorization": b"Bearer \xc3\xa9"},
    {"accept": b"application/xml"},
    {"x-stainless-retry-count": b"many"},
    {"expect": b"100-continue"},
)
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE")


@dataclass
class Request:
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, bytes] = field(default_factory=dict)


class Fuzzer:
    """An endless supply. The same seed gives the same requests."""

    def __init__(self, document: Mapping[str, Any], seed: int, ids: Sequence[str] = ()) -> None:
        self._rng = random.Random(seed)
        self._document = document
        self._ids = [*ids, "file-0", "x", "%00", "..", "é", "a" * 300]
        self._operations = [
            (method.upper(), path, described)
            for path, methods in document["paths"].items()
            for method, described in methods.items()
        ]
        self._posts = [path for path in GOOD if path in document["paths"]]

    def request(self) -> Request:
        rng = self._rng
        if rng.random() < 0.8:
            request = self._post(rng.choice(self._posts))
        else:
            method, path, described = rng.choice(self._operations)
            request = self._post(path) if path in GOOD else self._look(method, path, described)
        if rng.random() < 0.03:
            request.headers |= rng.choice(HEADERS)
        if rng.random() < 0.02:
            request.method = rng.choice(METHODS)
        return request

    def _look(self, method: str, path: str, described: Mapping[str, Any]) -> Request:
        rng = self._rng
        query = []
        for parameter in described.get("parameters", ()):
            if parameter["in"] == "path":
                path = path.replace("{" + parameter["name"] + "}", _quoted(rng.choice(self._ids)))
            elif rng.random() < 0.5:
                value = rng.choice(["1", "0", "-1", "asc", "desc", "x", "", "99999999999", *self._ids])
                query.append(f"{parameter['name']}={_quoted(value)}")
        return Request(method, path + ("?" + "&".join(query) if query else ""))

    def _post(self, path: str) -> Request:
        rng = self._rng
        body = json.loads(json.dumps(rng.choice(GOOD[path])))
        schema = self._document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 5))):
            body = self._accident(body, schema)
        text = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        if rng.random() < 0.05:
            text = self._scratched(text)
        return Request("POST", path, text, {"content-type": b"application/json"})

    def _accident(self, body: Any, schema: Mapping[str, Any]) -> Any:
        """One change, somewhere."""
        rng = self._rng
        if not isinstance(body, dict) or rng.random() < 0.02:
            return self._odd()
        if rng.random() < 0.4:
            properties = self._resolved(schema).get("properties", {})
            if properties:
                name = rng.choice(list(properties))
                body[name] = self._value(properties[name], 0)
                return body
        place, key = self._place(body)
        match rng.randrange(5):
            case 0:
                place[key] = self._odd()
            case 1:
                del place[key]
            case 2:
                place[key] = [place[key]]
            case 3 if isinstance(place, dict):
                place[rng.choice(("x", "", "__proto__", "stream", "n", key.upper()))] = self._odd()
            case _ if isinstance(place[key], str):
                place[key] = place[key] * rng.randrange(3) + str(self._odd())[:99]
            case _:
                place[key] = self._odd()
        return body

    def _place(self, body: dict[str, Any]) -> tuple[Any, Any]:
        """Somewhere in it: a container and a key or index that it has."""
        rng = self._rng
        at: Any = body
        while True:
            keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                body.setdefault("x", 1)
                return body, rng.choice(list(body))
            key = rng.choice(keys)
            if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.7:
                at = at[key]
                continue
            return at, key

    def _odd(self) -> Any:
        return copy.deepcopy(self._rng.choice(ODD))

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        if "anyOf" in schema:
            return self._resolved(self._rng.choice(schema["anyOf"]))
        if "$ref" in schema:
            return self._resolved(self._document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
        return schema

    def _value(self, schema: Mapping[str, Any], depth: int) -> Any:
        """A value as a type wants it, or now and then another."""
        rng = self._rng
        if rng.random() < 0.1 or depth > 4:
            return self._odd()
        schema = self._resolved(schema)
        if "enum" in schema:
            return rng.choice(schema["enum"])
        makers: Mapping[str, Callable[[], Any]] = {
            "string": lambda: rng.choice(("say:a", "", "auto", "b", "function", "text", "user", "é")),
            "integer": lambda: rng.choice((0, 1, 2, 5, 20, -1, 1000)),
            "number": lambda: rng.choice((0, 0.0, 0.3, 1.0, 2.0, -2.0, 3.5)),
            "boolean": lambda: rng.random() < 0.5,
            "null": lambda: None,
            "array": lambda: [
                self._value(schema.get("items", {}), depth + 1) for _ in range(rng.randrange(3))
            ],
            "object": lambda: self._object(schema, depth),
        }
        return makers.get(schema.get("type", ""), lambda: self._odd())()

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        wanted = [
            name for name in properties if name in schema.get("required", ()) or self._rng.random() < 0.2
        ]
        if not properties:
            return {
                key: self._value(schema.get("additionalProperties") or {}, depth + 1) for key in ("a", "5")
            }
        return {name: self._value(properties[name], depth + 1) for name in wanted}

    def _scratched(self, text: bytes) -> bytes:
        """Bytes lost, doubled or changed."""
        rng = self._rng
        at = rng.randrange(len(text) + 1)
        match rng.randrange(4):
            case 0:
                return text[:at]
            case 1:
                return text[:at] + rng.randbytes(rng.randrange(1, 4)) + text[at:]
            case 2:
                return text[:at] + text[at + rng.randrange(1, 9) :]
            case _:
                return text[:at] + text


def _quoted(text: str) -> str:
    return text if text.startswith("%") else quote(text, safe="")
