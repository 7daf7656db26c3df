"""Batches against an oracle that goes position by position."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.sequence import SamplingParams
from octavo.core.step import Slice
from octavo.errors import Bug
from octavo.exec.batch import ALIGN_BYTES, UNKNOWN, Form, Held, batch_of, build, flatten, to_device
from octavo.exec.executor import Start

CPU = torch.device("cpu")


def held(tokens: list[int], table: list[int]) -> Held:
    start = Start(
        seq_id=0,
        epoch=0,
        tokens=tuple(tokens),
        num_prompt=len(tokens),
        params=SamplingParams(),
        index=0,
        seed=0,
        end_token_ids=frozenset(),
    )
    return Held(start, list(tokens), list(table))


@dataclass
class Case:
    block_tokens: int
    tokens: list[list[int]]
    tables: list[list[int]]
    pieces: list[Slice]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    block_tokens = draw(st.sampled_from([1, 2, 3, 8, 16]))
    num_sequences = draw(st.integers(1, 5))
    tokens, tables, pieces = [], [], []
    free = iter(draw(st.permutations(range(1, 200))))
    for seq_id in range(num_sequences):
        length = draw(st.integers(1, 30))
        tokens.append(draw(st.lists(st.integers(0, 999), min_size=length, max_size=length)))
        spare = draw(st.integers(0, 2))
        tables.append([next(free) for _ in range(-(-length // block_tokens) + spare)])
        start = draw(st.integers(0, length - 1))
        count = draw(st.integers(1, length - start))
        pieces.append(Slice(seq_id, 0, start, count))
    return Case(block_tokens, tokens, tables, draw(st.permutations(pieces)))


@given(cases())
@settings(max_examples=150, deadline=None)
def test_build_equals_the_slow_oracle(case: Case) -> None:
    known = {i: held(case.tokens[i], case.tables[i]) for i in range(len(case.tokens))}
    batch = build(case.pieces, known, case.block_tokens, CPU)
    row = 0
    for index, piece in enumerate(case.pieces):
        assert int(batch.starts[index]) == piece.start
        assert int(batch.counts[index]) == piece.num_tokens
        table = batch.tables[index].tolist()
        for position in range(piece.start, piece.start + piece.num_tokens):
            block = case.tables[piece.seq_id][position // case.block_tokens]
            assert int(batch.tokens[row]) == case.tokens[piece.seq_id][position]
            assert int(batch.positions[row]) == position
            assert int(batch.slots[row]) == block * case.block_tokens + position % case.block_tokens
            assert table[position // case.block_tokens] == block
            row += 1
        for position in range(piece.start):
            assert (
                table[position // case.block_tokens]
                == case.tables[piece.seq_id][position // case.block_tokens]
            )
    assert row == len(batch.tokens) == len(batch.positions) == len(batch.slots)
    dtypes = [t.dtype for t in (batch.tokens, batch.positions, batch.slots)]
    assert dtypes == [torch.int64] * 3
    assert batch.tables.dtype == batch.starts.dtype == batch.counts.dtype == torch.int32


def test_drafts_stand_in_for_tokens_not_known() -> None:
    known = {0: held([5, 6, 7], [3, 4])}
    piece = Slice(0, 0, start=2, num_tokens=3, draft_tokens=(8, 9))
    batch = build([piece], known, 4, CPU)
    assert batch.tokens.tolist() == [7, 8, 9]
    assert batch.positions.tolist() == [2, 3, 4]
    assert batch.slots.tolist() == [3 * 4 + 2, 3 * 4 + 3, 4 * 4]
    assert known[0].tokens == [5, 6, 7]


def test_a_slice_changes_the_table_before_it_grows() -> None:
    one = held([1] * 10, [7, 8])
    one.apply(Slice(0, 0, start=8, num_tokens=2, new_blocks=(9,), replaced=((1, 20),)))
    assert one.table == [7, 20, 9]


def test_a_token_nobody_told_the_worker_is_a_bug() -> None:
    with pytest.raises(Bug, match="asked to compute positions 2 to 3, knows 3 tokens"):
        build([Slice(0, 0, start=2, num_tokens=2)], {0: held([1, 2, 3], [1])}, 4, CPU)


def test_a_position_without_a_block_is_a_bug() -> None:
    with pytest.raises(Bug, match="1 blocks of 2 tokens cannot hold position 2"):
        build([Slice(0, 0, start=0, num_tokens=3)], {0: held([1, 2, 3], [1])}, 2, CPU)


@given(cases(), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_one_piece_of_memory_holds_the_same_arrays(case: Case, more_seqs: int, more_blocks: int) -> None:
    """And rows that fill it up: sequences of one token in the null block."""
    known = {i: held(case.tokens[i], case.tables[i]) for i in range(len(case.tokens))}
    want, flat = (
        build(case.pieces, known, case.block_tokens, CPU),
        flatten(case.pieces, known, case.block_tokens),
    )
    num_rows, num_seqs, width = flat.form.num_rows, flat.form.num_seqs, flat.form.width
    form = Form(num_rows + more_seqs, num_seqs + more_seqs, width + more_blocks)
    memory = torch.full((form.nbytes + 9,), 77, dtype=torch.uint8)
    arrays = to_device(flat, form, CPU, memory)
    assert memory[form.nbytes :].tolist() == [77] * 9
    for name in ("tokens", "positions", "slots"):
        assert arrays[name].tolist() == [*getattr(want, name).tolist(), *[0] * more_seqs]
        assert (arrays[name].data_ptr() - memory.data_ptr()) % ALIGN_BYTES == 0
    assert arrays["starts"].tolist() == [*want.starts.tolist(), *[0] * more_seqs]
    assert arrays["counts"].tolist() == [*want.counts.tolist(), *[1] * more_seqs]
    assert arrays["sources"].tolist() == [-1] * form.num_rows
    tables = torch.zeros(form.num_seqs, form.width, dtype=torch.int32)
    tables[:num_seqs, :width] = want.tables
    assert torch.equal(arrays["tables"], tables)


def test_an_unread_token_comes_from_the_step_before() -> None:
    known = {0: held([5, 6, UNKNOWN], [3]), 1: held([9, UNKNOWN], [4])}
    known[0].source, known[1].source = 2, 0
    slices = [Slice(0, 0, 2, 1), Slice(1, 0, 0, 1)]
    flat = flatten(slices, known, 4)
    assert flat.sources == [2, -1]
    assert not flat.is_known
    batch = batch_of(to_device(flat, flat.form, CPU), flat.num_positions, torch.tensor([40, 50, 60]))
    assert batch.tokens.tolist() == [60, 9]
    with pytest.raises(Bug, match="nobody has read"):
        build(slices, known, 4, CPU)
