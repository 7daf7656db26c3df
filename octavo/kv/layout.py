"""How the bytes of a block lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class DenseLayout:
    """Keys and values side by side as the model computes them, nothing packed.

    One block of one layer, [2, P, K, D]:

        | keys: P tokens x K heads x D | values: P tokens x K heads x D |
    """

    num_kv_heads: int
    head_dim: int
    block_tokens: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        for name in ("num_kv_heads", "head_dim", "block_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"DenseLayout: {name} must be at least 1, got {getattr(self, name)}")
        if not self.dtype.is_floating_point:
            raise ValueError(f"DenseLayout: dtype must be a floating type, got {self.dtype}")

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in one layer: K * (D + D) * element size."""
        return self.num_kv_heads * 2 * self.head_dim * self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in one layer."""
        return self.block_tokens * self.token_bytes

    def shape(self, num_blocks: int) -> tuple[int, int, int, int, int]:
        """Of one layer's tensor: [B, 2, P, K, D]."""
        return (num_blocks, 2, self.block_tokens, self.num_kv_heads, self.head_dim)
