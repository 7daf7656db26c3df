from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.kernels.attention import cut, paged_attention, reference
from octavo.kernels.tiles import Ladder
from tests.kernels.dense_attention import Case, dense, page, random_case
from tests.kernels.numbers import DTYPES, assert_within, same_bits

HEADS = [(6, 2, 20, 8), (4, 4, 16, 16), (5, 1, 7, 3)]
"""(H, K, D, P): grouped, one to one, one for all; a block size that divides no tile."""


def attend(case: Case, P: int = 8, seed: int = 5, window: int | None = None) -> Tensor:
    return paged_attention(case.q, *page(case, P, seed, window), case.q.shape[2] ** -0.5, window)


def rows_of(case: Case, s: int, first: int, end: int) -> Case:
    """The same sequence when only positions `first .. end - 1` are computed and nothing later exists yet."""
    start = sum(case.counts[:s]) - case.starts[s]
    return Case(
        [end],
        [end - first],
        case.q[start + first : start + end],
        [case.keys[s][:end]],
        [case.values[s][:end]],
    )


@pytest.fixture
def no_memory() -> Iterator[None]:
    """Forget what earlier calls have cut."""
    reference._recent = ()
    yield
    reference._recent = ()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "K", "D", "P"), HEADS)
@pytest.mark.parametrize("window", [None, 1, 5, 130])
@pytest.mark.parametrize(
    ("lengths", "counts"),
    [
        ([1], [1]),
        ([7, 1, 16], [3, 1, 16]),
        ([33, 128, 129, 257], [1, 1, 1, 1]),
        ([300, 5, 131], [150, 5, 1]),
    ],
)
def test_equals_dense_attention(
    lengths: list[int],
    counts: list[int],
    window: int | None,
    H: int,
    K: int,
    D: int,
    P: int,
    dtype: torch.dtype,
) -> None:
    case = random_case(lengths, counts, H, K, D, dtype, seed=3)
    got = attend(case, P, window=window)
    assert got.dtype == dtype
    assert got.is_contiguous()
    assert_within(got, *dense(case, D**-0.5, window))


def test_an_oracle_off_by_one_position_is_noticed() -> None:
    case = random_case([40], [9], 4, 2, 16, torch.float32, seed=3)
    got = attend(case, window=7)
    for wrong in (6, 8, None):
        with pytest.raises(AssertionError):
            assert_within(got, *dense(case, 0.25, wrong))


def test_large_scores_do_not_overflow() -> None:
    case = random_case([200], [3], 4, 2, 16, torch.float32, seed=3)
    case.q *= 1e4
    assert_within(attend(case), *dense(case, 0.25))


@st.composite
def workloads(draw: st.DrawFn) -> tuple[Case, int, int | None]:
    H, K, D, P = draw(st.sampled_from(HEADS))
    lengths = draw(st.lists(st.integers(1, 290), min_size=1, max_size=5))
    counts = [draw(st.one_of(st.just(1), st.integers(0, length))) for length in lengths]
    dtype, window = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([None, 1, 30, 129]))
    return random_case(lengths, counts, H, K, D, dtype, seed=draw(st.integers(0, 99))), P, window


@given(workload=workloads(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_rows_bits_depend_on_nothing_but_what_it_sees(
    workload: tuple[Case, int, int | None], data: st.DataObject
) -> None:
    """Together, sequence by sequence, in chunks, row by row; blocks elsewhere, blocks of another size."""
    case, P, window = workload
    together = attend(case, P, seed=1, window=window)
    row = 0
    for s, (start, count) in enumerate(zip(case.starts, case.counts, strict=True)):
        borders = data.draw(st.sets(st.integers(start, start + count), max_size=4), label=f"chunks of {s}")
        chunks = sorted({start, *borders, start + count})
        for first, end in pairwise(chunks):
            part = attend(
                rows_of(case, s, first, end), data.draw(st.sampled_from([1, 4, 5, 32, 200])), first, window
            )
            assert same_bits(part, together[row + first - start : row + end - start])
        row += count


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 50])
def test_prefill_at_once_equals_decoding_every_token(window: int | None, dtype: torch.dtype) -> None:
    case = random_case([270], [270], 6, 2, 20, dtype, seed=8)
    at_once = attend(case, window=window)
    for position in [*range(0, 20), *range(120, 136), *range(250, 270)]:
        alone = attend(rows_of(case, 0, position, position + 1), seed=position, window=window)
        assert same_bits(alone, at_once[position : position + 1]), position


def test_many_decodes_equal_each_alone() -> None:
    lengths = [1 + (37 * i) % 300 for i in range(40)]
    case = random_case(lengths, [1] * 40, 4, 2, 64, torch.float32, seed=2)
    together = attend(case, P=16)
    for s in range(40):
        assert same_bits(attend(rows_of(case, s, lengths[s] - 1, lengths[s]), P=16), together[s : s + 1])


