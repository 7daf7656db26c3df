"""The products of a layer and of the head alone: ours, and the library's, whose bits depend on the number of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benches.device.limits import best_s
from benches.harness import Figures, GateFailed, Subject
from octavo.arch import Arch
from octavo.exec.graphs import Capture
from octavo.kernels.choose import Impl, Need
from octavo.kernels.linear import IMPLS
from octavo.units import format_bytes

PASSES = 4
"""Through all products in one timed run, recorded as one graph: launching is not what is measured."""
F32_UNIT, UNITS = 2.0**-24, {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SAMPLE = 64
"""Rows and outputs of a product that are compared with float64."""


def shapes(arch: Arch) -> list[tuple[int, int]]:
    """(outputs, inputs) of a layer's products, as they are stacked, and of the head."""
    q_size, kv_size = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    hidden = arch.hidden_size
    return [
        (q_size + 2 * kv_size, hidden),
        (hidden, q_size),
        (2 * arch.ffn_size, hidden),
        (hidden, arch.ffn_size),
        (arch.vocab_size, hidden),
    ]


class Products:
    """Weights of one layer and of the head, packed for every implementation that fits the device.

    flop_per_s, copy_bytes_per_s  of the device: a product can be no faster than both allow
    capture  records work; see `octavo.exec.graphs`
    """

    def __init__(
        self,
        arch: Arch,
        device: torch.device,
        *,
        flop_per_s: float,
        copy_bytes_per_s: float,
        capture: Capture,
    ) -> None:
        dtype = torch.bfloat16
        self._device, self._capture = device, capture
        self._flop_per_s, self._copy_bytes_per_s = flop_per_s, copy_bytes_per_s
        need = Need(device=device.type, dtype=dtype, batch_invariant=False)
        fitting = [impl for impl in IMPLS if impl.refuses(need) is None]
        self._impls = [impl for impl in fitting if impl.name != "reference"] or fitting
        draw = torch.Generator(device).manual_seed(0)
        self._weights = [
            (torch.randn(out, wide, generator=draw, device=device) * wide**-0.5).to(dtype)
            for out, wide in shapes(arch)
        ]
        self._draw = draw

    def subjects(self, num_rows: int) -> dict[str, Subject]:
        """The first is ours. The head takes the rows that draw: all of up to 512."""
        rows = [self._rows(weight, num_rows) for weight in self._weights]
        ours_first = sorted(self._impls, key=lambda impl: not impl.is_batch_invariant)
        return {impl.name: self._subject(impl, rows) for impl in ours_first}

    def gate(self, num_rows: int) -> str:
        """Within the contract's budget of float64, on a sample of each product. Raises GateFailed."""
        for weight in self._weights:
            x = self._rows(weight, num_rows)
            for impl in self._impls:
                got = impl.run(x, _packed(impl, weight))[:SAMPLE, :SAMPLE]
                wide, matrix = x[:SAMPLE].double(), weight[:SAMPLE].double().t()
                want, mass = wide @ matrix, wide.abs() @ matrix.abs()
                bound = (weight.shape[1] + 2) * F32_UNIT * mass + UNITS[weight.dtype] * want.abs() * (
                    1 + 2**-7
                )
                if not bool(((got.double() - want).abs() <= bound).all()):
                    raise GateFailed(
                        f"{impl.name}: {list(x.shape)} by {list(weight.shape)} is off by more than rounding"
                    )
        names = ", ".join(impl.name for impl in self._impls)
        size = format_bytes(sum(weight.nbytes for weight in self._weights))
        return f"{names}: samples of all products ({size} of weights) within the error budget of float64"

    def _rows(self, weight: Tensor, num_rows: int) -> Tensor:
        number = min(num_rows, 512) if weight is self._weights[-1] else num_rows
        made = torch.randn(number, weight.shape[1], generator=self._draw, device=self._device)
        return made.to(weight.dtype)

    def _subject(self, impl: Impl, rows: list[Tensor]) -> Subject:
        packed = [_packed(impl, weight) for weight in self._weights]
        work: Callable[[], object] | None = None

        def run(repeat: int) -> Figures:
            nonlocal work
            del repeat  # all alike
            if work is None:
                work = self._capture(partial(_all, impl, rows, packed))
            return self._figures(rows, best_s(work, self._device, num_runs=5) / PASSES)

        return run

    def _figures(self, rows: list[Tensor], pass_s: float) -> Mapping[str, float]:
        floor_s = 0.0
        for x, weight in zip(rows, self._weights, strict=True):
            flop_s = 2 * len(x) * weight.numel() / self._flop_per_s
            floor_s += max(flop_s, weight.nbytes / self._copy_bytes_per_s)
        return {"floor_share": floor_s / pass_s, "pass_s": pass_s, "floor_s": floor_s}


def _packed(impl: Impl, weight: Tensor) -> Any:
    assert impl.pack is not None, "a linear kernel packs its weight"
    return impl.pack(weight)


def _all(impl: Impl, rows: list[Tensor], packed: list[Any]) -> None:
    for _ in range(PASSES):
        for x, weight in zip(rows, packed, strict=True):
            impl.run(x, weight)
