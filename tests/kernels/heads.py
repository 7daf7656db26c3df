"""The oracle of `rotate_and_write`: one head at a time in float64, slots found by counting. No code of the package."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.kernels.numbers import F32, UNIT, assert_within, same_bits, seeded

EPS = 1e-5


@dataclass(frozen=True)
class Heads:
    """One product's rows [T, (H + 2 K) D], the rows' angles, where they go, and the norms' weights or None."""

    T: int
    H: int
    K: int
    D: int
    P: int
    rows: Tensor
    cos: Tensor
    sin: Tensor
    slots: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None

    def split(self, device: str = "cpu") -> tuple[Tensor, ...]:
        """Views of q, k and v on a device: rows have gaps between them."""
        whole = self.rows.to(device).view(self.T, self.H + 2 * self.K, self.D)
        return whole.split([self.H, self.K, self.K], dim=1)

    def blocks(self, num_blocks: int = 6) -> Tensor:
        """A pool of NaN."""
        return torch.full((num_blocks, 2, self.P, self.K, self.D), torch.nan, dtype=self.rows.dtype)


def random_heads(T: int, H: int, K: int, D: int, P: int, dtype: torch.dtype, *, norms: bool) -> Heads:
    angles = torch.arange(T)[:, None] * 7 * torch.tensor([10_000.0 ** (-2 * i / D) for i in range(D // 2)])
    slots = torch.randperm(5 * P, generator=torch.Generator().manual_seed(T))[:T] + P
    weights = [1 + seeded(D, seed=i, dtype=dtype) / 4 if norms else None for i in (2, 3)]
    rows = 3 * seeded(T, (H + 2 * K) * D, seed=1, dtype=dtype)
    return Heads(T, H, K, D, P, rows, angles.cos(), angles.sin(), slots, *weights)


def check(case: Heads, turned: Tensor, blocks: Tensor) -> None:
    """Queries and the pool after the call. A pair's error is that of the norm's two elements and of its turning."""
    unit, half = UNIT[case.rows.dtype], case.D // 2
    q, k, v = case.split()
    assert turned.dtype == case.rows.dtype
    assert turned.shape == q.shape
    for row in range(case.T):
        block, offset = divmod(int(case.slots[row]), case.P)
        for x, weight, got in ((q, case.q_norm, turned[row]), (k, case.k_norm, blocks[block, 0, offset])):
            heads = x[row].double()
            share = unit + 4 * F32
            if weight is not None:
                heads = heads / (heads.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
                share += (2 * unit + (half + 4) * F32) * (1 + 2 * unit)
            pairs = torch.complex(heads[:, :half], heads[:, half:])
            turn = torch.complex(case.cos[row].double(), case.sin[row].double())
            want = torch.cat(((pairs * turn).real, (pairs * turn).imag), dim=-1)
            assert_within(got, want, pairs.abs().repeat(1, 2) * share * (1 + unit))
        assert same_bits(blocks[block, 1, offset], v[row])
        blocks[block, :, offset] = torch.nan
    assert bool(blocks.isnan().all()), "a slot that was not named changed"