def test_the_order_of_sequences_does_not_matter() -> None:
    case = random_case([40, 130, 7], [3, 2, 7], 6, 2, 20, torch.float32, seed=2)
    turned = Case(
        case.lengths[::-1],
        case.counts[::-1],
        torch.cat(case.q.split(case.counts)[::-1]),
        case.keys[::-1],
        case.values[::-1],
    )
    assert same_bits(torch.cat(attend(turned).split(turned.counts)[::-1]), attend(case))


@pytest.mark.parametrize("ladder", [(1,), (4,), (2, 16)])
@pytest.mark.parametrize(("H", "K", "D", "P"), HEADS)
def test_any_ladder_is_right_and_steady(
    ladder: tuple[int, ...], H: int, K: int, D: int, P: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "row_ladder", lambda *_: Ladder(ladder, "set by the test"))
    case = random_case([150, 3], [20, 3], H, K, D, torch.float32, seed=3)
    got = attend(case, P)
    assert_within(got, *dense(case, D**-0.5))
    if ladder != (2, 16):  # tiles nobody has proven equal
        assert same_bits(attend(rows_of(case, 0, 140, 141), P), got[10:11])


def test_a_small_workspace_changes_nothing(monkeypatch: pytest.MonkeyPatch, no_memory: None) -> None:
    del no_memory
    case = random_case([300, 20, 140, 260], [40, 1, 1, 1], 6, 2, 20, torch.float32, seed=3)
    want = attend(case)
    for num_bytes in (1, 10_000, 100_000):
        reference._recent = ()
        monkeypatch.setattr(cut, "WORKSPACE_BYTES", num_bytes)
        monkeypatch.setattr(reference, "WORKSPACE_BYTES", num_bytes)
        assert same_bits(attend(case), want)


@pytest.mark.parametrize("side", [0, 1], ids=["keys", "values"])
@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
@pytest.mark.parametrize("window", [None, 9])
def test_what_is_not_a_number_reaches_only_the_rows_that_see_it(
    odd: float, side: int, window: int | None
) -> None:
    case = random_case([150, 40], [60, 5], 6, 2, 20, torch.float32, seed=4)
    clean = attend(case, window=window)
    target = (case.keys, case.values)[side][0]
    target[120, 1, 3] = odd
    got = attend(case, window=window)
    sees = range(30, 60) if window is None else range(30, 39)
    for row in range(65):
        for head in range(6):
            if row in sees and head >= 3 and side == 1:
                assert got[row, head, 3].isnan()
                assert same_bits(got[row, head, :3], clean[row, head, :3])
            elif not (row in sees and head >= 3):
                assert same_bits(got[row, head], clean[row, head])
            elif odd != odd:
                assert got[row, head].isnan().all()


def test_a_query_that_is_not_a_number_harms_no_other() -> None:
    case = random_case([150, 40], [60, 5], 6, 2, 20, torch.float32, seed=4)
    clean = attend(case)
    case.q[7, 2] = torch.nan
    got = attend(case)
    assert got[7, 2].isnan().all()
    keep = torch.ones(65, 6, dtype=torch.bool)
    keep[7, 2] = False
    assert same_bits(got[keep], clean[keep])


def test_nothing_to_do() -> None:
    empty = random_case([4, 9], [0, 0], 6, 2, 20, torch.float32, seed=4)
    assert attend(empty).shape == (0, 6, 20)
    none = torch.empty(0, dtype=torch.int32)
    blocks = torch.zeros(2, 2, 8, 2, 20)
    assert paged_attention(empty.q, blocks, none.view(0, 3), none, none, 1.0).shape == (0, 6, 20)


def test_inputs_are_only_read_and_views_are_taken() -> None:
    case = random_case([20, 9], [4, 1], 6, 2, 20, torch.float32, seed=4)
    fused = torch.full((5, 200), torch.nan)
    q = fused[:, 40:160].view(5, 6, 20).copy_(case.q)
    blocks, tables, starts, counts = page(case, 8, 1)
    kept = [x.clone() for x in (fused, blocks, tables, starts, counts)]
    got = paged_attention(q, blocks, tables, starts, counts, 0.25)
    assert all(same_bits(a, b) for a, b in zip((fused, blocks), kept, strict=False))
    assert all(torch.equal(a, b) for a, b in zip((tables, starts, counts), kept[2:], strict=True))
    assert same_bits(got, paged_attention(case.q, blocks, tables, starts, counts, 0.25))


