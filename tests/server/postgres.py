"""A PostgreSQL server for tests: its own folder, a Unix socket, nobody else."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def binaries() -> Path | None:
    """The folder that holds `postgres` and `initdb`, or None."""
    found = shutil.which("postgres")
    folder = Path(found).resolve().parent if found else None
    return folder if folder is not None and (folder / "initdb").exists() else None


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The URL of a database called `postgres`. Skips the test where PostgreSQL is not installed."""
    folder = binaries()
    if folder is None:
        pytest.skip("PostgreSQL is not installed: no `postgres` with an `initdb` beside it on the path")
    home = Path(tempfile.mkdtemp(prefix="octavo-pg-"))
    who: dict[str, Any] = {}
    if os.getuid() == 0:  # it refuses to run as root
        nobody = pwd.getpwnam("nobody")
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    data, log = home / "data", home / "log"
    initdb = [folder / "initdb", "-D", data, "-A", "trust", "-U", "octavo", "-E", "UTF8", "--no-sync"]
    made = subprocess.run([*map(str, initdb)], capture_output=True, text=True, cwd=home, **who)
    assert made.returncode == 0, made.stderr
    with log.open("w") as out:
        serve = [folder / "postgres", "-D", data, "-k", home, "-c", "listen_addresses=", "-F"]
        server = subprocess.Popen([*map(str, serve)], stdout=out, stderr=out, cwd=home, **who)
    try:
        url = f"postgresql://octavo@/postgres?host={home}"
        _wait(url, server, log)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(home, ignore_errors=True)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    deadline_s = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.05)


def new_database(url: str, name: str) -> str:
    """The URL of a fresh database on the same server."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url.replace("/postgres?", f"/{name}?")
