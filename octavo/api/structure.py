"""How a request says what its answer must look like: OpenAI's field, vLLM's, and vLLM's older ones."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import msgspec

from octavo.core.sequence import Grammar
from octavo.errors import RequestError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    """`strict` changes nothing: a schema is followed to the letter or refused."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema: Any = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """json: a schema, or one written out as a text."""

    json: Any = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class Structured(msgspec.Struct, frozen=True, kw_only=True):
    """The fields, of which a request uses one at most."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    def grammar(self) -> Grammar | None:
        """What the answer must follow; None when it may be anything.

        Raises RequestError for more than one of the fields, and for what is wrong with one on its surface.
        """
        asked = self._asked()
        return asked[0][1] if asked else None

    @property
    def grammar_param(self) -> str | None:
        """The name of the field that says so."""
        asked = self._asked()
        return asked[0][0] if asked else None

    def _asked(self) -> list[tuple[str, Grammar]]:
        found = [*_of_format(self.response_format), *_of_outputs(self.structured_outputs)]
        found += _of_parts(
            "guided_", self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar
        )
        if len(found) > 1:
            raise RequestError(
                f"{found[0][0]} and {found[1][0]} both say what the answer looks like; send one of them",
                param=found[1][0].partition(".")[0],
            )
        return found


def _of_format(asked: ResponseFormat | None) -> list[tuple[str, Grammar]]:
    if asked is None or asked.type == "text":
        return []
    if asked.type == "json_object":
        return [("response_format", Grammar(kind="json_object"))]
    schema = asked.json_schema
    if schema is None or schema.schema is None:
        raise RequestError(
            "response_format of type json_schema needs json_schema.schema",
            param="response_format.json_schema" if schema is None else "response_format.json_schema.schema",
        )
    if schema.name is not None and not _NAME.fullmatch(schema.name):
        raise RequestError(
            "response_format.json_schema.name must be 1 to 64 letters, digits, _ or -",
            param="response_format.json_schema.name",
        )
    param = "response_format.json_schema.schema"
    return [(param, Grammar(kind="json_schema", source=_schema_text(schema.schema, param)))]


def _of_outputs(asked: StructuredOutputs | None) -> list[tuple[str, Grammar]]:
    if asked is None:
        return []
    found = _of_parts("structured_outputs.", asked.json, asked.regex, asked.choice, asked.grammar)
    if asked.json_object:
        found.append(("structured_outputs.json_object", Grammar(kind="json_object")))
    if not found:
        raise RequestError(
            "structured_outputs needs one of json, json_object, regex, choice, grammar",
            param="structured_outputs",
        )
    return found


def _of_parts(
    prefix: str, schema: Any, regex: str | None, choice: list[str] | None, grammar: str | None
) -> list[tuple[str, Grammar]]:
    found = []
    if schema is not None:
        text = schema if isinstance(schema, str) else _schema_text(schema, f"{prefix}json")
        found.append((f"{prefix}json", Grammar(kind="json_schema", source=text)))
    if regex is not None:
        found.append((f"{prefix}regex", Grammar(kind="regex", source=regex)))
    if choice is not None:
        found.append(
            (f"{prefix}choice", Grammar(kind="choice", source=json.dumps(choice, ensure_ascii=False)))
        )
    if grammar is not None:
        found.append((f"{prefix}grammar", Grammar(kind="lark", source=grammar)))
    return found


def _schema_text(schema: Any, param: str) -> str:
    """The schema as it came, its keys in their order."""
    try:
        return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise RequestError(f"{param} is nested too deeply", param=param) from None
