"""A model as a program of compiled kernels: weights in panels, the forward pass recorded once and replayed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from octavo.arch import Arch
from octavo.kernels.native import module
from octavo.kernels.sampling import Sampling
from octavo.kernels.sampling.native import NativeSampling
from octavo.kv.layout import Layout, PanelLayout
from octavo.kv.pool import KvPool
from octavo.models.batch import Batch
from octavo.models.ops import Decision
from octavo.models.rope import RopeTables

ANGLE_ROWS = 1024
"""Positions whose angles are computed at a time; always the same ones together, so that their bits are, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeLayer:
    """Packed weights of one layer. `qkv` is one weight, or three where head widths do not fill whole panels."""

    attention_norm: Tensor
    qkv: tuple[Any, ...]
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Any
    mlp_norm: Tensor
    gate_up: Any
    down: Any
    window: int | None

    def weights(self) -> Iterator[Any]:
        yield from (*self.qkv, self.o, self.gate_up, self.down)

    def norms(self) -> Iterator[Tensor]:
        norms = (self.attention_norm, self.mlp_norm, self.q_norm, self.k_norm)
        yield from (norm for norm in norms if norm is not None)


@dataclass(slots=True, kw_only=True)
class NativeModel:
    """A model on compiled kernels; see `octavo.models.model.Model`.

    isa        instruction set of the kernels
    embedding  packed [V, E]; the head itself where they are one
    head       packed [V, E]
    """

    arch: Arch
    dtype: torch.dtype
    fingerprint: bytes
    isa: str
    decisions: list[Decision]
    rope: RopeTables
    embedding: Any
    layers: tuple[NativeLayer, ...]
    final_norm: Tensor
    head: Any
    _programs: dict[tuple[int, int], Any] = field(default_factory=dict, repr=False)
    _angles: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def weight_bytes(self) -> int:
        packed = {id(weight): weight.nbytes for layer in self.layers for weight in layer.weights()}
        packed |= {id(weight): weight.nbytes for weight in (self.embedding, self.head)}
        norms = [norm for layer in self.layers for norm in layer.norms()] + [self.final_norm]
        return sum(packed.values()) + sum(norm.nbytes for norm in norms)

    def kv_layout(self, block_tokens: int) -> Layout:
        return PanelLayout(self.arch.num_kv_heads, self.arch.head_dim, block_tokens, self.dtype)

    def reserve(self, block_tokens: int, num_rows: int, num_positions: int) -> None:
        self.program(block_tokens).reserve(num_rows)
        self._cover(num_positions)

    def forward(self, batch: Batch, kv: KvPool) -> Tensor:
        program = self.program(kv.layout.block_tokens)
        cos, sin = self._cover(int(batch.positions.max()) + 1)
        program.run(
            batch.tokens,
            batch.positions,
            batch.slots,
            batch.tables,
            batch.starts,
            batch.counts,
            cos,
            sin,
            kv.arena,
        )
        hidden = torch.empty(len(batch.tokens), self.arch.hidden_size, dtype=self.dtype)
        program.hidden(hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        logits = torch.empty(len(hidden), self.arch.vocab_size, dtype=torch.float32)
        self._any_program().logits(hidden.contiguous(), logits)
        return logits

    @property
    def sampling(self) -> Sampling:
        return NativeSampling(self._any_program())

    def seconds(self) -> dict[str, float]:
        """Spent so far in each kind of operation of the program in use."""
        return dict(self._any_program().seconds)

    def program(self, block_tokens: int) -> Any:
        """The recorded forward pass for blocks of this size and the number of threads in force."""
        key = (block_tokens, torch.get_num_threads())
        if key not in self._programs:
            self._programs.clear()  # one at a time: each holds a workspace and threads
            self._programs[key] = self._record(*key)
        return self._programs[key]

    def _any_program(self) -> Any:
        return next(iter(self._programs.values())) if self._programs else self.program(1)

    def _record(self, block_tokens: int, num_threads: int) -> Any:
        arch = self.arch
        number = str(self.dtype).removeprefix("torch.")
        program = module().Program(
            self.isa,
            num_threads,
            number,
            arch.num_heads,
            arch.num_kv_heads,
            arch.head_dim,
            block_tokens,
            arch.norm_eps,
        )
        q_size, kv_size = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
        residual, normed = program.buffer(arch.hidden_size), program.buffer(arch.hidden_size)
        qkv, mixed, wide = (
            program.buffer(q_size + 2 * kv_size),
            program.buffer(q_size),
            program.buffer(arch.ffn_size),
        )
        program.embed(self.embedding, residual)
        for index, layer in enumerate(self.layers):
            program.norm(residual, layer.attention_norm, normed)
            column = 0
            for weight in layer.qkv:
                program.linear(weight, normed, qkv, "store", column)
                column += weight.num_out
            program.rope(qkv, index, layer.q_norm, layer.k_norm)
            program.attention(qkv, index, layer.window or 0, mixed)
            program.linear(layer.o, mixed, residual, "add")
            program.norm(residual, layer.mlp_norm, normed)
            program.linear(layer.gate_up, normed, wide, "gate")
            program.linear(layer.down, wide, residual, "add")
        program.head(residual, self.final_norm, self.head)
        return program

    def _cover(self, num_positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [at least num_positions, D / 2]."""
        have = 0 if self._angles is None else len(self._angles[0])
        if have < num_positions or self._angles is None:
            want = -(-max(num_positions, min(2 * have, self.arch.max_positions)) // ANGLE_ROWS) * ANGLE_ROWS
            more = [
                self.rope(torch.arange(first, first + ANGLE_ROWS)) for first in range(have, want, ANGLE_ROWS)
            ]
            known = [] if self._angles is None else [self._angles]
            cos, sin = (torch.cat(parts).contiguous() for parts in zip(*known, *more, strict=True))
            self._angles = cos, sin
        return self._angles
