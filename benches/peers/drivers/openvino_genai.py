"""OpenVINO GenAI: `ContinuousBatchingPipeline`, stepped by hand.

Options: device, the properties of the device beside the number of threads.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from benches.peers.drivers.common import Answer, InProcess, Job, Progress, Task, Workload, drive


class OpenVino(InProcess):
    def __init__(self, task: Task, _workloads: Sequence[Workload]) -> None:
        self._numpy: Any = importlib.import_module("numpy")
        self._openvino: Any = importlib.import_module("openvino")
        self._genai: Any = importlib.import_module("openvino_genai")
        schedule = self._genai.SchedulerConfig()
        schedule.max_num_batched_tokens = 2048
        schedule.max_num_seqs = task.max_num_seqs
        schedule.enable_prefix_caching = True
        schedule.dynamic_split_fuse = True
        schedule.cache_size = task.kv_gib
        device = {"INFERENCE_NUM_THREADS": task.num_threads, **task.options.get("device", {})}
        self._pipeline = self._genai.ContinuousBatchingPipeline(task.model, schedule, "CPU", device)
        self._num_requests = 0

    def run(self, jobs: Sequence[Job]) -> list[Answer]:
        progress, handles = Progress(jobs), []
        for job in jobs:
            self._num_requests += 1
            ids = self._openvino.Tensor(self._numpy.array([job.prompt], dtype=self._numpy.int64))
            handles.append(
                self._pipeline.add_request(self._num_requests, ids, self._config(job.num_output_tokens))
            )
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            _read(handles, progress)
        _read(handles, progress)
        return progress.answers()

    def _config(self, count: int) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.ignore_eos = True
        config.do_sample = False
        return config


def _read(handles: Sequence[Any], progress: Progress) -> None:
    for number, handle in enumerate(handles):
        while handle.can_read():
            for output in handle.read().values():
                progress.add(number, list(output.generated_ids))


def start(task: Task, workloads: Sequence[Workload]) -> OpenVino:
    return OpenVino(task, workloads)


if __name__ == "__main__":
    drive(start)
