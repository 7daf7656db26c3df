"""Parse and format bytes, seconds and counts; the one place that knows GiB from GB.

Values live in base units (bytes, seconds, plain counts) everywhere else and are formatted at the edge.
Parsing is strict: a unit that can mean two things (`8G`, `5m`) is refused with both readings named.
"""

from __future__ import annotations

import math
import re
from typing import TypeVar

from octavo.errors import ConfigError

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

_N = TypeVar("_N", int, float)

_BYTES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB,
}  # fmt: skip
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0, "d": 86400.0}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_QUANTITY = re.compile(r"\s*(\d+(?:_\d+)*(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_bytes(text: str) -> int:
    """`"8GiB"` -> 8589934592, `"8 GB"` -> 8000000000, `"4096"` -> 4096. Raises ConfigError."""
    number, unit = _split("size", text, "such as 8GiB, 500MB or 4096")
    if unit.lower() in ("k", "m", "g", "t"):
        binary, decimal = f"{unit.upper()}iB", f"{unit.upper()}B"
        raise ConfigError(
            f"size {text!r} is ambiguous: write {number}{binary} (powers of 1024) or {number}{decimal}"
        )
    return _whole("size", text, number, _factor("size", text, unit, _BYTES))


def parse_seconds(text: str) -> float:
    """`"500ms"` -> 0.5, `"2min"` -> 120.0, `"10"` -> 10.0. Raises ConfigError."""
    number, unit = _split("time", text, "such as 500ms, 10s, 2min or 1h")
    if unit.lower() == "m":
        raise ConfigError(f"time {text!r} is ambiguous: write {number}min or {number}ms")
    return float(number) * _factor("time", text, unit, _SECONDS)


def parse_count(text: str) -> int:
    """`"4096"` -> 4096, `"4k"` -> 4000, `"4Ki"` -> 4096, `"1.5M"` -> 1500000. Raises ConfigError."""
    number, unit = _split("count", text, "such as 4096, 4k (4000) or 4Ki (4096)")
    return _whole("count", text, number, _factor("count", text, unit, _COUNTS))


def format_bytes(num_bytes: float) -> str:
    """`1.50 GiB`: binary units, three significant digits; whole bytes below 1 KiB."""
    for size, unit in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(num_bytes) >= size:
            return f"{_digits(num_bytes / size)} {unit}"
    return f"{num_bytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """`1.50 ms`, `12.3 s`, `4 min 05 s`, `3 h 20 min`."""
    if not math.isfinite(seconds):
        return str(seconds)
    if abs(seconds) >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if abs(seconds) >= 120:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(seconds) >= size:
            return f"{_digits(seconds / size)} {unit}"
    return "0 s" if seconds == 0 else f"{_digits(seconds / 1e-9)} ns"


def format_count(count: float) -> str:
    """`999`, `1.50 k`, `6.74 M`, `1.24 G`: decimal prefixes."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{_digits(count / size)} {unit}"
    return f"{count:.0f}" if float(count).is_integer() else _digits(count)


def format_rate(per_s: float, unit: str) -> str:
    """`1.50 k tok/s`, `312 GB/s` (decimal prefixes, as rates are quoted)."""
    text = format_count(per_s)
    return f"{text}{unit}/s" if text[-1].isalpha() else f"{text} {unit}/s"


def _digits(value: float) -> str:
    return f"{value:.{max(0, 2 - int(math.log10(max(abs(value), 1.0))))}f}"


def _split(kind: str, text: str, example: str) -> tuple[str, str]:
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ConfigError(f"{kind} {text!r} is not a number with a unit; write it {example}")
    return found[1].replace("_", ""), found[2]


def _factor(kind: str, text: str, unit: str, table: dict[str, _N]) -> _N:
    if unit.lower() not in table:
        known = ", ".join(name for name in table if name)
        raise ConfigError(f"{kind} {text!r} has the unknown unit {unit!r}; known units: {known}")
    return table[unit.lower()]


def _whole(kind: str, text: str, number: str, factor: int) -> int:
    whole, _, fraction = number.partition(".")
    scaled = int(whole + fraction) * factor
    ones = int(10 ** len(fraction))
    value, rest = divmod(scaled, ones)
    if rest:
        raise ConfigError(f"{kind} {text!r} is not a whole number ({scaled / ones:g})")
    return value
