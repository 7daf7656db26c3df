"""Attention of the compiled kernels against float64, over blocks in which whatever may not be read is NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.dense_attention import Case, dense, random_case
from tests.kernels.native_program import ISAS, ON_PAIRS, ON_TILES, THREADS, cpu, name_of
from tests.kernels.numbers import DTYPES, assert_within, same_bits, seeded

SLOW = ("emulated",)


def width(isa: str) -> int:
    """Of a head: odd where any will do, and one that fits tiles where there are any."""
    return 32 if isa in ON_TILES else 20


@dataclass
class Paged:
    """The sequences of a case in a poisoned arena, keys and values written by the kernels as steps bring them.

    Positions are not turned (cosine 1, sine 0), so that what is written is what the case holds. A step's table names
    no block for positions that every row's window has passed.
    """

    isa: str
    case: Case
    block_tokens: int
    num_threads: int = 1
    window: int | None = None
    seed: int = 0
    program: Any = field(init=False)
    writer: Any = field(init=False)  # writes keys and values, and attends to nothing

    def __post_init__(self) -> None:
        H, D = self.case.q.shape[1:]
        K, P = self.case.keys[0].shape[1], self.block_tokens
        self.dtype = self.case.q.dtype
        self.program, self.writer = (
            cpu.Program(self.isa, self.num_threads, name_of(self.dtype), H, K, D, P, 1e-6) for _ in range(2)
        )
        self.qkv, self.out = self.program.buffer((H + 2 * K) * D), self.program.buffer(H * D)
        self.program.rope(self.qkv, 0, None, None)
        self.program.attention(self.qkv, 0, self.window or 0, self.out)
        self.writer.rope(self.writer.buffer((H + 2 * K) * D), 0, None, None)
        blocks = [-(-length // P) for length in self.case.lengths]
        total = sum(blocks) + 3
        ids = torch.randperm(total, generator=torch.Generator().manual_seed(self.seed)).tolist()
        self.arena = torch.full((1, total, self.program.block_items), torch.nan, dtype=self.dtype)
        self.tables = torch.full((len(blocks), max(blocks) + 1), -7, dtype=torch.int32)
        for s, num in enumerate(blocks):
            for n in range(num):
                self.tables[s, n] = ids.pop()

    def rows(self, seq: int, start: int, count: int, queries: Tensor) -> Tensor:
        keys, values = (
            of[seq][start : start + count].flatten(1) for of in (self.case.keys, self.case.values)
        )
        return torch.cat([queries.flatten(1), keys, values], 1)

    def run(self, program: Any, pieces: Sequence[tuple[int, int, int]], queries: Tensor) -> None:
        """Rows of (sequence, first position, how many), in that order, through a program."""
        P, rows, positions, slots, done = self.block_tokens, [], [], [], 0
        tables = self.tables[[seq for seq, _, _ in pieces]].clone()
        for i, (seq, start, count) in enumerate(pieces):
            rows.append(self.rows(seq, start, count, queries[done : done + count]))
            at = torch.arange(start, start + count)
            positions.append(at)
            slots.append(self.tables[seq][at // P].long() * P + at % P)
            if self.window is not None:
                tables[i, : max(0, start - self.window + 1) // P] = -7
            done += count
        longest, D = max(self.case.lengths), self.case.q.shape[2]
        program.write(self.qkv, torch.cat(rows))
        program.run(
            torch.zeros(done, dtype=torch.int64), torch.cat(positions), torch.cat(slots), tables,
            torch.tensor([start for _, start, _ in pieces], dtype=torch.int32),
            torch.tensor([count for _, _, count in pieces], dtype=torch.int32),
            torch.ones(longest, D // 2), torch.zeros(longest, D // 2), self.arena,
        )  # fmt: skip

    def step(self, pieces: Sequence[tuple[int, int, int]], queries: Tensor) -> Tensor:
        """Attention of rows as `run` takes them: [T, H, D]."""
        found = torch.full((len(queries), queries[0].numel()), torch.nan, dtype=self.dtype)
        self.program.write(self.out, found)
        self.run(self.program, pieces, queries)
        self.program.read(self.out, found)
        return found.view(queries.shape)

    def before(self) -> None:
        """Write what lies before the case's rows."""
        for seq, start in enumerate(self.case.starts):
            if start:
                nothing = torch.zeros(start, *self.case.q.shape[1:], dtype=self.dtype)
                self.run(self.writer, [(seq, 0, start)], nothing)

    def all_rows(self) -> Tensor:
        self.before()
        return self.step(
            [(s, *one) for s, one in enumerate(zip(self.case.starts, self.case.counts, strict=True))],
            self.case.q,
        )


