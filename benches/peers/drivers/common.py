"""What every driver shares: the task it reads, the times it takes, the lines it writes. Standard library only.

A driver is started as `python -m benches.peers.drivers.NAME TASK EVENTS`. It appends one JSON line to EVENTS when
the engine is ready, one per workload, and one that says why when it fails.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

HOST = "127.0.0.1"
ASK_HEALTH_EVERY_S = 0.1
FORGET_PEAK = "5"  # proc(5), clear_refs: forget the peak resident size


@dataclass(frozen=True, slots=True)
class Job:
    """One request: token ids and the number of tokens to draw."""

    prompt: list[int]
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Jobs sent at once after a warm-up; `shared_tokens` is the prefix all prompts have in common."""

    id: str
    warmup: list[Job]
    jobs: list[Job]
    shared_tokens: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and output."""
        return max(len(job.prompt) + job.num_output_tokens for job in self.jobs + self.warmup)


@dataclass(frozen=True, slots=True)
class Task:
    """What one process has to do.

    model          the folder or file in the form this engine reads
    started_s      when the process was started, seconds since the epoch
    num_kv_tokens  tokens the cache must hold; kv_gib is their size in whole GiB at 16 bits
    options        the subject's own
    """

    model: str
    num_threads: int
    max_num_seqs: int
    num_kv_tokens: int
    kv_gib: int
    started_s: float
    workloads: list[Workload]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        return max(workload.longest for workload in self.workloads)

    @classmethod
    def read(cls, path: Path) -> Task:
        values = json.loads(path.read_text())
        values["workloads"] = [
            Workload(one["id"], _jobs(one["warmup"]), _jobs(one["jobs"]), shared_tokens=one["shared_tokens"])
            for one in values["workloads"]
        ]
        return cls(**values)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


def _jobs(values: list[dict[str, Any]]) -> list[Job]:
    return [Job(**one) for one in values]


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's times on `time.monotonic`, and the first token drawn (None where an engine hides it)."""

    first_s: float
    finished_s: float
    num_tokens: int
    first_token: int | None = None


class Engine(Protocol):
    """A loaded model."""

    def run(self, jobs: Sequence[Job]) -> list[Answer]:
        """Answer all jobs, sent at once, greedy, with output lengths forced; in the order of the jobs."""

    def pid(self) -> int:
        """The process that computes."""

    def close(self) -> None: ...


class InProcess:
    """An engine in the driver's own process."""

    def pid(self) -> int:
        return os.getpid()

    def close(self) -> None:
        pass


class Progress:
    """Tokens of several requests as they come in."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._first: dict[int, tuple[float, int | None]] = {}
        self._counts = dict.fromkeys(range(len(jobs)), 0)
        self._finished: dict[int, float] = {}

    def add(self, number: int, tokens: Sequence[int]) -> None:
        """`tokens` of job `number` have just come."""
        now = time.monotonic()
        if tokens and number not in self._first:
            self._first[number] = (now, tokens[0])
        self._counts[number] += len(tokens)
        if self._counts[number] >= self._jobs[number].num_output_tokens:
            self._finished.setdefault(number, now)

    def answers(self) -> list[Answer]:
        """Raises RuntimeError when a job has not all its tokens, or too many."""
        for number, job in enumerate(self._jobs):
            if self._counts[number] != job.num_output_tokens:
                raise RuntimeError(
                    f"{self._counts[number]} tokens came, {job.num_output_tokens} were asked for"
                )
        return [
            Answer(
                self._first[number][0], self._finished[number], self._counts[number], self._first[number][1]
            )
            for number in range(len(self._jobs))
        ]


Start = Callable[[Task, Sequence[Workload]], Engine]


def drive(start: Start, key: Callable[[Workload], object] = lambda _: None) -> None:
    """Run the task named on the command line. Neighbouring workloads of equal `key` share an engine."""
    task, events = Task.read(Path(sys.argv[1])), Path(sys.argv[2])
    try:
        for _, group in groupby(task.workloads, key):
            workloads = list(group)
            engine = start(task, workloads)
            try:
                emit(events, event="ready", ready_s=time.time() - task.started_s)
                for workload in workloads:
                    emit(events, **measure(engine, workload))
            finally:
                engine.close()
    except Exception as error:
        emit(events, event="failed", reason=f"{type(error).__name__}: {error}")
        raise


def measure(engine: Engine, workload: Workload) -> dict[str, Any]:
    """The line of one workload: times in seconds after the jobs were sent."""
    engine.run(workload.warmup)
    forget_peak(engine.pid())
    sent_s = time.monotonic()
    answers = engine.run(workload.jobs)
    return {
        "event": "done",
        "workload": workload.id,
        "first_s": [one.first_s - sent_s for one in answers],
        "finished_s": [one.finished_s - sent_s for one in answers],
        "prompt_tokens": [len(job.prompt) for job in workload.jobs],
        "output_tokens": [one.num_tokens for one in answers],
        "first_tokens": [one.first_token for one in answers],
        "peak_bytes": peak_bytes(engine.pid()),
    }


def emit(path: Path, **line: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def tree(pid: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from tree(int(child))


def forget_peak(pid: int) -> None:
    for one in tree(pid):
        Path(f"/proc/{one}/clear_refs").write_text(FORGET_PEAK)


def peak_bytes(pid: int) -> int:
    """Peak resident memory since it was forgotten, all processes together."""
    total = 0
    for one in tree(pid):
        for line in Path(f"/proc/{one}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1]) * 1024
    return total


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def until_healthy(server: subprocess.Popen[bytes], port: int, within_s: float) -> None:
    """Until GET /health of a server on the loopback is 200. Raises RuntimeError when it ends, or takes too long."""
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        code = server.poll()
        if code is not None:
            raise RuntimeError(how_it_ended(code))
        try:
            connection = http.client.HTTPConnection(HOST, port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(ASK_HEALTH_EVERY_S)
    raise RuntimeError(f"not ready within {within_s:g} s")


def how_it_ended(code: int) -> str:
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
