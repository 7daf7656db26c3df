"""One decoder layer: grouped-query attention over a paged cache, and a gated MLP."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from octavo.models.batch import Batch
from octavo.models.ops import Linear, Ops


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Self-attention of one layer.

    q_norm, k_norm  [D] weights where heads are normalised, else None
    window          a row at position p sees positions above p - window; None sees all
    """

    ops: Ops
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    head_dim: int
    norm_eps: float
    window: int | None

    def __call__(self, x: Tensor, angles: tuple[Tensor, Tensor], batch: Batch, blocks: Tensor) -> Tensor:
        """[T, E] to [T, E]. Writes the rows' keys and values to `blocks`, then reads from there.

        angles  cosine and sine [T, D/2] of the rows' positions
        blocks  [B, 2, P, K, D], this layer's
        """
        num_rows = x.shape[0]
        q = self.q(x).view(num_rows, -1, self.head_dim)
        k = self.k(x).view(num_rows, -1, self.head_dim)
        v = self.v(x).view(num_rows, -1, self.head_dim)
        if self.ops.head_norm is not None:
            q = self.ops.head_norm(q, self.q_norm, self.norm_eps)
            k = self.ops.head_norm(k, self.k_norm, self.norm_eps)
        q, k = self.ops.rotate(q, k, *angles)
        self.ops.write_kv(blocks, k, v, batch.slots)
        mixed = self.ops.paged_attention(
            q, blocks, batch.tables, batch.starts, batch.counts, self.head_dim**-0.5, self.window
        )
        return self.o(mixed.view(num_rows, -1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """down(silu(gate(x)) * up(x))."""

    ops: Ops
    gate: Linear
    up: Linear
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """[T, E] to [T, E]."""
        return self.down(self.ops.silu_mul(self.gate(x), self.up(x)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Attention and MLP, each with the weight [E] of the norm before it."""

    attention_norm: Tensor
    attention: Attention
    mlp_norm: Tensor
    mlp: Mlp
