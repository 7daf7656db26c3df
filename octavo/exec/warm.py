"""Steps of nobody's before the first request, one for every kernel that steps carried out op by op may need.

Kernels are compiled when they are first started, which takes seconds where no cache on disk has them. While requests
wait that would be a stall, and a watch over the engine would take it for dead. All that such steps write goes to the
null block.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from octavo.core.sequence import SamplingParams
from octavo.core.step import Slice, Step
from octavo.exec.executor import Start
from octavo.exec.runner import Runner

ROWS = (1, 65, 129)
"""One for each tile of a product; see `octavo.kernels.linear.cuda`."""
SEQUENCES = (1, 17, 65, 129, 257, 1025)
"""One for each number of counts that attention reads (`octavo.kernels.attention.cuda`), and for each tile of the head's
product, whose rows are the sequences that draw."""
BEFORE = 256
"""Positions after which attention has more than one part."""

Work = tuple[int, int]
"""A sequence's positions before the step, and its tokens in the step."""


def warm(runner: Runner, *, max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int) -> int:
    """Carry the steps out that an engine with these limits may need; returns how many."""
    numbers = count()
    for step in _steps(max_num_seqs, max_num_batched_tokens, max_model_len):
        _carry_out(runner, next(numbers), step)
    return next(numbers)


def _steps(max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int) -> Iterator[list[Work]]:
    """Chunks of each height; then sequences of one token beside one of two, with one part and with several."""
    longest = min(max_num_batched_tokens, max_model_len)
    for num_rows in ROWS:
        if num_rows <= longest:
            yield [(0, num_rows)]
    for num_seqs in SEQUENCES:
        if num_seqs <= max_num_seqs and num_seqs < max_num_batched_tokens:
            for before in (0, BEFORE):
                if before + 2 <= max_model_len:
                    yield [(before, 2), *[(before, 1)] * (num_seqs - 1)]


def _carry_out(runner: Runner, number: int, step: list[Work]) -> None:
    block_tokens = runner.kv.layout.block_tokens
    slices, starts = [], []
    for seq_id, (before, num_tokens) in enumerate(step):
        end = before + num_tokens
        blocks = (0,) * -(-end // block_tokens)
        slices.append(Slice(seq_id, 0, before, num_tokens, blocks, samples=1))
        starts.append(
            Start(
                seq_id=seq_id, epoch=0, tokens=(0,) * end, num_prompt=end,
                params=SamplingParams(temperature=0.0, max_tokens=None), index=0, seed=0, end_token_ids=frozenset(),
            )
        )  # fmt: skip
    runner.run(Step(number, tuple(slices)), starts)
    runner.run(Step(number, ()), ended=range(len(step)))
