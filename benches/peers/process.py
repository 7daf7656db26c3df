"""One subject, once: its task is written, its driver started and timed, and what it says read."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benches.harness import OtherLoad
from benches.peers.drivers.common import Job, Task, Workload, how_it_ended
from benches.peers.subjects import ROOT, Subject
from benches.workloads import Shape
from octavo.arch import Arch

MAX_NUM_SEQS = 32
BLOCK_TOKENS = 16
WARMUP_REQUESTS, WARMUP_PROMPT, WARMUP_OUTPUT = 2, 256, 4
GIB = 2**30
REASON_CHARS = 200
STOP_WITHIN_S = 10.0
QUIET_CORES, QUIET_TRIAL_S = 0.15, 1.0
FIGURES = {"W1": "decode_tokens_per_s", "W2": "prompt_tokens_per_s"}
THROUGHPUT = "output_tokens_per_s"

Figures = dict[str, float]


@dataclass
class Outcome:
    """What one process gave.

    figures       by workload, of those that were finished
    first_tokens  by workload, one of each request; None where the engine does not tell
    reason        why the rest is missing; None when nothing is
    other_cores   kept busy by everything else meanwhile
    """

    figures: dict[str, Figures] = field(default_factory=dict)
    first_tokens: dict[str, list[int | None]] = field(default_factory=dict)
    reason: str | None = None
    other_cores: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all subjects of a session are asked."""

    model: str
    arch: Arch
    shapes: Sequence[Shape]
    num_threads: int

    def task(self, subject: Subject, shapes: Sequence[Shape], seed: int, started_s: float) -> Task:
        """Equal seeds give equal prompts to every subject."""
        num_tokens = max(shape.num_blocks(BLOCK_TOKENS) * BLOCK_TOKENS for shape in shapes)
        token_bytes = 4 * self.arch.num_layers * self.arch.num_kv_heads * self.arch.head_dim
        return Task(
            model=str(subject.model(self.model)),
            num_threads=self.num_threads,
            max_num_seqs=MAX_NUM_SEQS,
            num_kv_tokens=num_tokens,
            kv_gib=math.ceil(1.25 * num_tokens * token_bytes / GIB),
            started_s=started_s,
            workloads=[self._workload(shape, seed) for shape in shapes],
            options=dict(subject.options),
        )

    def _workload(self, shape: Shape, seed: int) -> Workload:
        vocab_size = self.arch.vocab_size
        warmup = [
            Job(list(job.prompt[-WARMUP_PROMPT:]), min(job.num_output_tokens, WARMUP_OUTPUT))
            for job in shape.jobs(vocab_size, f"warmup {seed}")[:WARMUP_REQUESTS]
        ]
        jobs = [Job(list(job.prompt), job.num_output_tokens) for job in shape.jobs(vocab_size, seed)]
        return Workload(shape.id, warmup, jobs, shape.shared_tokens)


def run(
    plan: Plan,
    subject: Subject,
    shapes: Sequence[Shape],
    seed: int,
    timeout_s: float,
    output: Path | None = None,
    clock: Callable[[], float] = time.time,
) -> Outcome:
    """Start a driver, wait for it, end what it left. `output` takes what it prints; None throws it away."""
    missing = subject.missing(plan.model)
    if missing is not None:
        return Outcome(reason=missing)
    with tempfile.TemporaryDirectory() as folder:
        task_path, events = Path(folder, "task.json"), Path(folder, "events.jsonl")
        task = plan.task(subject, shapes, seed, clock())
        task.write(task_path)
        load = OtherLoad()
        with (output or Path(os.devnull)).open("ab") as log:
            process = start(subject.command(task_path, events), subject.variables(task.kv_gib), log)
            ended = _wait(process, timeout_s)
        lines = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    outcome = read(lines, ended)
    outcome.other_cores = load.cores()
    return outcome


def start(command: Sequence[str], variables: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """A process with a group of its own; what it prints goes to `log`."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything of its group: asked first, then made to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(STOP_WITHIN_S)
    process.wait()


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> str | None:
    """None when it ended well, else how it ended. Nothing of its group is left running, whatever happens here."""
    try:
        code = process.wait(timeout_s)
        return None if code == 0 else how_it_ended(code)
    except subprocess.TimeoutExpired:
        return f"not done within {timeout_s:g} s"
    finally:
        end(process)


def wait_for_quiet(patience_s: float, others: Callable[[], float | None] | None = None) -> None:
    """Until everything else keeps less than QUIET_CORES busy, for `patience_s` at most. Unknown counts as quiet."""
    others = others or _others
    until_s = time.monotonic() + patience_s
    while time.monotonic() < until_s and (others() or 0.0) > QUIET_CORES:
        pass


def _others() -> float | None:
    load = OtherLoad()
    time.sleep(QUIET_TRIAL_S)
    return load.cores()


def read(lines: Sequence[Mapping[str, Any]], ended: str | None) -> Outcome:
    """An outcome from a driver's lines. Of several times to ready (one per server) the first counts."""
    outcome, ready_s = Outcome(reason=ended), None
    for line in lines:
        if line["event"] == "ready":
            ready_s = line["ready_s"] if ready_s is None else ready_s
        elif line["event"] == "failed":
            outcome.reason = nameless(line["reason"])
        else:
            assert ready_s is not None, "a driver is ready before it has answered"
            outcome.figures[line["workload"]] = {**figures(line), "ready_s": ready_s}
            outcome.first_tokens[line["workload"]] = list(line["first_tokens"])
    return outcome


def figures(line: Mapping[str, Any]) -> Figures:
    """The workload's own figure first, then those that stand beside it."""
    name, first, finished = line["workload"], line["first_s"], line["finished_s"]
    prompts, outputs = line["prompt_tokens"], line["output_tokens"]
    ttft_s, wall_s = statistics.median(first), max(finished)
    figure = FIGURES.get(name, THROUGHPUT)
    if figure == "decode_tokens_per_s":
        rate = (outputs[0] - 1) / (finished[0] - first[0])
    elif figure == "prompt_tokens_per_s":
        rate = prompts[0] / first[0]
    else:
        rate = sum(outputs) / wall_s
    return {figure: rate, "ttft_s": ttft_s, "wall_s": wall_s, "peak_bytes": line["peak_bytes"]}


def nameless(reason: str) -> str:
    """The first line of a reason, without folders."""
    line = reason.strip().splitlines()[0] if reason.strip() else "no reason was given"
    return re.sub(r"(?:/[\w.+-]+)+/", "", line)[:REASON_CHARS]
