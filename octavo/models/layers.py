"""One decoder layer: grouped-query attention over a paged cache, and a gated MLP."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from octavo.kernels.kv_store.fp8 import Fp8Blocks
from octavo.models.batch import Batch
from octavo.models.ops import Linear, Ops


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Self-attention of one layer.

    qkv             queries, keys and values in one product, beneath one another
    q_norm, k_norm  [D] weights where heads are normalised, else None
    window          a row at position p sees positions above p - window; None sees all
    """

    ops: Ops
    qkv: Linear
    o: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    window: int | None

    def __call__(
        self, x: Tensor, angles: tuple[Tensor, Tensor], batch: Batch, blocks: Tensor | Fp8Blocks
    ) -> Tensor:
        """[T, E] to [T, E]. Writes the rows' keys and values to `blocks`, then reads from there.

        angles  cosine and sine [T, D/2] of the rows' positions
        blocks  [B, 2, P, K, D], this layer's; or in e4m3
        """
        num_rows = x.shape[0]
        heads = self.qkv(x).view(num_rows, -1, self.head_dim)
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        q = self.ops.rotate_and_write(
            q, k, v, *angles, blocks, batch.slots, self.q_norm, self.k_norm, self.norm_eps
        )
        mixed = self.ops.paged_attention(
            q,
            blocks,
            batch.tables,
            batch.starts,
            batch.counts,
            self.head_dim**-0.5,
            self.window,
            batch.only_decodes,
            batch.num_positions,
        )
        return self.o(mixed.view(num_rows, -1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """down(silu(gate(x)) * up(x)); gate and up in one product, beneath one another."""

    ops: Ops
    gate_up: Linear
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """[T, E] to [T, E]."""
        gate, up = self.gate_up(x).chunk(2, dim=1)
        return self.down(self.ops.silu_mul(gate, up))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Attention and MLP, each with the weight [E] of the norm before it."""

    attention_norm: Tensor
    attention: Attention
    mlp_norm: Tensor
    mlp: Mlp
