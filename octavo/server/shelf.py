"""Files on disk, by id: written aside, then put in place whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Self

from octavo.errors import ConfigError
from octavo.server.ledger import sync_folder


class Shelf:
    """The folder `data_dir`, held by one server at a time.

    files     finished files, named by their ids
    incoming  those being written; what is there at the start was never finished
    ledgers   results of batches that run

    Raises ConfigError when the folder cannot be used or another server holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.incoming = folder / "incoming"
        self.ledgers = folder / "batches"
        try:
            for made in (folder, self.files, self.incoming, self.ledgers):
                made.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"data_dir cannot be used: {error.strerror} ({folder})") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(f"another server works in data_dir {folder}; give each its own") from None
        for left in self.incoming.iterdir():
            left.unlink()

    def keep_only(self, file_ids: Iterable[str], batch_ids: Iterable[str]) -> int:
        """Remove what nothing refers to, left by a crash between two steps; returns how much."""
        count = 0
        for folder, known in ((self.files, set(file_ids)), (self.ledgers, set(batch_ids))):
            for path in folder.iterdir():
                if path.name not in known:
                    path.unlink()
                    count += 1
        return count

    def path(self, file_id: str) -> Path:
        return self.files / file_id

    def ledger(self, batch_id: str) -> Path:
        return self.ledgers / batch_id

    def open(self, file_id: str) -> BinaryIO:
        """Raises OSError when it is not there."""
        return open(self.path(file_id), "rb")

    def remove(self, file_id: str) -> None:
        """What is open stays readable."""
        self.path(file_id).unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._lock)


class Draft:
    """A file being written; leaving the block without `commit` removes it. Raises OSError."""

    def __init__(self, aside: Path, target: Path) -> None:
        self._aside, self._target = aside, target
        self._file = open(aside, "wb")  # noqa: SIM115
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, part: bytes) -> None:
        self._file.write(part)
        self._digest.update(part)
        self.num_bytes += len(part)

    @property
    def digest(self) -> str:
        """SHA-256 of what has been written, in hexadecimal."""
        return self._digest.hexdigest()

    def commit(self) -> None:
        """Put it in place; it lasts once this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._aside, self._target)
        sync_folder(self._target.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what a full disk has not taken is not wanted any more
            self._file.close()
        self._aside.unlink(missing_ok=True)
