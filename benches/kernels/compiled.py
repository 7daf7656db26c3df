"""The compiled kernels as implementations that kernel benches can set beside others: one op to a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from octavo.kernels.choose import Impl, fits_all
from octavo.kernels.native import DTYPES, module

WHOLE = ("int8", "int4")
"""Formats whose products round the activations too, to whole numbers up to 127 times a scale for each row."""


class Op:
    """A program that holds one operation."""

    def __init__(
        self, isa: str, dtype: torch.dtype, heads: int, kv_heads: int, width: int, block_tokens: int
    ) -> None:
        self.dtype, self.width, self.block_tokens = dtype, width, block_tokens
        threads = torch.get_num_threads()
        self.program = module().Program(
            isa, threads, name_of(dtype), heads, kv_heads, width, block_tokens, 1e-6
        )

    def run(self, tables: Tensor, starts: Tensor, counts: Tensor, arena: Tensor) -> None:
        """Rows get the arena's slots in order; positions turn nothing."""
        rows = int(counts.sum())
        still, slots = torch.zeros(rows, dtype=torch.int64), torch.arange(rows)
        slots %= arena.shape[1] * self.block_tokens
        angles = torch.ones(1, self.width // 2), torch.zeros(1, self.width // 2)
        self.program.run(still, still, slots, tables, starts, counts, *angles, arena)


@dataclass(frozen=True, slots=True)
class Product:
    """A packed weight [O, I] and the program that multiplies with it."""

    format: str
    weight: Any
    op: Op
    source: int
    to: int
    outs: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, matrix: Tensor, format: str, isa: str) -> Product:
        weight = module().Weight(isa, format, *matrix.shape)
        if not weight.fill(0, 0, matrix, torch.get_num_threads()):
            raise ValueError("a weight must be finite")
        op = Op(isa, matrix.dtype, 1, 1, 2, 16)
        source, to = op.program.buffer(matrix.shape[1]), op.program.buffer(matrix.shape[0])
        op.program.linear(weight, source, to)
        return cls(format, weight, op, source, to)

    def run(self, x: Tensor) -> Tensor:
        """The product, there until the next one of as many rows: a model's buffers are not new either."""
        if len(x) not in self.outs:
            self.outs[len(x)] = torch.empty(len(x), self.weight.num_out, dtype=x.dtype)
        out = self.outs[len(x)]
        self.op.program.write(self.source, x)
        rows = torch.tensor([len(x)], dtype=torch.int32)
        nothing = torch.zeros(1, 1, self.op.program.block_items, dtype=x.dtype)
        self.op.run(
            torch.zeros(1, len(x) // 16 + 1, dtype=torch.int32), torch.zeros_like(rows), rows, nothing
        )
        self.op.program.read(self.to, out)
        return out

    def matrix(self) -> Tensor:
        """The weight as products see it, float64 [O, I]."""
        out = torch.empty(self.weight.num_out, self.weight.num_in)
        self.weight.read(0, 0, out)
        return out.double()

    def rounding(self, x: Tensor) -> Tensor:
        """How far a format may carry a product [T, O] beyond the rounding of its sums.

        Half a step of each rounded activation; and where scaled codes and a minimum cancel, either may be four times
        the largest weight.
        """
        matrix, wide = self.matrix().abs(), x.double().abs()
        if self.format == "w4a16":
            off = (x.double() - x.bfloat16().double()).abs() @ matrix.t()
            return off + (x.shape[1] + 2) * 2.0**-24 * wide.sum(-1, keepdim=True) * 4 * matrix.amax(-1)
        half_step = wide.amax(-1, keepdim=True) / 254 * 1.001
        return half_step * (self.format in WHOLE) * matrix.sum(-1)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def linears(dtype: torch.dtype, isas: Sequence[str]) -> dict[str, Impl]:
    """Products with weights in the activations' own format and in whole numbers, by name; none where no kernel fits."""
    if name_of(dtype) not in DTYPES:
        return {}

    def made(isa: str, format: str) -> Impl:
        return Impl(
            "linear", format, lambda x, packed: packed.run(x), fits_all, lambda w: Product.of(w, format, isa)
        )

    return {
        f"{isa} {format}": made(isa, format) for isa in isas for format in (name_of(dtype), *WHOLE, "w4a16")
    }


def attentions(dtype: torch.dtype, isas: Sequence[str]) -> dict[str, Impl]:
    """Attention over blocks in panels, by name; none where no kernel fits."""
    if name_of(dtype) not in DTYPES:
        return {}
    return {isa: Impl("paged_attention", isa, _Attention(isa), fits_all) for isa in isas}


class _Attention:
    """Lays blocks out in panels when they are others than in the last call."""

    def __init__(self, isa: str) -> None:
        self._isa, self._blocks, self._heads = isa, torch.empty(0), 0

    def __call__(
        self, q: Tensor, blocks: Tensor, tables: Tensor, starts: Tensor, counts: Tensor, scale: float
    ) -> Tensor:
        rows, heads, width = q.shape
        if scale != width**-0.5:
            raise ValueError(f"compiled attention scales by {width**-0.5}, not by {scale}")
        if blocks is not self._blocks or heads != self._heads:
            self._blocks, self._heads, self._arena = blocks, heads, panels(self._isa, blocks)
            kv_heads = blocks.shape[3]
            self._op = Op(self._isa, q.dtype, heads, kv_heads, width, blocks.shape[2])
            self._source = self._op.program.buffer((heads + 2 * kv_heads) * width)
            self._to = self._op.program.buffer(heads * width)
            self._op.program.attention(self._source, 0, 0, self._to)
        wide = torch.empty(rows, (heads + 2 * blocks.shape[3]) * width, dtype=q.dtype)
        wide[:, : heads * width] = q.reshape(rows, -1)
        self._op.program.write(self._source, wide)
        self._op.run(tables, starts, counts, self._arena)
        out = torch.empty(rows, heads * width, dtype=q.dtype)
        self._op.program.read(self._to, out)
        return out.view(q.shape)


def panels(isa: str, blocks: Tensor) -> Tensor:
    """Blocks [B, 2, P, K, D] as an arena of one layer, by the kernel that writes keys and values."""
    num_blocks, _, tokens, kv_heads, width = blocks.shape
    op = Op(isa, blocks.dtype, kv_heads, kv_heads, width, tokens)
    source = op.program.buffer(3 * kv_heads * width)
    op.program.rope(source, 0, None, None)
    arena = torch.zeros(1, num_blocks, op.program.block_items, dtype=blocks.dtype)
    keys, values = blocks.transpose(1, 2).reshape(num_blocks * tokens, 2, -1).unbind(1)
    op.program.write(source, torch.cat((torch.zeros_like(keys), keys, values), 1))
    count = torch.tensor([num_blocks * tokens], dtype=torch.int32)
    op.run(torch.arange(num_blocks, dtype=torch.int32)[None], torch.zeros_like(count), count, arena)
    return arena
