from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.kernels.kv_store import copy_blocks, write_kv
from tests.kernels.numbers import DTYPES, same_bits, seeded

B, P, K, D = 5, 3, 2, 7


def fresh(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((B, 2, P, K, D), torch.nan, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_land_in_their_slots_and_nowhere_else(dtype: torch.dtype) -> None:
    blocks = fresh(dtype)
    slots = [0, 14, 7, 3]
    k, v = seeded(4, K, D, seed=1, dtype=dtype), seeded(4, K, D, seed=2, dtype=dtype)
    write_kv(blocks, k, v, torch.tensor(slots))
    for block in range(B):
        for offset in range(P):
            slot = block * P + offset
            if slot in slots:
                assert same_bits(blocks[block, 0, offset], k[slots.index(slot)])
                assert same_bits(blocks[block, 1, offset], v[slots.index(slot)])
            else:
                assert blocks[block, :, offset].isnan().all()


def test_views_of_a_fused_projection_are_taken() -> None:
    fused = seeded(4, 3 * K * D, seed=1)
    k, v = fused[:, K * D : 2 * K * D].view(4, K, D), fused[:, 2 * K * D :].view(4, K, D)
    blocks, dense = fresh(), fresh()
    slots = torch.tensor([2, 1, 13, 6])
    write_kv(blocks, k, v, slots)
    write_kv(dense, k.contiguous(), v.contiguous(), slots)
    assert same_bits(blocks, dense)


def test_no_rows() -> None:
    blocks = fresh()
    write_kv(blocks, torch.empty(0, K, D), torch.empty(0, K, D), torch.empty(0, dtype=torch.int64))
    assert blocks.isnan().all()


@pytest.mark.parametrize("slot", [-1, -8, B * P, B * P + 7])
def test_a_slot_outside_the_pool(slot: int) -> None:
    with pytest.raises((IndexError, RuntimeError), match=r"out of range|out of bounds|should be"):
        write_kv(fresh(), torch.ones(1, K, D), torch.ones(1, K, D), torch.tensor([slot]))


def test_what_does_not_fit_is_refused_with_its_shape() -> None:
    ones, slots = torch.ones(2, K, D), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"got \[2, 2, 7\] and \[1, 2, 7\]"):
        write_kv(fresh(), ones, ones[:1], slots)
    with pytest.raises(ValueError, match="int32"):
        write_kv(fresh(), ones, ones, slots.int())
    with pytest.raises(ValueError, match=r"blocks are torch\.bfloat16, k is torch\.float32"):
        write_kv(fresh(torch.bfloat16), ones, ones, slots)
    with pytest.raises(ValueError, match="contiguous"):
        write_kv(fresh().transpose(0, 2), ones, ones, slots)
    with pytest.raises(ValueError, match=r"\[5, 2, 3, 2\]"):
        write_kv(fresh()[..., 0], ones, ones, slots)


block_ids = st.integers(0, B - 1)
copies = st.lists(st.tuples(block_ids, block_ids, st.integers(0, P)), max_size=6)


@given(copies=copies, layers=st.sampled_from([None, 3]))
@settings(max_examples=60, deadline=None)
def test_copies_equal_a_slot_by_slot_model(copies: list[tuple[int, int, int]], layers: int | None) -> None:
    blocks = torch.arange((layers or 1) * B * 2 * P * K * D, dtype=torch.float32)
    blocks = blocks.view(*(() if layers is None else (layers,)), B, 2, P, K, D)
    model = {
        (layer, b, side, offset): blocks.view(-1, B, 2, P, K, D)[layer, b, side, offset].clone()
        for layer in range(layers or 1)
        for b in range(B)
        for side in (0, 1)
        for offset in range(P)
    }
    for source, target, count in copies:
        for layer in range(layers or 1):
            for side in (0, 1):
                for offset in range(count):
                    model[layer, target, side, offset] = model[layer, source, side, offset]
    copy_blocks(blocks, *([list(column) for column in zip(*copies, strict=True)] or [[], [], []]))
    for (layer, b, side, offset), want in model.items():
        assert torch.equal(blocks.view(-1, B, 2, P, K, D)[layer, b, side, offset], want)


@pytest.mark.parametrize(("source", "target", "count"), [(-1, 0, 1), (0, B, 1), (0, 1, P + 1), (0, 1, -1)])
def test_impossible_copies_are_refused_before_anything_is_written(
    source: int, target: int, count: int
) -> None:
    blocks = torch.zeros(B, 2, P, K, D)
    blocks[1] = 1
    with pytest.raises(ValueError, match=f"cannot copy {count} tokens from block {source} to block {target}"):
        copy_blocks(blocks, [1, source], [2, target], [1, count])
    assert blocks[2].eq(0).all()


def test_lists_of_unequal_length() -> None:
    with pytest.raises(ValueError, match="1 sources, 2 targets and 1 token counts"):
        copy_blocks(fresh(), [0], [1, 2], [1])
    with pytest.raises(ValueError, match=r"\[5, 2, 3, 2\]"):
        copy_blocks(fresh()[..., 0], [0], [1], [1])
