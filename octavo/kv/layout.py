"""How the bytes of a block lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.step import Copy
from octavo.kernels.kv_store import copy_blocks
from octavo.kernels.kv_store.fp8 import Fp8Blocks, block_bytes


@dataclass(frozen=True, slots=True)
class Layout(ABC):
    """What all layouts have in common: sizes, and how a pool asks for bytes, shapes and copies."""

    num_kv_heads: int
    head_dim: int
    block_tokens: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        kind = type(self).__name__
        for name in ("num_kv_heads", "head_dim", "block_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{kind}: {name} must be at least 1, got {getattr(self, name)}")
        self._check_dtype()

    def _check_dtype(self) -> None:
        if not self.dtype.is_floating_point:
            raise ValueError(f"{type(self).__name__}: dtype must be a floating type, got {self.dtype}")

    @property
    def undefined(self) -> float | int:
        """An element that makes numbers undefined wherever it stands."""
        return torch.nan

    @property
    @abstractmethod
    def block_bytes(self) -> int:
        """Bytes of one block in one layer."""

    @abstractmethod
    def shape(self, num_blocks: int) -> tuple[int, ...]:
        """Of one layer's tensor, [B, ...]."""

    @abstractmethod
    def copy(self, arena: Tensor, copies: Sequence[Copy]) -> None:
        """Carry out copies in order, in all layers of [L, B, ...]."""


class DenseLayout(Layout):
    """Keys and values side by side as the model computes them, nothing packed.

    One block of one layer, [2, P, K, D]:

        | keys: P tokens x K heads x D | values: P tokens x K heads x D |
    """

    __slots__ = ()

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in one layer: K * (D + D) * element size."""
        return self.num_kv_heads * 2 * self.head_dim * self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        return self.block_tokens * self.token_bytes

    def shape(self, num_blocks: int) -> tuple[int, ...]:
        return (num_blocks, 2, self.block_tokens, self.num_kv_heads, self.head_dim)

    def copy(self, arena: Tensor, copies: Sequence[Copy]) -> None:
        """Carry out copies in order, in all layers of [L, B, 2, P, K, D]: the tokens named, nothing else."""
        copy_blocks(
            arena,
            [copy.source for copy in copies],
            [copy.target for copy in copies],
            [copy.num_tokens for copy in copies],
        )


PANEL = 16
"""Outputs that the compiled kernels keep side by side; see csrc/cpu/kernels.h."""


class PanelLayout(Layout):
    """Keys and values as the compiled kernels read them: like the weights of a product, in panels.

    One block of one layer:

        | keys of head 0 | keys of head 1 .. | values of head 0 | values of head 1 .. |

    keys    tokens side by side, 16 or P where P is less, the head's width downwards
    values  the head's width side by side, 16 at a time, tokens downwards

    Widths are padded to 16, and in bfloat16, whose lines hold pairs, tokens to 2. `csrc/cpu/kernels.h` (KvLayout)
    says where each element lies.
    """

    __slots__ = ()

    @property
    def block_items(self) -> int:
        """Elements of one block in one layer."""
        pair = 2 if self.dtype.itemsize == 2 else 1
        tokens = -(-self.block_tokens // pair) * pair
        return 2 * self.num_kv_heads * tokens * (-(-self.head_dim // PANEL) * PANEL)

    @property
    def block_bytes(self) -> int:
        return self.block_items * self.dtype.itemsize

    def shape(self, num_blocks: int) -> tuple[int, ...]:
        return (num_blocks, self.block_items)

    def copy(self, arena: Tensor, copies: Sequence[Copy]) -> None:
        """Carry out copies in order, in all layers of [L, B, items].

        Whole blocks: what lies past the tokens named is nobody's in either block until it is written.
        """
        _copy_whole(arena, copies)


class Fp8Layout(Layout):
    """Keys and values in e4m3 with a power of two for each token's row of a head, as bytes; see
    `octavo.kernels.kv_store.fp8`.

    dtype  torch.uint8
    """

    __slots__ = ()

    def _check_dtype(self) -> None:
        if self.dtype != torch.uint8:
            raise ValueError(f"Fp8Layout: dtype must be torch.uint8, got {self.dtype}")

    @property
    def undefined(self) -> int:
        """NaN as a code and as an exponent."""
        return 0xFF

    @property
    def block_bytes(self) -> int:
        return block_bytes(self.block_tokens, self.num_kv_heads, self.head_dim)

    def shape(self, num_blocks: int) -> tuple[int, ...]:
        return (num_blocks, self.block_bytes)

    def blocks(self, memory: Tensor) -> Fp8Blocks:
        """One layer's tensor [B, bytes] as kernels take it."""
        return Fp8Blocks(
            memory=memory,
            block_tokens=self.block_tokens,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
        )

    def copy(self, arena: Tensor, copies: Sequence[Copy]) -> None:
        """Carry out copies in order, in all layers of [L, B, bytes]: whole blocks, as `PanelLayout` does."""
        _copy_whole(arena, copies)


def _copy_whole(arena: Tensor, copies: Sequence[Copy]) -> None:
    for copy in copies:
        if copy.source != copy.target:
            arena[:, copy.target].copy_(arena[:, copy.source])
