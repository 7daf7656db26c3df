"""vLLM on the CPU: the offline engine in this process, stepped by hand.

Options: dtype; op, a compiled op the weights need, which a build for older processors may lack.
What must be set before Python starts (OpenMP, cores, cache) is in the subject's environment.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from benches.peers.drivers.common import Answer, InProcess, Job, Progress, Task, Workload, drive

MIN_STEP_TOKENS, MAX_STEP_TOKENS = 512, 4096
MIN_MODEL_LEN = 4096


class Vllm(InProcess):
    """It tries a whole step before it is ready, which takes long on a slow machine: steps fit the workloads."""

    def __init__(self, task: Task, workloads: Sequence[Workload]) -> None:
        widest = max(sum(len(job.prompt) for job in workload.jobs) for workload in workloads)
        vllm: Any = importlib.import_module("vllm")
        _require(task.options.get("op"))
        self._params = vllm.SamplingParams
        self._engine: Any = vllm.LLM(
            model=task.model,
            dtype=task.options.get("dtype", "bfloat16"),
            max_model_len=max(MIN_MODEL_LEN, task.longest),
            max_num_batched_tokens=min(max(MIN_STEP_TOKENS, widest), MAX_STEP_TOKENS),
            max_num_seqs=task.max_num_seqs,
            enable_prefix_caching=True,
            disable_log_stats=True,
        ).llm_engine
        self._num_requests = 0

    def run(self, jobs: Sequence[Job]) -> list[Answer]:
        progress, numbers, seen = Progress(jobs), {}, [0] * len(jobs)
        for number, job in enumerate(jobs):
            count = job.num_output_tokens
            params = self._params(
                temperature=0.0, max_tokens=count, min_tokens=count, ignore_eos=True, detokenize=False
            )
            self._num_requests += 1
            numbers[str(self._num_requests)] = number
            self._engine.add_request(str(self._num_requests), {"prompt_token_ids": job.prompt}, params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                number, tokens = numbers[output.request_id.split("-")[0]], output.outputs[0].token_ids
                progress.add(number, list(tokens[seen[number] :]))
                seen[number] = len(tokens)
        return progress.answers()


def _require(op: str | None) -> None:
    """Raises RuntimeError when vLLM as built for this processor lacks an op; it would fail later and say less."""
    importlib.import_module("vllm._custom_ops")
    torch: Any = importlib.import_module("torch")
    if op is not None and not hasattr(torch.ops._C, op):
        raise RuntimeError(f"vLLM as built for this processor has no {op}")


def start(task: Task, workloads: Sequence[Workload]) -> Vllm:
    return Vllm(task, workloads)


if __name__ == "__main__":
    drive(start)
