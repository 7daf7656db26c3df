"""Starting a server as a process of its own, and never leaving one behind."""

from __future__ import annotations

import contextlib
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
FAKE = (sys.executable, str(Path(__file__).with_name("serve_fake.py")))
START_S = 60.0


@dataclass
class Served:
    """A server that has said `ready`, and a client of it."""

    process: subprocess.Popen[str]
    url: str
    ready_line: str
    client: httpx.Client

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(path, **more)

    def post(self, path: str, json: object = None, **more: Any) -> httpx.Response:
        return self.client.post(path, json=json, **more)

    def health(self) -> dict[str, Any]:
        return dict(self.get("/health").json())

    def until(self, true: Callable[[dict[str, Any]], bool], within_s: float = 60.0) -> dict[str, Any]:
        """Health as soon as it satisfies `true`; fails with the last one when it never does."""
        deadline_s = time.monotonic() + within_s
        while True:
            health = self.health()
            if true(health):
                return health
            assert time.monotonic() < deadline_s, health
            time.sleep(0.02)


@contextlib.contextmanager
def serving(
    arguments: Sequence[str], command: Sequence[str] = FAKE, env: dict[str, str] | None = None
) -> Iterator[Served]:
    """A server on a free port, stopped (by its own process id) at the end of the block.

    Its files go to a folder of its own unless the arguments name one.
    """
    with contextlib.ExitStack() as after:
        if "--data-dir" not in arguments:
            folder = after.enter_context(tempfile.TemporaryDirectory(prefix="octavo-data-"))
            arguments = [*arguments, "--data-dir", folder]
        yield after.enter_context(_serving(arguments, command, env))


@contextlib.contextmanager
def _serving(
    arguments: Sequence[str], command: Sequence[str], env: dict[str, str] | None
) -> Iterator[Served]:
    process = subprocess.Popen(
        [*command, *arguments, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=env,
    )
    try:
        line = read_line(process)
        found = re.match(r"ready: (http://\S+) \(", line)
        assert found, (line, process.stderr.read() if process.poll() is not None and process.stderr else "")
        with httpx.Client(base_url=found[1], timeout=60, verify=False) as client:
            yield Served(process, found[1], line, client)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def read_line(process: subprocess.Popen[str]) -> str:
    """The first line of its output, or "" when it ended or took too long."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_S)
    return process.stdout.readline() if readable else ""
