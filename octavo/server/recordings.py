"""What the server remembers of the last while, and the files it is saved in.

Every engine writes its trail into memory that this process has opened for it, so that it is there after a crash.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import octavo
from octavo.config import ServerConfig
from octavo.obs import recording
from octavo.obs.flight import Departed, Saved, Section, Served, encoded
from octavo.obs.log import Log
from octavo.obs.ring import Ring
from octavo.server.running import Running

FRONT_BYTES = 4 << 20
CRASH_S = 60.0
"""After a crash that long passes before another one is worth a file."""
SUFFIX = ".recording"

Trails = Callable[[], Sequence[tuple[int, int, bytes]]]


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was saved."""

    path: Path
    num_bytes: int


class Recordings:
    """The front's own trail, and the files.

    trails    copies of what the engines have written: number, epoch, memory
    settings  of the server, for the head of a file
    """

    def __init__(
        self,
        config: ServerConfig,
        log: Log,
        *,
        model: str,
        trails: Trails,
        settings: Callable[[], dict[str, object]],
    ) -> None:
        self._folder = Path(config.data_dir).expanduser() / "recordings"
        self._max_kept = config.max_recordings
        self._log = log
        self._model = model
        self._trails = trails
        self._settings = settings
        self._memory = bytearray(FRONT_BYTES)
        opening = encoded(Section("front"))
        self._ring = Ring(self._memory, opening, opening)
        self._crashed_s: float | None = None
        self._saving: set[asyncio.Task[None]] = set()

    def note(
        self, running: Running, *, request_id: str, route: str, ended: str | None, received_s: float
    ) -> None:
        """A request that had something to run has ended."""
        marks = running.marks
        self._ring.write(
            encoded(
                Served(
                    request_id,
                    tuple(submit.request_id for submit in running.submits),
                    route,
                    running.caller.tenant.tenant_id,
                    ended,
                    received_s,
                    marks.posted_s,
                    marks.accepted_s,
                    marks.first_s or 0.0,
                    marks.last_s,
                    time.monotonic(),
                    marks.stalled_s,
                    running.num_prompt_tokens,
                    marks.output_tokens,
                    marks.cached_tokens,
                    tuple(marks.placed),
                )
            )
        )

    def crashed(self, number: int, epoch: int, how: str, num_aboard: int) -> None:
        """An engine has gone: save what it was doing, unless that was done a moment ago."""
        now_s = time.monotonic()
        self._ring.write(encoded(Departed(now_s, number, epoch, how, num_aboard)))
        if self._max_kept == 0 or (self._crashed_s is not None and now_s - self._crashed_s < CRASH_S):
            return
        self._crashed_s = now_s
        self.save_soon(f"engine {number} {how}")

    def save_soon(self, why: str) -> None:
        """Save in the background; what is remembered now is what is saved."""
        copied = self._copied(why)

        async def save() -> None:
            try:
                written = await asyncio.to_thread(self._write, *copied)
            except OSError as error:
                self._log.error("recording_not_saved", because=error.strerror or error)
            else:
                self._log.note("recording_saved", path=written.path, bytes=written.num_bytes, why=why)

        task = asyncio.create_task(save())
        self._saving.add(task)
        task.add_done_callback(self._saving.discard)

    async def save(self, why: str) -> Written:
        """Raises OSError."""
        return await asyncio.to_thread(self._write, *self._copied(why))

    async def close(self) -> None:
        """Wait for what is being saved."""
        if self._saving:
            await asyncio.wait(self._saving)

    def _copied(self, why: str) -> tuple[Saved, list[tuple[int, int, bytes]], bytes]:
        shown = {name: str(value) for name, value in self._settings().items()}
        saved = Saved(octavo.__version__, time.time(), time.monotonic(), why, self._model, shown)
        return saved, list(self._trails()), bytes(self._memory)

    def _write(self, saved: Saved, engines: list[tuple[int, int, bytes]], front: bytes) -> Written:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(saved.at_unix_s))
        path = self._folder / f"{date}-{os.getpid()}-{int(saved.at_s * 1000) % 10**6:06}{SUFFIX}"
        num_bytes = recording.write(path, saved, recording.sections_of(engines, front))
        kept = sorted(self._folder.glob(f"*{SUFFIX}"), key=lambda one: (one.stat().st_mtime, one.name))
        for old in kept[: -max(self._max_kept, 1)]:
            old.unlink(missing_ok=True)
        return Written(path, num_bytes)
