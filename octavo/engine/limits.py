"""This machine's own limits, measured: how fast it reads memory, and how fast it multiplies matrices.

A share of a limit says more than a rate alone: decoding cannot outrun reading the weights once per token, and
a prompt cannot outrun the matrix units.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from octavo.engine.cpu import Cpu, read_cpu
from octavo.engine.machine import read_machine
from octavo.errors import ConfigError
from octavo.units import GIB, MIB

SIDES = (512, 1024, 2048, 4096)
_LONG_ENOUGH_S = 0.05
"""A product that takes this long has left start-up costs behind; larger ones would tell nothing new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineLimits:
    """What this machine reached at its best in short trials with `num_threads` threads.

    num_cores         cores this process may use
    read_bytes_per_s  summing an array far larger than the caches
    *_per_s           square matrix products; a multiply-add counts as two operations
    int8_op_per_s     int8 in, int32 out; None where the library has no such product, `notes` say why
    """

    cpu: Cpu
    num_cores: int
    num_threads: int
    total_memory_bytes: int
    read_bytes_per_s: float
    fp32_flop_per_s: float
    bf16_flop_per_s: float
    int8_op_per_s: float | None
    notes: tuple[str, ...] = ()

    def flop_per_s(self, format: str) -> float | None:
        """Best matrix rate for weights of a format; None for formats that were not measured.

        Weights may be widened and multiplied at a higher precision, which is faster where a processor has no matrix
        units: "bfloat16" and "w4a16" take the better of bfloat16 and float32, "int8" and "int4" of these and
        int8.
        """
        fp32, bf16 = self.fp32_flop_per_s, max(self.bf16_flop_per_s, self.fp32_flop_per_s)
        int8 = max(self.int8_op_per_s or 0.0, bf16)
        return {"float32": fp32, "bfloat16": bf16, "w4a16": bf16, "int8": int8, "int4": int8}.get(format)


def measure_machine(
    num_threads: int | None = None, *, array_bytes: int | None = None, sides: Sequence[int] = SIDES
) -> MachineLimits:
    """Measure the limits of the CPU; takes a few seconds and disturbs whatever else runs.

    num_threads  None takes the cores this process may use; torch's setting is put back afterwards
    array_bytes  what the read trial reads; None takes 16 times the last cache, between 256 MiB and 1 GiB, and
                 at most a quarter of the free memory
    sides        of the square matrices multiplied, ascending

    Raises ConfigError for fewer than one thread.
    """
    machine, cpu = read_machine(), read_cpu()
    threads = machine.num_cores if num_threads is None else num_threads
    if threads < 1:
        raise ConfigError(f"num_threads must be at least 1, got {num_threads}")
    if array_bytes is None:
        wanted = min(max(16 * cpu.last_level_bytes, 256 * MIB), GIB)
        array_bytes = max(min(wanted, machine.available_bytes // 4), MIB)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        read = _read_rate(array_bytes)
        fp32, bf16 = _matrix_rate(torch.float32, sides), _matrix_rate(torch.bfloat16, sides)
        int8, notes = _int8_rate(sides)
    finally:
        torch.set_num_threads(before)
    return MachineLimits(
        cpu=cpu,
        num_cores=machine.num_cores,
        num_threads=threads,
        total_memory_bytes=machine.total_bytes,
        read_bytes_per_s=read,
        fp32_flop_per_s=fp32,
        bf16_flop_per_s=bf16,
        int8_op_per_s=int8,
        notes=notes,
    )


def _read_rate(array_bytes: int) -> float:
    """Bytes per second of the best of several sums over one array."""
    values = torch.ones(array_bytes // 4, dtype=torch.float32)
    return values.nbytes / _best_s(values.sum, num_runs=10)


def _matrix_rate(dtype: torch.dtype, sides: Sequence[int]) -> float:
    def operands(side: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(side)
        return (
            torch.randn(side, side, generator=generator).to(dtype),
            torch.randn(side, side, generator=generator).to(dtype),
        )

    return _growing(operands, torch.mm, sides)


def _int8_rate(sides: Sequence[int]) -> tuple[float | None, tuple[str, ...]]:
    def operands(side: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(side)
        left, right = torch.randint(-127, 128, (2, side, side), dtype=torch.int8, generator=generator)
        return left, right

    try:
        return _growing(operands, torch._int_mm, sides), ()
    except RuntimeError as error:
        return None, (f"int8 products were not measured: {str(error).splitlines()[0]}",)


def _growing(
    operands: Callable[[int], tuple[Tensor, Tensor]],
    product: Callable[[Tensor, Tensor], Tensor],
    sides: Sequence[int],
) -> float:
    """Best operations per second over growing squares, until one product takes long enough."""
    best = 0.0
    for side in sides:
        left, right = operands(side)
        seconds = _best_s(partial(product, left, right), num_runs=5)
        best = max(best, 2 * side**3 / seconds)
        if seconds > _LONG_ENOUGH_S:
            break
    return best


def _best_s(work: Callable[[], object], num_runs: int) -> float:
    """Shortest of several runs after one that is not counted."""
    work()
    shortest = float("inf")
    for _ in range(num_runs):
        started_s = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - started_s)
    return shortest
