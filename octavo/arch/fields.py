"""Typed reading of JSON objects; a complaint names the file, the field, the value and what was expected."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.errors import LoadError


class Fields:
    """The fields of one JSON object.

    source  file they came from, for errors
    prefix  path of this object inside the file, with a trailing dot; "" at the top
    """

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self.values, self.source, self.prefix = values, source, prefix

    def has(self, name: str) -> bool:
        """Present and not null."""
        return self.values.get(name) is not None

    def fail(self, name: str, expected: str) -> LoadError:
        """The error to raise for a field that is missing or holds something else than `expected`."""
        field = self.prefix + name
        if name not in self.values:
            return LoadError(f"{self.source}: {field} is missing; expected {expected}")
        return LoadError(f"{self.source}: {field} is {shorten(self.values[name])}; expected {expected}")

    def whole(self, name: str, high: int, default: int | None = None, *, low: int = 1) -> int:
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(name, f"a whole number between {low} and {high}")
        return value

    def number(self, name: str, default: float | None = None, *, low: float, is_open: bool = False) -> float:
        """A finite number of at least `low`, or above it when `is_open`."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        expected = f"a number {'above' if is_open else 'of at least'} {low:g}"
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.fail(name, expected)
        if value < low or (is_open and value == low):
            raise self.fail(name, expected)
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(name, "true or false")
        return value

    def inner(self, name: str) -> Fields | None:
        """The object under `name`, or None when it is missing, null or empty."""
        value = self.values.get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            raise self.fail(name, "an object or null")
        return Fields(value, self.source, f"{self.prefix}{name}.")


def shorten(value: object) -> str:
    """JSON text of a value, cut where it would fill the screen."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:117] + "..."


def read_json(file: Path) -> Fields:
    """The object a file holds. Raises LoadError when there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(
            f"{file} does not exist; expected a config.json, or a folder in Hugging Face layout that holds one"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise LoadError(f"{file} holds {shorten(values)}; expected a JSON object")
    return Fields(values, str(file))
