"""Engines as HTTP servers on the loopback: how each is started, asked, and ended.

Subjects are those of the other workloads whose engine has a server. OpenVINO GenAI has none: its packages hold
pipelines, and the server that serves them is another project's, outside the package index.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benches.peers.drivers import llama_server
from benches.peers.drivers.common import (
    HOST,
    Task,
    forget_peak,
    free_port,
    how_it_ended,
    peak_bytes,
    until_healthy,
)
from benches.peers.process import BLOCK_TOKENS, STOP_WITHIN_S, Plan, end, nameless, start
from benches.peers.subjects import Subject, chosen
from benches.peers.windows import Terms, Unserved
from benches.workloads import Shape
from octavo.cli.load import LOST, OPENAI, Ask, Dialect, Outcome, Target

DIES_WITHIN_S = 2.0
"""A server that has closed a connection because it dies is gone after so long."""
LLAMA_HTTP_THREADS = 256
TAIL_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Front:
    """The server of an engine.

    command      of the subject, its task, a port, and a folder for what the server writes
    more         fields of every request beside those of the dialect
    environment  variables over those of the subject; None takes one away
    """

    command: Callable[[Subject, Task, int, Path], list[str]]
    dialect: Dialect = OPENAI
    more: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str | None] = field(default_factory=dict)

    def variables(self, subject: Subject, made: Task) -> dict[str, str]:
        """The whole environment of the process."""
        all_of_it = {**subject.variables(made.kv_gib), **self.environment}
        return {name: value for name, value in all_of_it.items() if value is not None}


def _octavo(subject: Subject, task: Task, port: int, folder: Path) -> list[str]:
    blocks = task.num_kv_tokens // BLOCK_TOKENS + task.max_num_seqs + 1
    quantization = task.options.get("quantization")
    return [
        str(subject.python), "-m", "octavo", "serve", task.model, "--host", HOST, "--port", str(port),
        "--num-threads", str(task.num_threads), "--max-num-seqs", str(task.max_num_seqs),
        "--max-model-len", str(task.longest), "--block-size", str(BLOCK_TOKENS), "--num-kv-blocks", str(blocks),
        "--data-dir", str(folder), *(["--quantization", quantization] if quantization else []),
    ]  # fmt: skip


def _llama(_subject: Subject, task: Task, port: int, _folder: Path) -> list[str]:
    """A thread for every connection: without one a request waits where no figure sees it."""
    return llama_server.command(replace(task, max_num_seqs=LLAMA_HTTP_THREADS), task.workloads, port)


def _vllm(subject: Subject, task: Task, port: int, _folder: Path) -> list[str]:
    """What `vllm serve` runs; that command asks for a package named vllm, and the CPU build has another name.

    Tokens of a step are left at the server's own default.
    """
    return [
        str(subject.python), "-m", "vllm.entrypoints.openai.api_server", "--model", task.model, "--host", HOST,
        "--port", str(port), "--dtype", task.options.get("dtype", "bfloat16"),
        "--max-model-len", str(task.longest), "--max-num-seqs", str(task.max_num_seqs),
        "--disable-log-stats", "--disable-uvicorn-access-log",
    ]  # fmt: skip


def _llama_body(ask: Ask) -> dict[str, object]:
    return llama_server.body(ask.prompt, ask.num_output_tokens)


def _llama_note(outcome: Outcome, told: Mapping[str, Any], now_s: float) -> bool:
    """Events without tokens are told apart from tokens without text; the last counts them."""
    if "error" in told:
        outcome.code = str(told["error"].get("code") or "error")
        return False
    if told.get("tokens") or told.get("content"):
        outcome.token_came(now_s)
    if not told.get("stop"):
        return False
    outcome.num_tokens = told["tokens_predicted"]
    return True


# The server is two processes: an engine whose idle threads spin, pinned, on all cores leaves the other none.
# On two cores a token took 3.3 to 3.6 times as long with them (Qwen3-0.6B, W8A8, 0.5 and 0.8 of capacity).
VLLM_SHARES_CORES: Mapping[str, str | None] = {"KMP_BLOCKTIME": "1", "KMP_AFFINITY": None}

FRONTS: Mapping[str, Front] = {
    "octavo_llm": Front(command=_octavo, more={"return_token_ids": True}),
    "llama_server": Front(command=_llama, dialect=Dialect(llama_server.PATH, _llama_body, _llama_note)),
    "vllm_cpu": Front(command=_vllm, more={"return_token_ids": True}, environment=VLLM_SHARES_CORES),
}
"""By the driver of a subject."""


def served(precisions: Sequence[str], only: str = "") -> list[Subject]:
    """As `chosen`, of the engines that have a server. Raises ValueError for none."""
    found = [one for one in chosen(precisions, only) if one.driver in FRONTS]
    if not found:
        raise ValueError(f"no subject of {', '.join(precisions)} that matches {only!r} has an HTTP server")
    return found


@dataclass(kw_only=True)
class Server:
    """One that has said it is healthy. Whatever it is asked must have ended by `until_s` of `time.monotonic`."""

    process: subprocess.Popen[bytes]
    target: Target
    more: Mapping[str, Any]
    ready_s: float
    until_s: float
    timeout_s: float
    output: Path

    def ask(self, loop: Coroutine[Any, Any, list[Outcome]]) -> list[Outcome]:
        """Raises Unserved when it dies meanwhile, or takes too long."""
        try:
            outcomes = asyncio.run(asyncio.wait_for(loop, max(self.until_s - time.monotonic(), 0.0)))
        except TimeoutError:
            raise Unserved(f"not done within {self.timeout_s:g} s") from None
        if any(one.code == LOST for one in outcomes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(DIES_WITHIN_S)
        code = self.process.poll()
        if code is not None:
            raise Unserved(_last_words(how_it_ended(code), self.output))
        return outcomes

    def forget_peak(self) -> None:
        forget_peak(self.process.pid)

    def peak_bytes(self) -> int:
        """Peak resident memory since it was forgotten, all its processes together."""
        return peak_bytes(self.process.pid)


def task(subject: Subject, plan: Plan, terms: Terms) -> Task:
    """What a server must hold: as many of the longest requests as it has seats."""
    shape = Shape("S1", (terms.longest,) * terms.seats)
    return replace(plan.task(subject, [shape], 0, time.time()), max_num_seqs=terms.seats)


@contextlib.contextmanager
def serving(subject: Subject, made: Task, timeout_s: float, output: Path | None = None) -> Iterator[Server]:
    """A server until the end of the block, whatever happens in it. `output` takes what it prints.

    Raises Unserved when it does not become healthy.
    """
    front, started_s = FRONTS[subject.driver], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="served-") as folder:
        output = output or Path(folder, "output")
        port = free_port()
        with output.open("ab") as log:
            log.write(f"\n{subject.name} {subject.precision}\n".encode())
            log.flush()
            command = front.command(subject, made, port, Path(folder))
            process = start(command, front.variables(subject, made), log)
        try:
            try:
                until_healthy(process, port, timeout_s)
            except RuntimeError as error:
                raise Unserved(_last_words(str(error), output)) from None
            now_s = time.monotonic()
            yield Server(
                process=process,
                target=Target(HOST, port, dialect=front.dialect),
                more=front.more,
                ready_s=now_s - started_s,
                until_s=started_s + timeout_s,
                timeout_s=timeout_s,
                output=output,
            )
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """A server ends its own processes first, so that their processor time is known; then what is left is ended."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_WITHIN_S)
    end(process)


def _last_words(reason: str, output: Path) -> str:
    """How it ended, and the last line it printed."""
    tail = output.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return f"{reason}; it said: {nameless(lines[-1])}" if lines else reason
