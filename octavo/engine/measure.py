"""How fast a loaded model answers: latency of a few requests, throughput of many, peak memory beside both.

Prompts are random token ids from a fixed seed, new ones in every repeat, so that no repeat finds its prompt
in the prefix cache; decoding is greedy and output lengths are forced.
"""

from __future__ import annotations

import random
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from octavo.core.sequence import SamplingParams
from octavo.engine.limits import MachineLimits, measure_machine
from octavo.engine.outputs import RequestOutput
from octavo.errors import Bug, ConfigError

__all__ = [
    "Generates", "Latency", "MachineLimits", "RequestTimes", "Run", "Spread", "Throughput",
    "measure_machine", "random_prompts", "run_latency", "run_requests", "run_throughput",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeats of one figure, in the order they were measured; at least one."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a spread needs at least one value")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def iqr(self) -> float:
        """Third quartile less the first, interpolated between neighbours; 0 for a single value."""
        if len(self.values) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return third - first


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """One request's counts and times, seconds on the engine's clock."""

    num_prompt_tokens: int
    num_output_tokens: int
    arrival_s: float
    first_token_s: float
    finished_s: float
    num_cached_prompt_tokens: int = 0
    num_preemptions: int = 0

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for a single token."""
        if self.num_output_tokens < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.num_output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Run:
    """Requests that were sent at once, all answered.

    peak_bytes      resident memory at its highest (on a GPU: the tensors on it)
    is_peak_of_run  False where the system cannot forget an older peak: then it is the process's so far
    """

    requests: tuple[RequestTimes, ...]
    peak_bytes: int
    is_peak_of_run: bool

    @property
    def wall_s(self) -> float:
        """From the first arrival to the last finish."""
        return max(one.finished_s for one in self.requests) - min(one.arrival_s for one in self.requests)

    @property
    def num_prompt_tokens(self) -> int:
        return sum(one.num_prompt_tokens for one in self.requests)

    @property
    def num_output_tokens(self) -> int:
        return sum(one.num_output_tokens for one in self.requests)

    @property
    def output_tokens_per_s(self) -> float:
        return self.num_output_tokens / self.wall_s

    @property
    def total_tokens_per_s(self) -> float:
        """Prompt tokens, cached ones included, and output tokens."""
        return (self.num_prompt_tokens + self.num_output_tokens) / self.wall_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Requests sent together, repeated. Per repeat the mean over its requests counts.

    tpot_s   None when a single token was asked for
    total_s  from arrival to the last token of the last request
    """

    num_prompt_tokens: int
    num_output_tokens: int
    batch_size: int
    ttft_s: Spread
    tpot_s: Spread | None
    total_s: Spread
    peak_bytes: int
    is_peak_of_run: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Many requests sent at once, repeated. Token counts are those of one repeat."""

    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    output_tokens_per_s: Spread
    total_tokens_per_s: Spread
    wall_s: Spread
    peak_bytes: int
    is_peak_of_run: bool


class Generates(Protocol):
    """The part of `LLM` that is measured."""

    built: Any

    def generate(
        self, prompts: Any, sampling_params: Sequence[SamplingParams]
    ) -> list[RequestOutput]: ...  # pragma: no cover


def run_requests(llm: Generates, prompts: Sequence[Sequence[int]], output_tokens: Sequence[int]) -> Run:
    """Send prompts (token ids) at once, greedy, with output lengths forced, and time them.

    Raises RequestError for a prompt that does not fit, Bug when a request did not give the tokens asked for.
    """
    params = [SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True) for count in output_tokens]
    device = str(llm.built.plan.resolved.device)
    is_peak_of_run = _forget_peak(device)
    outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], params)
    peak_bytes = _peak_bytes(device)
    times = tuple(_times(output, count) for output, count in zip(outputs, output_tokens, strict=True))
    return Run(times, peak_bytes, is_peak_of_run)


def run_latency(
    llm: Generates,
    *,
    prompt_tokens: int = 128,
    output_tokens: int = 128,
    batch_size: int = 1,
    repeats: int = 5,
    warmup: int = 1,
    seed: int = 0,
    on_repeat: Callable[[int], None] | None = None,
) -> Latency:
    """Latency of `batch_size` equal requests sent together.

    warmup     repeats before the first that counts
    on_repeat  called with the number of counted repeats done, for a progress bar

    Raises ConfigError for counts below one, RequestError when a request does not fit.
    """
    _at_least_one(
        prompt_tokens=prompt_tokens, output_tokens=output_tokens, batch_size=batch_size, repeats=repeats
    )
    sizes = [prompt_tokens] * batch_size
    runs = _repeated(llm, sizes, [output_tokens] * batch_size, repeats, warmup, seed, on_repeat)
    tpots = [[one.tpot_s for one in run.requests if one.tpot_s is not None] for run in runs]
    return Latency(
        num_prompt_tokens=prompt_tokens,
        num_output_tokens=output_tokens,
        batch_size=batch_size,
        ttft_s=Spread(tuple(statistics.fmean(one.ttft_s for one in run.requests) for run in runs)),
        tpot_s=Spread(tuple(map(statistics.fmean, tpots))) if output_tokens > 1 else None,
        total_s=Spread(tuple(run.wall_s for run in runs)),
        peak_bytes=max(run.peak_bytes for run in runs),
        is_peak_of_run=all(run.is_peak_of_run for run in runs),
    )


def run_throughput(
    llm: Generates,
    *,
    num_requests: int = 32,
    prompt_tokens: tuple[int, int] = (64, 512),
    output_tokens: tuple[int, int] = (32, 128),
    repeats: int = 5,
    warmup: int = 1,
    seed: int = 0,
    on_repeat: Callable[[int], None] | None = None,
) -> Throughput:
    """Throughput of requests sent at once; lengths are drawn from (lowest, highest) once for all repeats.

    Raises ConfigError for counts below one or empty ranges, RequestError when a request does not fit.
    """
    _at_least_one(num_requests=num_requests, repeats=repeats)
    _range(prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    draw = random.Random(seed)
    prompt_sizes = [draw.randint(*prompt_tokens) for _ in range(num_requests)]
    output_sizes = [draw.randint(*output_tokens) for _ in range(num_requests)]
    runs = _repeated(llm, prompt_sizes, output_sizes, repeats, warmup, seed, on_repeat)
    return Throughput(
        num_requests=num_requests,
        num_prompt_tokens=runs[0].num_prompt_tokens,
        num_output_tokens=runs[0].num_output_tokens,
        output_tokens_per_s=Spread(tuple(run.output_tokens_per_s for run in runs)),
        total_tokens_per_s=Spread(tuple(run.total_tokens_per_s for run in runs)),
        wall_s=Spread(tuple(run.wall_s for run in runs)),
        peak_bytes=max(run.peak_bytes for run in runs),
        is_peak_of_run=all(run.is_peak_of_run for run in runs),
    )


def random_prompts(sizes: Sequence[int], vocab_size: int, seed: str) -> list[list[int]]:
    """Token ids drawn evenly from the whole vocabulary; equal seeds give equal prompts on every machine."""
    draw = random.Random(seed)
    return [[draw.randrange(vocab_size) for _ in range(size)] for size in sizes]


def _repeated(
    llm: Generates,
    prompt_sizes: Sequence[int],
    output_sizes: Sequence[int],
    repeats: int,
    warmup: int,
    seed: int,
    on_repeat: Callable[[int], None] | None,
) -> list[Run]:
    vocab_size = int(llm.built.plan.arch.vocab_size)
    runs = []
    for number in range(-warmup, repeats):
        run = run_requests(llm, random_prompts(prompt_sizes, vocab_size, f"{seed} {number}"), output_sizes)
        if number >= 0:
            runs.append(run)
            if on_repeat is not None:
                on_repeat(len(runs))
    return runs


def _times(output: RequestOutput, num_output_tokens: int) -> RequestTimes:
    metrics, drawn = output.metrics, len(output.outputs[0].token_ids)
    if drawn != num_output_tokens or metrics.first_token_s is None or metrics.finished_s is None:
        reason = output.outputs[0].finish_reason
        raise Bug(
            f"a request for {num_output_tokens} tokens gave {drawn} and ended {reason!r}; it is not a measure"
        )
    return RequestTimes(
        len(output.prompt_token_ids),
        drawn,
        metrics.arrival_s,
        metrics.first_token_s,
        metrics.finished_s,
        metrics.cached_prompt_tokens,
        metrics.preemptions,
    )


def _forget_peak(device: str) -> bool:
    """Start a new peak where the system lets us. False where the old one stays."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # 5: forget the peak resident size, see proc(5)
    except OSError:
        return False
    return True


def _peak_bytes(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name} must be at least 1, got {count}")


def _range(**ranges: tuple[int, int]) -> None:
    for name, (low, high) in ranges.items():
        if not 1 <= low <= high:
            raise ConfigError(f"{name} must be a range of at least 1, lowest first, got {low} to {high}")
