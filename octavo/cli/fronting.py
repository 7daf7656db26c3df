"""A server on loopback that is asked by one client at a time: what lies before and after its engine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from octavo.cli import load
from octavo.cli.load import Ask, Target
from octavo.config import KNOBS
from octavo.errors import LoadError, OctavoError
from octavo.obs import recording
from octavo.obs.flight import EngineEntry

NUM_REQUESTS = 60
NUM_WARM = 10
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 4
SAVE_S = 30.0
STOP_S = 30.0


def front_times(args: argparse.Namespace) -> tuple[float, float]:
    """(`Host.front_s`, `Host.reply_s`), medians of lone requests. Raises LoadError when no server can be started."""
    from octavo.sim.hosts import front_of, lone_marks
    from octavo.sim.recorded import Rehearsal

    with server([*([args.model] if args.model else []), *flags_of(args)]) as served:
        sent = asyncio.run(lone(served.target))
        entries = served.recorded()
    played = Rehearsal(entries)
    played.run()
    return front_of(played, lone_marks(played, sent)[NUM_WARM:])


def flags_of(args: argparse.Namespace) -> list[str]:
    """The settings that were typed, as they are typed for another command."""
    found = [] if getattr(args, "config", None) is None else ["--config", str(args.config)]
    for knob in KNOBS:
        value = getattr(args, f"knob_{knob.name}", None)
        if isinstance(value, bool):
            found.append(knob.flag if value else knob.flag.replace("--", "--no-", 1))
        elif value is not None:
            found += [knob.flag, str(value)]
    return found


async def lone(target: Target, seed: int = 0) -> list[tuple[float, float]]:
    """(sent, first token) of requests one after another, on the machine's monotonic clock."""
    pool = await load.token_pool(target)
    draw = random.Random(f"octavo front {seed}")
    asks = [
        Ask(0.0, draw.choices(pool, k=PROMPT_TOKENS), OUTPUT_TOKENS) for _ in range(NUM_REQUESTS + NUM_WARM)
    ]
    start_s = time.monotonic()
    outcomes = await load.run_closed(target, asks, 1)
    failed = next((one.code for one in outcomes if one.code is not None or one.first_s is None), None)
    if failed is not None:
        raise OctavoError(f"a request to the server failed: {failed}")
    return [(start_s + one.sent_s, start_s + (one.first_s or 0.0)) for one in outcomes]


class Server:
    """`octavo serve` as a process of its own, on a free port of loopback."""

    def __init__(self, process: subprocess.Popen[str], target: Target, folder: Path) -> None:
        self._process = process
        self.target = target
        self._folder = folder

    def recorded(self) -> list[EngineEntry]:
        """Have it save its recording, and read what its engine did. Raises LoadError when that takes too long."""
        there = set(self._folder.glob("recordings/*.recording"))
        self._process.send_signal(signal.SIGUSR2)
        until_s = time.monotonic() + SAVE_S
        while not (new := set(self._folder.glob("recordings/*.recording")) - there):
            if time.monotonic() > until_s or self._process.poll() is not None:
                raise LoadError("the server saved no recording")
            time.sleep(0.05)
        return list(recording.read(new.pop()).engines[0].entries)


@contextlib.contextmanager
def server(flags: list[str]) -> Iterator[Server]:
    """Started, and stopped at the end of the block. Raises LoadError that says what it said."""
    with tempfile.TemporaryDirectory(prefix="octavo-front-") as folder, contextlib.ExitStack() as after:
        said = after.enter_context(tempfile.TemporaryFile("w+", dir=folder))
        process = subprocess.Popen(
            [sys.executable, "-m", "octavo", "serve", *flags, "--port", "0", "--data-dir", folder, "--json"],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        after.callback(_stop, process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait()
            said.seek(0)
            raise LoadError(f"the server did not start: {said.read().strip().splitlines()[-1:]}")
        yield Server(process, Target.of(json.loads(line)["ready"]), Path(folder))


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
