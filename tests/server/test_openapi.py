"""The OpenAPI document: true of the server, and what the server may be tried with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks

from octavo.server.app import ALL, described
from octavo.server.console import STATIC
from octavo.server.endpoints import ENDPOINTS
from tests.server.process import Served

DOCUMENT = json.loads(described(False, False))
schema = schemathesis.openapi.from_dict(DOCUMENT)
TRUE_OF_THE_SERVER = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.unsupported_method,
    checks.use_after_free,
]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for inner in node.values():
            yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


def test_it_is_served_and_is_an_openapi_document(server):
    served = server.get("/openapi.json")
    assert served.status_code == 200
    assert served.headers["content-type"] == "application/json"
    assert served.json() == DOCUMENT
    schema.validate()


def test_every_reference_leads_somewhere():
    for reference in set(references(DOCUMENT)):
        at = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            at = at[step]
    names = DOCUMENT["components"]["schemas"]
    assert {"ChatRequest", "chat.Message", "messages.Message"} <= set(names)
    assert not [name for name in names if "octavo" in name]


def test_every_operation_is_in_it_with_what_it_takes_and_gives():
    for operation in ALL:
        found = DOCUMENT["paths"][operation.path.replace(":path", "")][operation.method.lower()]
        assert found["summary"] == operation.summary
        assert ("requestBody" in found) == (operation.takes is not None)
        content = found["responses"]["200"]["content"]
        assert content
        assert ("text/event-stream" in content) == (operation.events is not None)
    assert set(ENDPOINTS) <= set(DOCUMENT["paths"])
    ids = [one["operationId"] for path in DOCUMENT["paths"].values() for one in path.values()]
    assert len(ids) == len(set(ids)) == len(ALL)


def test_where_keys_are_asked_for_it_says_so():
    locked = json.loads(described(True, False))
    assert locked["security"] == [{"bearer": []}, {"x-api-key": []}]
    open_paths = {
        path for path, methods in locked["paths"].items() for one in methods.values() if "security" in one
    }
    assert open_paths == {"/health", "/health/live", "/health/ready", "/ping", *STATIC}
    assert "security" in json.loads(described(True, True))["paths"]["/metrics"]["get"]


@schema.parametrize()
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_it_allows_is_answered_as_it_says(server: Served, case: schemathesis.Case) -> None:
    case.call_and_validate(base_url=server.url, checks=TRUE_OF_THE_SERVER, timeout=30)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_it_allows_is_answered_as_it_says_thoroughly(
    server: Served, case: schemathesis.Case
) -> None:
    case.call_and_validate(base_url=server.url, checks=TRUE_OF_THE_SERVER, timeout=30)
