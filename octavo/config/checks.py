"""What a setting's value must be. Each raises ConfigError that names the setting, the limit and the value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from octavo.errors import ConfigError


def text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} must be a non-empty text, got {value!r}")


def boolean(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")


def one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    if value not in (names := tuple(allowed)):
        raise ConfigError(f"{name} must be one of {', '.join(names)}, got {value!r}")


def dtype(name: str, value: str, spellings: Mapping[str, str], later: tuple[str, ...] = ()) -> str:
    names = list(dict.fromkeys(spellings.values()))
    choice = f"{', '.join(names[:-1])} or {names[-1]}"
    if value in later:
        raise ConfigError(f"{name} is {value!r}: this build does not store it yet; use {choice}")
    if value not in spellings:
        raise ConfigError(f"{name} must be {choice}, got {value!r}")
    return spellings[value]


def whole(name: str, value: object, low: int, high: int | None) -> None:
    limit = f"at least {low}" if high is None else f"from {low} to {high}"
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < low
        or (high is not None and value > high)
    ):
        raise ConfigError(f"{name} must be a whole number {limit}, got {value!r}")


def optional_whole(name: str, value: object, low: int, high: int | None) -> None:
    if value is not None:
        whole(name, value, low, high)


def number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
    if not low <= value <= high:
        raise ConfigError(f"{name} must be from {low:g} to {high:g}, got {value!r}")
