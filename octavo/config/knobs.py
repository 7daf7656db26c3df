"""One setting in all its spellings: as a field, a flag, a variable and a TOML key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import ConfigError
from octavo.units import parse_bytes, parse_count, parse_seconds


def setting(
    default: Any, help: str, *, text: str = "str", none: str | None = None, secret: bool = False
) -> Any:
    """A field with what the table needs beside its name: how its text is read, and a line of help."""
    meta = {"help": help, "text": text, "none": none, "secret": secret}
    return field(default=default, metadata=meta)


def _read_bool(text: str) -> bool:
    words = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }
    if text.strip().lower() not in words:
        raise ConfigError(f"{text!r} is neither true nor false")
    return words[text.strip().lower()]


def _read_list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_READ: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "count": parse_count,
    "bytes": parse_bytes,
    "seconds": parse_seconds,
    "bool": _read_bool,
    "list": _read_list,
}
_KIND = {"int": "whole number"}


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting in all its spellings.

    section   name of the dataclass it belongs to in `EngineConfig`, or "server"
    text      how a flag or variable is read: str, int, count, bytes, seconds, bool or list
    none      word for None: "auto" where the engine then decides, "none" where nothing is meant; None where a
              value is needed
    secret    its value is never printed
    """

    name: str
    section: str
    default: Any
    help: str
    text: str
    none: str | None
    secret: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "OCTAVO_" + self.name.upper()

    def parse(self, text: str) -> Any:
        """The value a flag or a variable spells. Raises ConfigError that names the setting."""
        if self._is_none(text):
            return None
        try:
            return _READ[self.text](text)
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None
        except ValueError:
            raise ConfigError(f"{self.name} must be a {_KIND[self.text]}, got {text!r}") from None

    def _is_none(self, text: str) -> bool:
        return self.none is not None and text.strip().lower() in ("none", self.none)

    def accept(self, value: Any) -> Any:
        """The value a TOML key holds: text is parsed where a unit may stand, lists become tuples."""
        if isinstance(value, str) and self.text in ("bytes", "seconds", "count", "list"):
            return self.parse(value)
        if isinstance(value, str) and self._is_none(value):
            return None
        if self.text == "seconds" and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return tuple(value) if self.text == "list" and isinstance(value, list) else value


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