def test_a_table_changed_in_place_is_seen() -> None:
    case = random_case([20, 20], [1, 1], 4, 2, 16, torch.float32, seed=4)
    blocks, tables, starts, counts = page(case, 8, 1)
    first = paged_attention(case.q, blocks, tables, starts, counts, 0.25)
    tables[:] = tables.flip(0)
    swapped = paged_attention(case.q.flip(0), blocks, tables, starts, counts, 0.25)
    assert same_bits(swapped.flip(0), first)
    starts -= 1
    shorter = paged_attention(case.q.flip(0), blocks, tables, starts, counts, 0.25)
    assert not torch.equal(shorter, swapped)


def test_layers_with_and_without_a_window_take_turns(no_memory: None) -> None:
    del no_memory
    case = random_case([140, 30], [9, 1], 4, 2, 16, torch.float32, seed=4)
    paged = page(case, 8, 1)
    for window in (None, 20, 20, None, 7, None, 20):
        assert_within(paged_attention(case.q, *paged, 0.25, window), *dense(case, 0.25, window))


@pytest.mark.parametrize("first_in_inference_mode", [True, False])
def test_inside_and_outside_of_inference_mode(first_in_inference_mode: bool, no_memory: None) -> None:
    del no_memory
    case = random_case([140, 30], [9, 1], 4, 2, 16, torch.bfloat16, seed=4)
    paged = page(case, 8, 1)
    reference._scratch._held.clear()
    with torch.inference_mode(first_in_inference_mode):
        first = paged_attention(case.q, *paged, 0.25)
    with torch.inference_mode(not first_in_inference_mode):
        assert same_bits(paged_attention(case.q, *paged, 0.25).clone(), first.clone())


def test_threads_do_not_share_scratch() -> None:
    cases = [random_case([150 + i, 40], [60, 5], 6, 2, 20, torch.float32, seed=i) for i in range(4)]
    want = [attend(case) for case in cases]
    got: list[list[Tensor]] = [[] for _ in cases]
    threads = [
        threading.Thread(target=lambda case=case, out=out: out.extend(attend(case) for _ in range(10)))
        for case, out in zip(cases, got, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outs, expected in zip(got, want, strict=True):
        assert len(outs) == 10
        assert all(same_bits(out, expected) for out in outs)


def test_what_does_not_fit_is_refused_with_its_shape() -> None:
    case = random_case([20, 9], [4, 1], 6, 2, 20, torch.float32, seed=4)
    blocks, tables, starts, counts = page(case, 8, 1)
    call = paged_attention
    with pytest.raises(ValueError, match=r"got q \[5, 6, 19\]"):
        call(case.q[..., 1:], blocks, tables, starts, counts, 1.0)
    with pytest.raises(ValueError, match="5 query heads cannot share 2 key heads"):
        call(case.q[:, 1:], blocks, tables, starts, counts, 1.0)
    with pytest.raises(ValueError, match="bfloat16"):
        call(case.q.bfloat16(), blocks, tables, starts, counts, 1.0)
    with pytest.raises(ValueError, match="contiguous"):
        call(case.q, blocks.transpose(2, 3), tables, starts, counts, 1.0)
    with pytest.raises(ValueError, match=r"counts \[4, 1\] do not add up to the 4 rows"):
        call(case.q[1:], blocks, tables, starts, counts, 1.0)
    with pytest.raises(ValueError, match=r"counts \[6, -1\]"):
        call(case.q, blocks, tables, starts, torch.tensor([6, -1], dtype=torch.int32), 1.0)
    with pytest.raises(
        ValueError, match=r"sequence 1 has positions 40 \.\. 40, its table holds 5 blocks of 8"
    ):
        call(case.q, blocks, tables, torch.tensor([16, 40], dtype=torch.int32), counts, 1.0)
    with pytest.raises(ValueError, match=r"got \[2, 5\], \[1\] and \[2\]"):
        call(case.q, blocks, tables, starts[:1], counts, 1.0)
    with pytest.raises(ValueError, match="int64 tables, got"):
        call(case.q, blocks, tables.float(), starts, counts, 1.0)
    with pytest.raises(ValueError, match="tables on meta"):
        call(case.q, blocks, tables.to("meta"), starts, counts, 1.0)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        call(case.q, blocks, tables, starts, counts, 1.0, 0)


def test_a_block_outside_the_pool() -> None:
    case = random_case([20], [1], 4, 2, 16, torch.float32, seed=4)
    blocks, tables, starts, counts = page(case, 8, 1)
    for wrong in (len(blocks), -1):
        tables[0, 1] = wrong
        with pytest.raises((IndexError, RuntimeError), match="out of range"):
            paged_attention(case.q, blocks, tables, starts, counts, 0.25)
