"""Small programs of compiled kernels for the tests. No kernel is computed here a second time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

cpu: Any = pytest.importorskip("octavo._cpu", reason="the compiled module is not built")

ISAS: tuple[str, ...] = (*cpu.instruction_sets(), "emulated")
ON_TILES = ("amx", "emulated")
ON_PAIRS = ("avx512_bf16",)
THREADS = (1, 2)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def packed(isa: str, format: str, rows: Tensor, *, bias: Tensor | None = None, group: int = 64) -> Any:
    """A weight [O, I] of one part."""
    made = cpu.Weight(isa, format, *rows.shape, 1, bias is not None, group)
    assert made.fill(0, 0, rows)
    if bias is not None:
        made.fill_bias(0, 0, bias)
    return made


def gated(
    isa: str, format: str, gate: Tensor, up: Tensor, *, biases: tuple[Tensor, Tensor] | None = None
) -> Any:
    made = cpu.Weight(isa, format, 2 * len(gate), gate.shape[1], 2, biases is not None)
    for part, rows in enumerate((gate, up)):
        assert made.fill(part, 0, rows)
        if biases is not None:
            made.fill_bias(part, 0, biases[part])
    return made


def seen(weight: Any, num_out: int, part: int = 0) -> Tensor:
    """What products see of a weight, float32."""
    out = torch.full((num_out, weight.num_in), torch.nan)
    weight.read(part, 0, out)
    return out


def rows_program(isa: str, num_threads: int, dtype: torch.dtype, eps: float = 1e-6) -> Any:
    """For operations that need no cache."""
    return cpu.Program(isa, num_threads, name_of(dtype), 1, 1, 2, 16, eps)


def run_rows(program: Any, num_rows: int, dtype: torch.dtype, tokens: Tensor | None = None) -> None:
    """One sequence of `num_rows` rows; its blocks are all the same, for nothing reads or writes them."""
    none = torch.zeros(num_rows, dtype=torch.int64)
    program.run(
        none if tokens is None else tokens, none, none, torch.zeros(1, num_rows // 16 + 1, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32), torch.tensor([num_rows], dtype=torch.int32),
        torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1, 1, program.block_items, dtype=dtype),
    )  # fmt: skip


def multiply(
    isa: str,
    weight: Any,
    x: Tensor,
    *,
    num_threads: int = 1,
    finish: str = "store",
    onto: Tensor | None = None,
    width: int | None = None,
    column: int = 0,
) -> Tensor:
    """Rows [T, I] times a weight; `onto` is what the output buffer holds before, NaN where it is not given."""
    num_out = weight.num_out // 2 if finish == "gate" else weight.num_out
    program = rows_program(isa, num_threads, x.dtype)
    source, to = program.buffer(x.shape[1]), program.buffer(width or num_out)
    program.linear(weight, source, to, finish, column)
    before = torch.full((len(x), width or num_out), torch.nan, dtype=x.dtype) if onto is None else onto
    program.write(source, x)
    program.write(to, before)
    run_rows(program, len(x), x.dtype)
    out = torch.empty_like(before)
    program.read(to, out)
    return out