_known: dict[tuple[int, int | None], tuple[Case, Tensor, Tensor]] = {}


@cache
def made(
    lengths: tuple[int, ...], counts: tuple[int, ...], H: int, K: int, D: int, dtype: torch.dtype, seed: int
) -> Case:
    """A random case; the same one for every instruction set, whose oracle is then computed once."""
    return random_case([*lengths], [*counts], H, K, D, dtype, seed)


def check(isa: str, case: Case, P: int, num_threads: int, window: int | None = None) -> None:
    key = id(case), window
    if key not in _known:  # with the case, so that no other takes its id
        _known[key] = case, *dense(case, case.q.shape[2] ** -0.5, window)
    _, want, bound = _known[key]
    if isa in (*ON_TILES, *ON_PAIRS) and case.q.dtype == torch.bfloat16:
        bound = (
            2 * bound
        )  # weights are rounded as well, which costs no more than the output's rounding is given
    assert_within(Paged(isa, case, P, num_threads, window).all_rows(), want, bound)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("P", [1, 2, 4, 5, 8, 16, 32, 64])
@pytest.mark.parametrize("num_threads", THREADS)
def test_every_block_size(isa: str, dtype: torch.dtype, P: int, num_threads: int) -> None:
    case = made((70, 33, 1, 150), (5, 33, 1, 1), 6, 2, width(isa), dtype, 3)
    check(isa, case, P, num_threads)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(1, 1), (6, 6), (6, 2), (7, 1), (14, 2)])
@pytest.mark.parametrize("D", [2, 10, 16, 20, 32, 64, 96, 128])
def test_every_head_count_and_width(isa: str, dtype: torch.dtype, heads: tuple[int, int], D: int) -> None:
    case = made((67, 30), (2, 13), *heads, D, dtype, D)
    for P in (5, 16):
        check(isa, case, P, 2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [1, 3, 17, 64, 65, 200])
def test_windows(isa: str, dtype: torch.dtype, window: int) -> None:
    """Blocks that a window has passed are no blocks at all in the table."""
    case = made((150, 66, 1, 129), (1, 66, 1, 40), 4, 2, width(isa), dtype, window)
    for P in (1, 4, 16, 32):
        check(isa, case, P, 2, window)


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa not in SLOW])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lengths", "counts", "window"),
    [
        ([1025], [3], None),
        ([2100, 1100], [2, 1], None),
        ([2080], [70], None),
        ([2300], [90], 1500),
        ([2300, 1030], [1, 9], 1000),
        ([3100], [1], 70),
    ],
)
def test_contexts_beyond_the_parts_sums_are_cut_into(
    isa: str, dtype: torch.dtype, lengths: list[int], counts: list[int], window: int | None
) -> None:
    case = made(tuple(lengths), tuple(counts), 4, 2, 16, dtype, 5)
    for num_threads in THREADS:
        check(isa, case, 16, num_threads, window)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("P", "window"), [(5, None), (16, None), (16, 50), (64, None)])
