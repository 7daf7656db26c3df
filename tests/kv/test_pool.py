from __future__ import annotations

import pytest
import torch

from octavo.core.step import Copy
from octavo.errors import ConfigError
from octavo.kernels.kv_store import write_kv
from octavo.kv.layout import DenseLayout
from octavo.kv.pool import KvPool

LAYOUT = DenseLayout(num_kv_heads=2, head_dim=5, block_tokens=3, dtype=torch.float32)


def marked(num_layers: int = 2, num_blocks: int = 4) -> KvPool:
    """Every slot holds its layer * 1000 + block * 10 + offset."""
    pool = KvPool(LAYOUT, num_layers, num_blocks)
    for layer in range(num_layers):
        for block in range(num_blocks):
            for offset in range(3):
                pool.layer(layer)[block, :, offset] = layer * 1000 + block * 10 + offset
    return pool


def test_one_arena_of_the_planned_size() -> None:
    pool = KvPool(LAYOUT, 3, 7)
    assert pool.nbytes == 3 * 7 * LAYOUT.block_bytes == 3 * 7 * 2 * 3 * 2 * 5 * 4
    assert [pool.layer(i).shape for i in range(3)] == [LAYOUT.shape(7)] * 3
    assert sum(pool.layer(i).nbytes for i in range(3)) == pool.nbytes
    assert pool.device == torch.device("cpu")
    assert all(pool.layer(i).eq(0).all() for i in range(3))


def test_a_layer_is_a_view_to_write() -> None:
    pool = KvPool(LAYOUT, 2, 4)
    write_kv(pool.layer(1), torch.ones(1, 2, 5), 2 * torch.ones(1, 2, 5), torch.tensor([7]))
    assert pool.layer(1)[2, 0, 1].eq(1).all()
    assert pool.layer(1)[2, 1, 1].eq(2).all()
    assert pool.layer(1).sum() == 30
    assert pool.layer(0).eq(0).all()


def test_copies_reach_every_layer_in_order_and_no_further_than_told() -> None:
    pool = marked()
    pool.copy([Copy(1, 2, 2), Copy(2, 3, 3)])
    for layer in range(2):
        base = layer * 1000
        got = [
            [int(pool.layer(layer)[block, 0, offset, 0, 0]) - base for offset in range(3)]
            for block in range(4)
        ]
        assert got == [[0, 1, 2], [10, 11, 12], [10, 11, 22], [10, 11, 22]]
        assert torch.equal(pool.layer(layer)[:, 0], pool.layer(layer)[:, 1])


def test_no_copies() -> None:
    pool = marked()
    before = pool.layer(1).clone()
    pool.copy([])
    assert torch.equal(pool.layer(1), before)


def test_a_copy_outside_the_pool() -> None:
    with pytest.raises(ValueError, match="there are 4 blocks"):
        marked().copy([Copy(0, 4, 1)])


def test_poison_fills_these_blocks_in_every_layer() -> None:
    pool = marked()
    clean = marked()
    pool.poison([0, 3])
    for layer in range(2):
        assert pool.layer(layer)[[0, 3]].isnan().all()
        assert torch.equal(pool.layer(layer)[1:3], clean.layer(layer)[1:3])
    pool.poison([])
    assert pool.layer(0)[1:3].isfinite().all()


def test_poison_outside_the_pool() -> None:
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        marked().poison([4])


@pytest.mark.parametrize(("num_layers", "num_blocks"), [(0, 1), (1, 0)])
def test_an_empty_pool_is_refused(num_layers: int, num_blocks: int) -> None:
    with pytest.raises(ValueError, match="at least 1 layer and 1 block"):
        KvPool(LAYOUT, num_layers, num_blocks)


@pytest.mark.parametrize("num_blocks", [2**42, 2**60])
def test_more_memory_than_there_is(num_blocks: int) -> None:
    with pytest.raises(ConfigError, match=rf"{num_blocks} blocks take .*iB, .*lower --num-kv-blocks"):
        KvPool(LAYOUT, 2, num_blocks)
