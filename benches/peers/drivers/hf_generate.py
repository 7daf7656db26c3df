"""transformers: `generate`, one request after another.

Options: dtype.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import Any

from benches.peers.drivers.common import Answer, InProcess, Job, Task, Workload, drive


class Clock:
    """A streamer that keeps times and tokens; the first thing it is given is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: list[int] = []

    def put(self, value: Any) -> None:
        if value.numel() == 1:
            self.times.append(time.monotonic())
            self.tokens.append(int(value))

    def end(self) -> None:
        pass


class Transformers(InProcess):
    def __init__(self, task: Task, _workloads: Sequence[Workload]) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._transformers: Any = importlib.import_module("transformers")
        self._torch.set_num_threads(task.num_threads)
        self._model = self._transformers.AutoModelForCausalLM.from_pretrained(
            task.model,
            dtype=getattr(self._torch, task.options.get("dtype", "bfloat16")),
            attn_implementation="sdpa",
        ).eval()

    def run(self, jobs: Sequence[Job]) -> list[Answer]:
        return [self._answer(job) for job in jobs]

    def _answer(self, job: Job) -> Answer:
        clock, count = Clock(), job.num_output_tokens
        ids = self._torch.tensor([job.prompt])
        config = self._transformers.GenerationConfig(
            do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=0, eos_token_id=None
        )
        with self._torch.no_grad():
            self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                generation_config=config,
                streamer=clock,
            )
        if len(clock.tokens) != count:
            raise RuntimeError(f"{len(clock.tokens)} tokens came, {count} were asked for")
        return Answer(clock.times[0], clock.times[-1], count, clock.tokens[0])


def start(task: Task, workloads: Sequence[Workload]) -> Transformers:
    return Transformers(task, workloads)


if __name__ == "__main__":
    drive(start)
