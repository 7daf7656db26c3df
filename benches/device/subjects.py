"""Subjects on one loaded model, each with its floor beside it: no run can be shorter on this device."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benches.harness import Figures, Subject
from benches.serving.shares import decode_read_bytes, prompt_flop
from octavo import LLM
from octavo.arch import Arch
from octavo.core.sequence import SamplingParams
from octavo.core.step import Slice, Step
from octavo.engine.measure import random_prompts, run_requests
from octavo.exec.executor import Start
from octavo.exec.runner import Runner
from octavo.planner.memory import kv_block_bytes

BLOCK_TOKENS = 16
SMALL_BYTE = 120
"""Below it a byte is an e4m3 code of at most 240, and the exponent of at most 2^-8."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What a device can do at best, from `benches.device.limits`."""

    arch: Arch
    dtype: str
    copy_bytes_per_s: float
    bf16_flop_per_s: float
    quantization: str | None = None
    kv_dtype: str | None = None

    def decode_s(self, num_seqs: int, context: int) -> float:
        """To read the weights once, and the keys and values of every sequence."""
        block = kv_block_bytes(self.arch, self.kv_dtype or self.dtype, BLOCK_TOKENS)
        kv_bytes = num_seqs * context * block // BLOCK_TOKENS
        weight_bytes = decode_read_bytes(self.arch, self.dtype, self.quantization, is_compiled=False)
        return (weight_bytes + kv_bytes) / self.copy_bytes_per_s

    def prefill_s(self, num_tokens: int) -> float:
        return prompt_flop(self.arch, num_tokens) / self.bf16_flop_per_s


def decode(llm: LLM, floor: Floor, num_seqs: int, context: int, num_steps: int) -> Subject:
    """Steps of one token for each of `num_seqs` sequences, launched behind one another, without the scheduler.

    The cache is filled with small random numbers, or with bytes that are codes and exponents of such; blocks are spread
    over the whole pool.
    """
    runner: Any = llm.built.engine._executor
    assert isinstance(runner, Runner)
    block_tokens = runner.kv.layout.block_tokens
    per_seq = -(-(context + num_steps + 2) // block_tokens)
    assert num_seqs * per_seq < runner.kv.num_blocks, "the pool holds what is measured"

    def subject(repeat: int) -> Figures:
        if runner.kv.arena.is_floating_point():
            runner.kv.arena.normal_(0.0, 0.5)
        else:
            runner.kv.arena.random_(0, SMALL_BYTE)
        blocks = list(range(1, runner.kv.num_blocks))
        random.Random(repeat).shuffle(blocks)
        tables = [tuple(blocks[i * per_seq : (i + 1) * per_seq]) for i in range(num_seqs)]
        starts = [_start(i, context, floor.arch.vocab_size) for i in range(num_seqs)]
        pending = None
        began_s = 0.0
        for n in range(num_steps + 2):
            slices = tuple(
                Slice(i, 0, context - 1 + n, 1, tables[i] if n == 0 else (), samples=1)
                for i in range(num_seqs)
            )
            launched = runner.launch(Step(n, slices), starts if n == 0 else ())
            if pending is not None:
                pending.result()
            if n == 1:  # the first step has been carried out: kernels are there, and so is the graph
                began_s = time.perf_counter()
            pending = launched
        assert pending is not None
        pending.result()
        step_s = (time.perf_counter() - began_s) / (num_steps + 1)
        runner.run(Step(0, ()), ended=range(num_seqs))
        floor_s = floor.decode_s(num_seqs, context + num_steps // 2)
        return {
            "floor_share": floor_s / step_s,
            "step_s": step_s,
            "floor_s": floor_s,
            "tokens_per_s": num_seqs / step_s,
        }

    return subject


def prefill(llm: LLM, floor: Floor, num_tokens: int) -> Subject:
    """One long prompt and one token, through the whole engine."""

    def subject(repeat: int) -> Figures:
        prompts = random_prompts([num_tokens], floor.arch.vocab_size, f"prefill {repeat}")
        (one,) = run_requests(llm, prompts, [1]).requests
        floor_s = floor.prefill_s(num_tokens)
        return {
            "floor_share": floor_s / one.ttft_s,
            "ttft_s": one.ttft_s,
            "floor_s": floor_s,
            "tokens_per_s": num_tokens / one.ttft_s,
        }

    return subject


@dataclass(frozen=True)
class Requests:
    """Many requests at once: prompts of random lengths, one length of output."""

    number: int
    shortest: int
    longest: int
    num_output: int

    def prompts(self, vocab_size: int, repeat: int) -> list[list[int]]:
        draw = random.Random(0)
        sizes = [draw.randint(self.shortest, self.longest) for _ in range(self.number)]
        return random_prompts(sizes, vocab_size, f"requests {repeat}")


def throughput(llm: LLM, requests: Requests) -> Subject:
    """All requests at once, through the whole engine."""

    def subject(repeat: int) -> Figures:
        prompts = requests.prompts(llm.built.plan.arch.vocab_size, repeat)
        run = run_requests(llm, prompts, [requests.num_output] * len(prompts))
        return {"output_tokens_per_s": run.output_tokens_per_s, "wall_s": run.wall_s}

    return subject


def host_share(llm: LLM, num_seqs: int, num_prompt: int, num_output: int) -> Subject:
    """Of the time of a step how much the host spends on planning, on committing, and on ordering the device's work.

    On a processor, where ordering is computing, the last is most of it.
    """

    def subject(repeat: int) -> Figures:
        engine = llm.built.engine
        prompts = random_prompts([num_prompt] * num_seqs, llm.built.plan.arch.vocab_size, f"host {repeat}")
        spent = {"plan": 0.0, "commit": 0.0, "launch": 0.0}
        before = engine.counts()
        before_s = before.steps.total_s
        with (
            _timed(engine.scheduler, "plan", spent),
            _timed(engine.scheduler, "commit", spent),
            _timed(engine._executor, "launch", spent),
        ):
            run_requests(llm, prompts, [num_output] * num_seqs)
        after = engine.counts()
        steps_s = after.steps.total_s - before_s
        return {
            "host_share": sum(spent.values()) / steps_s,
            **{f"{name}_share": value / steps_s for name, value in spent.items()},
            "step_s": steps_s / (after.num_steps - before.num_steps),
        }

    return subject


class _timed:
    """Within, the time spent in a method of an object is added up."""

    def __init__(self, thing: Any, method: str, spent: dict[str, float]) -> None:
        self._thing, self._method, self._spent = thing, method, spent

    def __enter__(self) -> None:
        work = getattr(self._thing, self._method)

        def timed(*args: Any, **options: Any) -> Any:
            began_s = time.perf_counter()
            try:
                return work(*args, **options)
            finally:
                self._spent[self._method] += time.perf_counter() - began_s

        setattr(self._thing, self._method, timed)

    def __exit__(self, *_: object) -> None:
        delattr(self._thing, self._method)


def _start(number: int, context: int, vocab_size: int) -> Start:
    draw = random.Random(number)
    return Start(
        seq_id=number, epoch=0, tokens=tuple(draw.randrange(vocab_size) for _ in range(context)),
        num_prompt=context, params=SamplingParams(temperature=0.0, max_tokens=None), index=0, seed=number,
        end_token_ids=frozenset(),
    )  # fmt: skip


def kv_blocks(sizes: Sequence[tuple[int, int]], block_tokens: int) -> int:
    """Blocks for the largest of several loads, each (sequences, positions of one), and the null block."""
    return 1 + max(number * -(-positions // block_tokens) for number, positions in sizes)