def test_chunks_company_places_and_threads_change_no_bit(
    isa: str, dtype: torch.dtype, P: int, window: int | None
) -> None:
    case = random_case([150, 70], [150, 70], 6, 2, width(isa), dtype, seed=8)
    want = Paged(isa, case, P, 1, window).all_rows()
    for num_threads, sizes in ((2, (1, 7, 64, 3, 20, 40, 15)), (1, (70, 80)), (2, (33,) * 5)):
        paged = Paged(isa, case, P, num_threads, window, seed=num_threads + len(sizes))
        starts = [0, 0]
        for size in sizes:
            pieces, queries = [], []
            for seq in (1, 0):  # in turns with another sequence, which is shorter
                count = min(size, case.lengths[seq] - starts[seq])
                if count > 0:
                    pieces.append((seq, starts[seq], count))
                    first = starts[seq] + (150 if seq else 0)
                    queries.append(case.q[first : first + count])
            found = paged.step(pieces, torch.cat(queries))
            done = 0
            for seq, start, count in pieces:
                first = start + (150 if seq else 0)
                assert same_bits(found[done : done + count], want[first : first + count]), (size, seq, start)
                done += count
                starts[seq] += count


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa not in SLOW])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1500])
def test_long_contexts_keep_their_bits(isa: str, dtype: torch.dtype, window: int | None) -> None:
    """One row alone is cut over threads, many rows are not, and a row in company neither: the same bits."""
    case = random_case([2200, 1200], [40, 1], 4, 2, 16, dtype, seed=2)
    want = Paged(isa, case, 16, 1, window).all_rows()
    assert same_bits(Paged(isa, case, 16, 2, window, seed=4).all_rows(), want)
    for num_threads in THREADS:
        for P in (4, 32):
            paged = Paged(isa, case, P, num_threads, window, seed=7)
            paged.before()
            for i in range(0, 40, 13):
                last = min(i + 13, 40)
                found = paged.step([(0, 2160 + i, last - i)], case.q[i:last])
                assert same_bits(found, want[i:last])
            assert same_bits(paged.step([(1, 1199, 1)], case.q[40:]), want[40:])
            assert same_bits(paged.step([(0, 2199, 1)], case.q[39:40]), want[39:40])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", ["keys", "values"])
@pytest.mark.parametrize("spoilt", [40, 41])
def test_what_is_not_finite_spoils_only_rows_that_see_it(
    isa: str, dtype: torch.dtype, value: float, side: str, spoilt: int
) -> None:
    window = 30
    case = random_case([100, 40], [100, 40], 4, 2, width(isa), dtype, seed=6)
    for P, has_window in ((4, None), (16, None), (16, window)):
        good = Paged(isa, case, P, 2, has_window).all_rows()
        changed = [one.clone() for one in getattr(case, side)]
        changed[0][spoilt, 1, 3] = value
        found = Paged(isa, replace(case, **{side: changed}), P, 2, has_window).all_rows()
        sees = torch.zeros(140, dtype=torch.bool)
        sees[spoilt : 100 if has_window is None else spoilt + window] = True
        assert same_bits(found[~sees], good[~sees])
        assert same_bits(found[sees][:, :2], good[sees][:, :2])  # heads of the other KV head
        if side == "values":
            assert found[sees][:, 2:, 3].isnan().all()
        elif value != value:
            assert found[sees][:, 2:].isnan().all()


@pytest.mark.parametrize("isa", ISAS)
def test_a_query_that_is_not_finite_spoils_its_head_alone(isa: str) -> None:
    case = random_case([30], [9], 4, 2, 20, torch.float32, seed=6)
    good, spoilt = Paged(isa, case, 16).all_rows(), case.q.clone()
    spoilt[4, 1, 7] = torch.nan
    found = Paged(isa, replace(case, q=spoilt), 16).all_rows()
    assert found[4, 1].isnan().all()
    good[4, 1] = found[4, 1]
    assert same_bits(found, good)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [0.0, 30.0])
def test_flat_and_steep_scores(isa: str, size: float) -> None:
    """All positions alike, and one that takes nearly all of the mass."""
    case = random_case([140], [9], 4, 2, 16, torch.float32, seed=6)
    check(isa, replace(case, q=case.q * size), 16, 1)
    equal = [seeded(1, 2, 16, seed=1).expand(140, 2, 16).contiguous()]
    check(isa, replace(case, keys=equal), 16, 1)
