"""llama.cpp: `llama-server` on the loopback, requests with token ids to /completion, one thread each.

Options: server (the binary), flags (more of its flags).
A server is made for the workloads of equal slots: cells of idle slots would slow its attention down.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benches.peers.drivers.common import HOST, Answer, Job, Task, Workload, drive, free_port, until_healthy

PATH, HEADERS = "/completion", {"Content-Type": "application/json"}
SLOTS_OF_A_COMMON_PREFIX = 4  # each slot computes the prefix for itself
READY_WITHIN_S = 300.0
STOP_WITHIN_S = 20.0
PAGE_TOKENS = 256


class LlamaServer:
    def __init__(self, task: Task, workloads: Sequence[Workload]) -> None:
        self._port = free_port()
        self._server = subprocess.Popen(command(task, workloads, self._port))
        try:
            until_healthy(self._server, self._port, READY_WITHIN_S)
        except BaseException:
            self.close()
            raise

    def run(self, jobs: Sequence[Job]) -> list[Answer]:
        with ThreadPoolExecutor(len(jobs)) as pool:
            return list(pool.map(self._answer, jobs))

    def _answer(self, job: Job) -> Answer:
        connection = http.client.HTTPConnection(HOST, self._port)
        connection.request("POST", PATH, json.dumps(body(job.prompt, job.num_output_tokens)), HEADERS)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"llama-server answered {response.status}: {response.read(200)!r}")
        first, first_s, last = b"", 0.0, b""
        for line in response:
            if line.startswith(b"data: "):
                if not first:
                    first, first_s = line, time.monotonic()
                last = line
        finished_s = time.monotonic()
        final = json.loads(last.removeprefix(b"data: "))
        tokens = json.loads(first.removeprefix(b"data: ")).get("tokens") or [None]
        if final.get("tokens_predicted") != job.num_output_tokens:
            raise RuntimeError(
                f"{final.get('tokens_predicted')} tokens came, {job.num_output_tokens} were asked for"
            )
        return Answer(first_s, finished_s, job.num_output_tokens, tokens[0])

    def pid(self) -> int:
        return self._server.pid

    def close(self) -> None:
        self._server.terminate()
        try:
            self._server.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()


def body(prompt: Sequence[int], num_output_tokens: int) -> dict[str, object]:
    """The fields of one request."""
    return {
        "prompt": prompt, "n_predict": num_output_tokens, "ignore_eos": True, "temperature": 0.0,
        "samplers": ["top_k"], "top_k": 1, "cache_prompt": True, "stream": True, "return_tokens": True,
    }  # fmt: skip


def slots(workload: Workload) -> int:
    """Requests served side by side."""
    count = len(workload.jobs)
    return min(count, SLOTS_OF_A_COMMON_PREFIX) if workload.shared_tokens else count


def command(task: Task, workloads: Sequence[Workload], port: int) -> list[str]:
    """The server's command line: `-c` is the context of all slots together."""
    count, threads = slots(workloads[0]), str(task.num_threads)
    each = -(-max(workload.longest for workload in workloads) // PAGE_TOKENS) * PAGE_TOKENS
    return [
        task.options["server"], "-m", task.model, "-t", threads, "-tb", threads, "--host", HOST,
        "--port", str(port), "-np", str(count), "-c", str(each * count),
        "--threads-http", str(task.max_num_seqs + 2), *task.options.get("flags", []),
    ]  # fmt: skip


def start(task: Task, workloads: Sequence[Workload]) -> LlamaServer:
    return LlamaServer(task, workloads)


if __name__ == "__main__":
    drive(start, slots)
