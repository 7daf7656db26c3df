"""A bound on the work a chat template may do.

Work is counted, not timed: every turn of a loop, every call, filter and operation costs one unit plus the
size of what it goes through. So a template is refused after the same work on every machine, no clock is
needed, and the bound holds however the work is spread. One unit is about a microsecond.
"""

from __future__ import annotations

import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

CHARS_PER_UNIT = 64
MAX_INT_BITS = 4096


class Exhausted(Exception):
    """A template asked for more work, or for a larger value, than is allowed."""


@dataclass(slots=True)
class Meter:
    """Counts down while one template runs.

    max_units  work left
    max_chars  longest text that may be made, also on the way
    """

    max_units: int
    max_chars: int
    _start: int = field(init=False)

    def __post_init__(self) -> None:
        self._start = self.max_units

    def charge(self, units: int) -> None:
        self.max_units -= units
        if self.max_units < 0:
            raise Exhausted(f"the chat template needs more than {self._start} units of work")

    def check_chars(self, num_chars: int) -> None:
        """To be called before a text is made."""
        if num_chars > self.max_chars:
            raise Exhausted(f"the chat template makes a text of more than {self.max_chars} characters")

    def charge_size(self, value: Any) -> None:
        """For going once through a value, not into the parts of its parts."""
        if isinstance(value, str):
            self.check_chars(len(value))
            self.charge(1 + len(value) // CHARS_PER_UNIT)
        elif isinstance(value, list | tuple | dict | range | KeysView | ValuesView | ItemsView):
            self.charge(1 + len(value))
        else:
            self.charge(1)

    def charge_deep(self, value: Any) -> None:
        """For going through a value and everything in it, as turning it to text or comparing it does."""
        waiting = [value]
        while waiting:
            item = waiting.pop()
            self.charge_size(item)
            if isinstance(item, dict):
                waiting += [*item, *item.values()]
            elif isinstance(item, list | tuple):
                waiting += item


_running: ContextVar[Meter | None] = ContextVar("running template's meter", default=None)


def current() -> Meter:
    meter = _running.get()
    assert meter is not None, "a template ran without a meter"
    return meter


class metered:
    """Everything a template does inside the block is charged to one meter."""

    def __init__(self, max_units: int, max_chars: int) -> None:
        self._meter = Meter(max_units, max_chars)

    def __enter__(self) -> Meter:
        self._token = _running.set(self._meter)
        return self._meter

    def __exit__(self, *exc: object) -> None:
        _running.reset(self._token)


class Each:
    """Passes an iterable's items on, charging each; knows its length where the original does."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        meter = current()
        for item in self._items:
            meter.charge(1)
            yield item

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]


def text_of(value: Any) -> str:
    """`str(value)`, charged."""
    if not isinstance(value, str):
        current().charge_deep(value)
        value = str(value)
    current().charge_size(value)
    return str(value)


def multiply(left: Any, right: Any) -> Any:
    meter = current()
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple) and isinstance(times, int):
            size = len(many) * max(times, 0)
            if isinstance(many, str):
                meter.check_chars(size)
                meter.charge(size // CHARS_PER_UNIT)
            else:
                meter.charge(size)
    _check_bits(_bits(left) + _bits(right))
    return left * right


def power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int):
        _check_bits(_bits(base) * abs(exponent))
    return base**exponent


def add(left: Any, right: Any) -> Any:
    meter = current()
    if isinstance(left, str) and isinstance(right, str):
        meter.check_chars(len(left) + len(right))
    meter.charge_size(left)
    meter.charge_size(right)
    return left + right


def remainder(left: Any, right: Any) -> Any:
    """`%`: the remainder of numbers, or the old text formatting."""
    if isinstance(left, str):
        check_percent_format(left)
        current().charge_deep(right)
        result = left % right
        current().charge_size(result)
        return result
    return left % right


def concatenate(parts: Iterable[Any]) -> str:
    """`~`: the texts of all parts, one after the other."""
    texts = [text_of(part) for part in parts]
    current().check_chars(sum(map(len, texts)))
    return "".join(texts)


def replaced(text: str, old: str, new: str, count: int = -1) -> str:
    meter = current()
    num_found = text.count(old) if count < 0 else min(text.count(old), count)
    meter.check_chars(len(text) + num_found * (len(new) - len(old)))
    meter.charge_size(text)
    return text.replace(old, new, count)


def joined(separator: str, texts: Iterable[str]) -> str:
    found = list(Each(texts))
    size = sum(len(text) for text in found if isinstance(text, str))
    current().check_chars(size + len(separator) * len(found))
    current().charge(size // CHARS_PER_UNIT)
    return separator.join(found)


def check_percent_format(pattern: str) -> None:
    """Refuses `%` formats whose widths or precisions make a text much longer than its parts."""
    current().charge_size(pattern)
    if re.search(r"%(\([^)]*\))?[-+ #0]*(\*|\d{5,}|\d*\.(\*|\d{5,}))", pattern):
        raise Exhausted("the chat template formats a text with a width above 9999, or one given as *")


def check_format_spec(spec: str) -> None:
    """The same for what follows the colon in `{:>10}`."""
    if re.search(r"\d{5,}", spec):
        raise Exhausted("the chat template formats a text with a width above 9999")


def check_small(name: str, values: Iterable[Any]) -> None:
    """Numbers given to `name` must stay small: they are widths, counts or digits."""
    for value in values:
        if isinstance(value, int) and abs(value) > 1000:
            raise Exhausted(f"the chat template gives {name} the number {value}, at most 1000 is allowed")


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _check_bits(bits: int) -> None:
    if bits > MAX_INT_BITS:
        raise Exhausted(f"the chat template makes a number of more than {MAX_INT_BITS} bits")
