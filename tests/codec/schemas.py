"""Schemas with documents that fit and documents that do not; a validator of its own kind confirms both."""

from __future__ import annotations

from typing import Any

CASES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "any": (True, [1, "x", None, [1, {"a": 2}], {"b": []}], []),
    "string": ({"type": "string"}, ["", "héllo \"x\" \\ \n", "😀"], [1, None, ["a"]]),
    "integer": ({"type": "integer"}, [0, -7, 123456], [1.5, "1", None]),
    "number": ({"type": "number"}, [0, -1.25, 1e10], ["1", True]),
    "null": ({"type": "null"}, [None], [0, False]),
    "several types": ({"type": ["string", "null"]}, ["a", None], [1, []]),
    "enum": ({"enum": ["red", 3, None, [1, 2]]}, ["red", 3, None, [1, 2]], ["blue", 4, [1]]),
    "const": ({"const": {"a": [1, "b"]}}, [{"a": [1, "b"]}], [{"a": [1]}, {}]),
    "range": ({"type": "integer", "minimum": -3, "maximum": 120}, [-3, 0, 120, 99], [-4, 121, 1000]),
    "exclusive range": ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5, 0.01], [0, 1, 2]),
    "multiple": ({"type": "integer", "multipleOf": 7}, [0, 14, -21], [15, 1]),
    "lengths": ({"type": "string", "minLength": 2, "maxLength": 4}, ["ab", "abcd", "äöü"], ["a", "abcde"]),
    "pattern": ({"type": "string", "pattern": "^[a-c]+\\d$"}, ["abc1", "a0"], ["abc", "d1", "1"]),
    "pattern within": ({"type": "string", "pattern": "b\\d"}, ["ab1c", "b2"], ["abc", ""]),
    "pattern and lengths": (
        {"type": "string", "pattern": "^[ab]+$", "minLength": 2, "maxLength": 3}, ["ab", "bab"], ["a", "abab", "ac"],
    ),
    "date": ({"type": "string", "format": "date"}, ["2024-02-28"], ["2024-2-8", "yesterday"]),
    "uuid": ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
    "ipv4": ({"type": "string", "format": "ipv4"}, ["127.0.0.1"], ["256.0.0.1", "1.2.3"]),
    "array": ({"type": "array", "items": {"type": "integer"}}, [[], [1], [1, 2, 3]], [["a"], [1, None], {}]),
    "array lengths": ({"type": "array", "items": {}, "minItems": 1, "maxItems": 2}, [[1], ["a", {}]], [[], [1, 2, 3]]),
    "tuple": (
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 2},
        [[1, "a"]], [["a", 1], [1], [1, "a", 2]],
    ),
    "object": (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["b"]},
        [{"a": 1, "b": "x"}, {"b": "x"}, {"b": "x", "c": [1]}], [{"a": 1}, {"a": "1", "b": "x"}, []],
    ),
    "closed object": (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False},
        [{}, {"a": 5}], [{"b": 1}, {"a": 1, "b": 1}],
    ),
    "typed additional": (
        {"type": "object", "additionalProperties": {"type": "boolean"}}, [{}, {"x": True, "y": False}], [{"x": 1}],
    ),
    "pattern properties": (
        {"type": "object", "patternProperties": {"^s_": {"type": "string"}}, "additionalProperties": False},
        [{}, {"s_a": "1", "s_b": "2"}], [{"s_a": 1}, {"n_a": "x"}],
    ),
    "property counts": (
        {"type": "object", "minProperties": 1, "maxProperties": 2, "additionalProperties": {"type": "integer"}},
        [{"a": 1}, {"a": 1, "b": 2}], [{}, {"a": 1, "b": 2, "c": 3}],
    ),
    "any of": ({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]}, [5, "ab"], ["abc", None]),
    "all of": ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, [3, 4, 5], [2, 6, "4"]),
    "all of objects": (
        {"allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]},
        ]},
        [{"a": 1, "b": 2}], [{"a": 1}, {"b": 2}, {"a": "x", "b": 1}],
    ),
    "definitions": (
        {"$defs": {"n": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/n"}}, [[], [1, 2]], [["a"]],
    ),
    "recursion": (
        {"$defs": {"node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["v", "next"], "additionalProperties": False,
        }}, "$ref": "#/$defs/node"},
        [{"v": 1, "next": None}, {"v": 1, "next": {"v": 2, "next": {"v": 3, "next": None}}}],
        [{"v": 1}, {"v": 1, "next": {"v": 2}}, {"v": 1, "next": 3}],
    ),
    "annotations": (
        {"type": "integer", "title": "t", "description": "d", "default": 3, "examples": [1], "x-mine": 1}, [4], ["4"],
    ),
}  # fmt: skip

REFUSED: dict[str, Any] = {
    "not": {"not": {"type": "integer"}},
    "uniqueItems": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    "if": {"if": {"type": "integer"}, "then": {"minimum": 3}},
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "contains": {"type": "array", "contains": {"type": "integer"}},
    "minContains": {"type": "array", "minContains": 2},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^a"}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"type": "object", "dependentSchemas": {"a": {}}},
    "dependencies": {"type": "object", "dependencies": {"a": ["b"]}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "unevaluatedItems": {"type": "array", "unevaluatedItems": False},
    "$dynamicRef": {"$dynamicRef": "#x"},
    "min/maxProperties": {"type": "object", "properties": {"a": {}}, "minProperties": 1},
    "made-up": {"type": "string", "format": "made-up"},
    "https://example.com/x.json": {"$ref": "https://example.com/x.json"},
    "/etc/passwd": {"$ref": "file:///etc/passwd"},
    "/definitions/no": {"$ref": "#/definitions/no"},
    "look-around": {"type": "string", "pattern": "(?=a)b"},
    "incompatible types": {"allOf": [{"type": "integer"}, {"type": "string"}]},
    "minLength": {"type": "string", "minLength": 5, "maxLength": 3},
    "nothing": {"$ref": "#"},
    "nope": {"type": "nope"},
}
"""What the refusal names -> a schema that is not followed, because it cannot be followed to the letter."""
