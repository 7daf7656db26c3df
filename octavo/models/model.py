"""A decoder: embedding, layers, final norm, output head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.arch import Arch
from octavo.kv.pool import KvPool
from octavo.models.batch import Batch
from octavo.models.layers import Layer
from octavo.models.ops import Decision, Linear, Ops
from octavo.models.rope import RopeTables


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A loaded model. Every row's result depends on that row and its sequence alone.

    fingerprint  SHA-256 of weights, dtype, kernels and the config fields that change keys and values
    embedding    [V, E]
    head         E to V; shares the embedding's memory where the checkpoint ties them
    """

    arch: Arch
    dtype: torch.dtype
    device: torch.device
    fingerprint: bytes
    ops: Ops
    rope: RopeTables
    embedding: Tensor
    layers: tuple[Layer, ...]
    final_norm: Tensor
    head: Linear

    @property
    def decisions(self) -> list[Decision]:
        """(op, implementation, reasons against those passed over) for each op."""
        return self.ops.decisions

    @torch.no_grad()
    def forward(self, batch: Batch, kv: KvPool) -> Tensor:
        """Final hidden states [T, E], after the last norm. Keys and values are written to `kv`."""
        ops, eps = self.ops, self.arch.norm_eps
        angles = self.rope(batch.positions)
        residual = ops.embed(batch.tokens, self.embedding)
        x: Tensor = ops.rms_norm(residual, self.layers[0].attention_norm, eps)
        next_norms = [layer.attention_norm for layer in self.layers[1:]] + [self.final_norm]
        for index, (layer, next_norm) in enumerate(zip(self.layers, next_norms, strict=True)):
            x = layer.attention(x, angles, batch, kv.layer(index))
            x, residual = ops.add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = layer.mlp(x)
            x, residual = ops.add_rms_norm(x, residual, next_norm, eps)
        return x

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """[N, V] float32 from rows [N, E] of what `forward` returned."""
        return self.head(hidden).to(torch.float32)
