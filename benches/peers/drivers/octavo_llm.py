"""Octavo: `LLM.generate`, all requests in one call. Its answers are checked before anything is timed.

Options: quantization (None, "int8" or "int4").
"""

from __future__ import annotations

from collections.abc import Sequence

from benches.peers.drivers.common import Answer, InProcess, Job, Task, Workload, drive
from benches.serving.workloads import BLOCK_TOKENS, gate
from octavo import LLM, SamplingParams


class Octavo(InProcess):
    """Request times are the engine's own; its clock is `time.monotonic`, as that of the drivers."""

    def __init__(self, task: Task, _workloads: Sequence[Workload]) -> None:
        longest = max(task.longest, 1024)
        self._llm = LLM(
            task.model,
            quantization=task.options.get("quantization"),
            num_threads=task.num_threads,
            max_num_seqs=task.max_num_seqs,
            max_model_len=longest,
            num_kv_blocks=max(task.num_kv_tokens, longest) // BLOCK_TOKENS + task.max_num_seqs + 1,
            block_size=BLOCK_TOKENS,
        )
        self._is_checked = False

    def run(self, jobs: Sequence[Job]) -> list[Answer]:
        """Raises GateFailed before the first, a warm-up, when an answer is not the same alone and in company."""
        if not self._is_checked:
            gate(self._llm, int(self._llm.built.plan.arch.vocab_size))
            self._is_checked = True
        params = [
            SamplingParams(temperature=0.0, max_tokens=job.num_output_tokens, ignore_eos=True) for job in jobs
        ]
        outputs = self._llm.generate([{"prompt_token_ids": job.prompt} for job in jobs], params)
        answers = []
        for job, output in zip(jobs, outputs, strict=True):
            tokens, metrics = output.outputs[0].token_ids, output.metrics
            if (
                len(tokens) != job.num_output_tokens
                or metrics.first_token_s is None
                or metrics.finished_s is None
            ):
                raise RuntimeError(f"{len(tokens)} tokens came, {job.num_output_tokens} were asked for")
            answers.append(Answer(metrics.first_token_s, metrics.finished_s, len(tokens), tokens[0]))
        return answers

    def close(self) -> None:
        self._llm.close()


def start(task: Task, workloads: Sequence[Workload]) -> Octavo:
    return Octavo(task, workloads)


if __name__ == "__main__":
    drive(start)
