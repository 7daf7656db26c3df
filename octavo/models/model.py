"""What a loaded model offers, and the one that runs op by op: embedding, layers, final norm, output head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo.arch import Arch
from octavo.kernels.linear import Codes
from octavo.kernels.sampling import TORCH, Sampling
from octavo.kv.layout import DenseLayout, Fp8Layout, Layout
from octavo.kv.pool import KvPool
from octavo.models.batch import Batch
from octavo.models.layers import Layer
from octavo.models.ops import Decision, Linear, Ops
from octavo.models.rope import RopeTables


class Model(Protocol):
    """A loaded model. Every row's result depends on that row and its sequence alone.

    fingerprint  SHA-256 of weights, dtype, kernels and the config fields that change keys and values
    decisions    (op, implementation, reasons against those passed over) for each op
    weight_bytes what the weights take, packed
    """

    @property
    def arch(self) -> Arch: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def fingerprint(self) -> bytes: ...
    @property
    def decisions(self) -> list[Decision]: ...
    @property
    def weight_bytes(self) -> int: ...

    def kv_layout(self, block_tokens: int) -> Layout:
        """How the blocks of a pool for this model lie."""

    def reserve(self, block_tokens: int, num_rows: int, num_positions: int) -> None:
        """Take now what steps of up to so many rows, at positions below `num_positions`, keep for themselves."""

    def forward(self, batch: Batch, kv: KvPool) -> Tensor:
        """Final hidden states [T, E], after the last norm. Keys and values are written to `kv`."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, V] float32 from rows [N, E] of what `forward` returned."""

    @property
    def sampling(self) -> Sampling:
        """From rows of logits to tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchModel:
    """A model whose ops are called one by one; see `Model`.

    embedding    [V, E]; codes where weights are rounded and it is the head, too
    has_fp8_kv   keys and values lie in e4m3
    head         E to V; shares the embedding's memory where the checkpoint ties them
    """

    arch: Arch
    dtype: torch.dtype
    device: torch.device
    fingerprint: bytes
    weight_bytes: int
    ops: Ops
    rope: RopeTables
    embedding: Tensor | Codes
    layers: tuple[Layer, ...]
    final_norm: Tensor
    head: Linear
    has_fp8_kv: bool = False

    @property
    def decisions(self) -> list[Decision]:
        return self.ops.decisions

    def kv_layout(self, block_tokens: int) -> Layout:
        heads = (self.arch.num_kv_heads, self.arch.head_dim, block_tokens)
        return Fp8Layout(*heads, torch.uint8) if self.has_fp8_kv else DenseLayout(*heads, self.dtype)

    def reserve(self, block_tokens: int, num_rows: int, num_positions: int) -> None:
        """Tensors come and go with each step: nothing is kept."""

    @torch.no_grad()
    def forward(self, batch: Batch, kv: KvPool) -> Tensor:
        ops, eps = self.ops, self.arch.norm_eps
        angles = self.rope(batch.positions)
        if isinstance(self.embedding, Codes):
            residual = ops.embed_codes(batch.tokens, self.embedding)
        else:
            residual = ops.embed(batch.tokens, self.embedding)
        x: Tensor = ops.rms_norm(residual, self.layers[0].attention_norm, eps)
        next_norms = [layer.attention_norm for layer in self.layers[1:]] + [self.final_norm]
        for index, (layer, next_norm) in enumerate(zip(self.layers, next_norms, strict=True)):
            memory = kv.layer(index)
            blocks = kv.layout.blocks(memory) if isinstance(kv.layout, Fp8Layout) else memory
            x = layer.attention(x, angles, batch, blocks)
            x, residual = ops.add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = layer.mlp(x)
            x, residual = ops.add_rms_norm(x, residual, next_norm, eps)
        return x

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden).to(torch.float32)

    @property
    def sampling(self) -> Sampling:
        return TORCH
