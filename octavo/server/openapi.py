"""The OpenAPI document of a server, from its operations and the types that read and write its bodies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from octavo.api.faults import MESSAGES_PATH, ROWS, ErrorBody, MessagesErrorBody
from octavo.server.operations import Operation, Schema, Takes

OPENAPI_VERSION = "3.1.0"
_REF = "#/components/schemas/{name}"
_KEYS: Schema = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def document(
    operations: Sequence[Operation], *, version: str, keyless: Iterable[str], wants_key: bool
) -> dict[str, Any]:
    """The document, ready for JSON.

    keyless    paths that need no key
    wants_key  whether the others need one
    """
    types = [kind for operation in operations for kind in _types(operation)]
    schemas, components = _schemas([*types, ErrorBody, MessagesErrorBody])
    open_paths = frozenset(keyless)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        described = _operation(operation, schemas)
        if operation.path in open_paths:
            described["security"] = []
        paths.setdefault(_plain(operation.path), {})[operation.method.lower()] = described
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": "Octavo", "version": version},
        "security": [{name: []} for name in _KEYS] if wants_key else [],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": dict(_KEYS),
            "responses": {
                f"{name}{kind}": _refusals(kind, schemas[body])
                for name, body in (("", ErrorBody), ("Messages", MessagesErrorBody))
                for kind in ("4XX", "5XX")
            },
        },
    }


def _types(operation: Operation) -> list[type]:
    taken = operation.takes.types if operation.takes is not None else ()
    return [kind for kind in (*taken, operation.gives, operation.events) if kind is not None]


def _schemas(types: list[type]) -> tuple[dict[type, Schema], dict[str, Any]]:
    """A schema for each type, and what those refer to. Names say only as much of their module as tells them apart."""
    unique = list(dict.fromkeys(types))
    made, components = msgspec.json.schema_components(unique, ref_template=_REF)
    short = msgspec.json.encode((made, components)).replace(b"/octavo.api.", b"/")
    made, components = msgspec.json.decode(short)
    components = {name.removeprefix("octavo.api."): schema for name, schema in components.items()}
    return dict(zip(unique, made, strict=True)), components


def _operation(operation: Operation, schemas: dict[type, Schema]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method.lower()}{re.sub(r'[^a-z0-9]+', '_', _plain(operation.path))}".strip(
            "_"
        ),
        "responses": _responses(operation, schemas),
    }
    names = re.findall(r"{(\w+)", operation.path)
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ] + [{"name": name, "in": "query", "schema": schema} for name, schema in operation.query.items()]
    if parameters:
        described["parameters"] = parameters
    if operation.takes is not None:
        described["requestBody"] = {"required": True, "content": _content(operation.takes, schemas)}
    return described


def _content(takes: Takes, schemas: dict[type, Schema]) -> dict[str, Any]:
    if takes.form is not None:
        return {"multipart/form-data": {"schema": takes.form}}
    each = [schemas[kind] for kind in takes.types]
    return {"application/json": {"schema": each[0] if len(each) == 1 else {"anyOf": each}}}


def _responses(operation: Operation, schemas: dict[type, Schema]) -> dict[str, Any]:
    content: dict[str, Any] = {media: {} for media in operation.media}
    if operation.gives is not None:
        content["application/json"] = {"schema": schemas[operation.gives]}
    if operation.events is not None:
        content["text/event-stream"] = {"schema": {"type": "string"}, "x-event": schemas[operation.events]}
    answers: dict[str, Any] = {"200": {"description": operation.summary, "content": content}}
    if operation.path.startswith("/health"):
        answers["503"] = {"description": "Not now", "content": content}
    prefix = "Messages" if operation.path.startswith(MESSAGES_PATH) else ""
    for kind in ("4XX", "5XX"):
        answers[kind] = {"$ref": f"#/components/responses/{prefix}{kind}"}
    return answers


def _refusals(kind: str, schema: Schema) -> dict[str, Any]:
    rows = sorted((row.status, code) for code, row in ROWS.items() if str(row.status)[0] == kind[0])
    said = "; ".join(f"{status} {code}" for status, code in rows)
    return {"description": said, "content": {"application/json": {"schema": schema}}}


def _plain(path: str) -> str:
    """A path as the document writes it: without the router's kinds of parameters."""
    return re.sub(r"{(\w+):\w+}", r"{\1}", path)
