"""Progress of long work: a bar on a terminal, one JSON line every few seconds otherwise. On standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import rich.progress

LINE_EVERY_S = 5.0


class Progress:
    """Counts towards a total; use it in a `with` block.

    what   names the work, such as "prompts"
    total  None when it is not known
    """

    def __init__(
        self,
        what: str,
        total: float | None,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._total = total
        self._done = 0.0
        self._stream = stream or sys.stderr
        self._clock = clock
        self._started_s = self._printed_s = clock()
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Bar(*columns, console=Console(file=self._stream), transient=True)
            self._task = self._bar.add_task(self._what, total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, amount: float = 1.0) -> None:
        """So much more is done."""
        self._done += amount
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif self._clock() - self._printed_s >= LINE_EVERY_S:
            self._printed_s = self._clock()
            self._print_line()

    def _print_line(self) -> None:
        line = {
            "progress": self._what,
            "done": self._done,
            "total": self._total,
            "elapsed_s": round(self._clock() - self._started_s, 3),
        }
        print(json.dumps(line), file=self._stream, flush=True)
