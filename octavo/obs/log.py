"""One line per event: time, level, event, then key=value pairs, or all of it as one JSON object.

Values are counts, names, ids and reasons. Prompts, answers and keys are never passed to it, which is a rule for
callers; what it does itself is to keep a value on its line, whatever the value holds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

_PLAIN = re.compile(r"[\w.:/@%+-]+", re.ASCII)
MAX_VALUE_CHARS = 2000


class Log:
    """Writes to one stream.

    clock    seconds since 1970
    as_json  objects in place of pairs: "time", "level", "event" and the values; numbers stay numbers
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float], *, as_json: bool = False) -> None:
        self._stream = stream
        self._clock = clock
        self._as_json = as_json

    def note(self, event: str, **values: object) -> None:
        """Something that is as it should be."""
        self._write("info", event, values)

    def warn(self, event: str, **values: object) -> None:
        """Something that was mended on its own and may matter."""
        self._write("warning", event, values)

    def error(self, event: str, **values: object) -> None:
        """Something a person should look at."""
        self._write("error", event, values)

    def _write(self, level: str, event: str, values: dict[str, object]) -> None:
        at = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        known = {name: value for name, value in values.items() if value is not None}
        if self._as_json:
            fields = {name: _plain(value) for name, value in known.items()}
            line = json.dumps({"time": at, "level": level, "event": event, **fields})
        else:
            line = f"{at} {level} {event}" + "".join(
                f" {name}={_shown(value)}" for name, value in known.items()
            )
        self._stream.write(line + "\n")
        self._stream.flush()


def _plain(value: object) -> object:
    """What JSON knows: numbers and truth values as they are, anything else as text."""
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _short(str(value))


def _short(text: str) -> str:
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "..."


def _shown(value: object) -> str:
    text = _short(f"{value:.6g}" if isinstance(value, float) else str(value))
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
