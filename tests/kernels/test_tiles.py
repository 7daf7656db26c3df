"""The trial that decides which row counts may be mixed."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.tiles import ANCHORS, TILES, Ladder, is_aligned, probe_rows, prove

PROBES = probe_rows(3, 37, torch.float32, torch.device("cpu"))


def forward(rows: Tensor) -> Tensor:
    """Sums from the first column to the last."""
    total = torch.zeros(len(rows), 1)
    for column in rows.unbind(1):
        total += column[:, None]
    return total


def backward(rows: Tensor) -> Tensor:
    return forward(rows.flip(1))


def test_probes_show_another_order_of_summation() -> None:
    assert not torch.equal(forward(PROBES), backward(PROBES))


def test_a_product_that_never_changes_keeps_every_tile() -> None:
    assert prove(forward, PROBES).tiles == TILES


def test_row_counts_with_another_order_are_left_out() -> None:
    ladder = prove(lambda rows: (backward if len(rows) < 16 else forward)(rows), PROBES)
    assert ladder.tiles == tuple(tile for tile in TILES if tile >= 16)
    assert "4, 8 did not" in ladder.because


def test_an_order_that_depends_on_the_place_is_found() -> None:
    def edge(rows: Tensor) -> Tensor:  # as a library does when the tile is not a multiple of its micro-kernel
        full = len(rows) // 32 * 32
        return torch.cat((forward(rows[:full]), backward(rows[full:])))

    assert prove(edge, PROBES).tiles == (32, 64, 96, 128, 192, 256)


def test_neighbours_that_leak_are_found() -> None:
    def leaks(rows: Tensor) -> Tensor:
        out = forward(rows)
        out[1:] += (rows[1:, :1] != rows[:-1, :1]) * 1e-3
        return out

    assert prove(leaks, PROBES).tiles == (1,)


def test_without_any_steady_tile_rows_go_alone() -> None:
    def unsteady(rows: Tensor) -> Tensor:
        return torch.cat([(forward if i % 2 else backward)(row[None]) for i, row in enumerate(rows)])

    ladder = prove(unsteady, PROBES)
    assert ladder.tiles == (1,)
    assert str(ANCHORS) in ladder.because


def test_not_a_number_proves_nothing() -> None:
    assert prove(lambda rows: forward(rows) * torch.nan, PROBES).tiles == (1,)


def test_fit() -> None:
    ladder = Ladder((4, 16, 64), "")
    assert [ladder.fit(n) for n in (1, 4, 5, 16, 17, 64, 65, 1000)] == [4, 4, 16, 16, 64, 64, 64, 64]


def test_is_aligned() -> None:
    base = torch.zeros(64, 32)
    assert is_aligned(base)
    assert not is_aligned(base.flatten()[1:])
    assert not is_aligned(base[:, :16])
