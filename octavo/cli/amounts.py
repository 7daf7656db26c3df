"""Large numbers as people write them on a command line."""

from __future__ import annotations

import math
import re

from octavo.errors import ConfigError

SUFFIXES = {"": 0, "k": 3, "m": 6, "b": 9, "g": 9, "t": 12, "p": 15, "e": 18, "z": 21, "y": 24}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([A-Za-z]?)\s*", re.ASCII)


def amount(text: str) -> float:
    """`"13B"` -> 1.3e10, `"2T"` -> 2e12, `"5.76e23"` -> 5.76e23; decimal prefixes in either case, B as G.

    Raises ConfigError for what is no positive number.
    """
    found = _AMOUNT.fullmatch(text)
    if found is None or found[2].lower() not in SUFFIXES:
        raise ConfigError(f"{text!r} is not an amount; write it such as 13B, 2T, 400M or 5.76e23")
    value = float(f"{found[1]}") * 10.0 ** SUFFIXES[found[2].lower()]
    if not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{text!r} must be a positive amount, such as 13B, 2T or 5.76e23")
    return value


def short(value: float) -> str:
    """Three digits: `13.0B`, `2.38T`, `4.87e-03`; beyond a thousand trillions as `5.76e+23`."""
    for exponent, suffix in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if 10.0**exponent <= abs(value) < 10.0 ** (exponent + 3):
            return f"{_three(value / 10.0**exponent)}{suffix}"
    return _three(value) if 1e-3 <= abs(value) < 1e3 or value == 0 else f"{value:.3g}"


def _three(value: float) -> str:
    return (
        f"{value:.{max(0, 2 - int(math.log10(max(abs(value), 1.0))))}f}"
        if abs(value) >= 1
        else f"{value:.3g}"
    )
