"""top-k, top-p and min-p, against a plain reading of their definitions in float64."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from octavo.kernels.sampling.truncate import highest, nucleus, select

LOGITS = st.lists(
    st.floats(-20, 20, width=32) | st.sampled_from([0.0, 1.0, -math.inf]), min_size=1, max_size=30
).filter(lambda row: max(row) > -math.inf)


def by_definition(row, top_k, top_p, min_p):
    """The set of ids left, and how near any decision was to going the other way."""
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    if top_k > 0:
        order = order[:top_k]
    nearest = math.inf
    if top_p < 1:
        weights = [math.exp(row[i] - row[order[0]]) for i in order]
        total, before, kept = math.fsum(weights), 0.0, []
        for i, weight in zip(order, weights, strict=True):
            if kept:
                nearest = min(nearest, abs(before / total - top_p))
            if kept and before / total >= top_p:
                break
            kept.append(i)
            before += weight
        order = kept
    if min_p > 0:
        ratios = {i: math.exp(row[i] - row[order[0]]) for i in order}
        nearest = min(
            nearest, *(abs(ratio - min_p) for i, ratio in ratios.items() if i != order[0]), math.inf
        )
        order = [i for i in order if ratios[i] >= min_p]
    return {i for i in order if row[i] > -math.inf}, nearest


@settings(max_examples=500, deadline=None)
@given(
    LOGITS,
    st.sampled_from([-1, 0, 1, 2, 3, 7, 29, 30, 1000]),
    st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.25, 0.01, 1e-9]),
    st.sampled_from([0.0, 1e-6, 0.05, 0.5, 1.0]),
)
def test_what_is_left_is_what_the_definitions_say(row, top_k, top_p, min_p):
    want, nearest = by_definition(row, top_k, top_p, min_p)
    assume(nearest > 1e-12)  # float64 sums in another order may fall on the other side
    tensor = torch.tensor(row, dtype=torch.float32)
    ids, values = select(tensor, top_k, top_p, min_p)
    assert set(ids.tolist()) == want
    assert len(ids) == len(want)
    assert torch.equal(values, tensor[ids])


@settings(max_examples=200, deadline=None)
@given(LOGITS, st.integers(1, 30))
def test_highest_orders_by_value_and_then_by_id(row, k):
    k = min(k, len(row))
    ids, values = highest(torch.tensor(row, dtype=torch.float32), k)
    want = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
    assert ids.tolist() == want
    assert values.tolist() == [row[i] for i in want]


def test_ties_across_the_edge_go_to_the_lower_ids():
    row = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 1.0])
    assert highest(row, 4)[0].tolist() == [1, 3, 0, 2]
    assert select(row, 3, 1.0, 0.0)[0].tolist() == [1, 3, 0]


def test_the_token_that_crosses_top_p_is_kept():
    row = torch.tensor([0.5, 0.3, 0.2]).log()
    kept = {p: nucleus(row, p, 3)[0].tolist() for p in (0.1, 0.49, 0.51, 0.79, 0.81, 0.99)}
    assert kept == {0.1: [0], 0.49: [0], 0.51: [0, 1], 0.79: [0, 1], 0.81: [0, 1, 2], 0.99: [0, 1, 2]}


def test_top_p_is_relative_to_what_top_k_left():
    row = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert select(row, 0, 0.5, 0.0)[0].tolist() == [0, 1]
    assert select(row, 2, 0.5, 0.0)[0].tolist() == [0]  # 0.4 of 0.7 is more than half


@pytest.mark.parametrize("size", [511, 512, 513, 8192, 8193, 50_000])
@pytest.mark.parametrize("flatness", [0.0, 0.01, 3.0])
def test_a_row_sorted_in_parts_gives_what_sorting_it_whole_gives(size, flatness):
    row = torch.randn(size, generator=torch.Generator().manual_seed(size)) * flatness
    probabilities, order = row.double().softmax(-1).sort(descending=True, stable=True)
    for p in (0.02, 0.5, 0.97):
        count = 1 + int((probabilities.cumsum(-1)[:-1] < p).sum())
        # The sums here and there may differ in their last bits, so the count may differ by one at the edge.
        got = nucleus(row, p, size)[0].tolist()
        assert got == order[: len(got)].tolist()
        assert abs(len(got) - count) <= (1 if flatness == 0.0 else 0)


def test_a_row_of_nothing_but_minus_infinity_leaves_nothing():
    row = torch.full((5,), -math.inf)
    assert select(row, 0, 1.0, 0.0)[0].numel() == 0
