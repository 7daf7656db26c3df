"""One line per event: time, level, event, then key=value pairs.

Values are counts, names, ids and reasons. Prompts, answers and keys are never passed to it, which is a rule for
callers; what it does itself is to keep a value on its line, whatever the value holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

_PLAIN = re.compile(r"[\w.:/@%+-]+", re.ASCII)
MAX_VALUE_CHARS = 2000


class Log:
    """Writes to one stream.

    clock  seconds since 1970
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock

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
        pairs = "".join(f" {name}={_shown(value)}" for name, value in values.items() if value is not None)
        self._stream.write(f"{at} {level} {event}{pairs}\n")
        self._stream.flush()


def _shown(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if len(text) > MAX_VALUE_CHARS:
        text = text[:MAX_VALUE_CHARS] + "..."
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
