"""Compiled kernels, rows side by side on the threads of a program. The contract is in the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from octavo.kernels.sampling import Described, Draw, Greedy


@dataclass(frozen=True, slots=True)
class NativeSampling:
    """program  an `octavo._cpu.Program`: its kernels and threads are used, and nothing of what it recorded"""

    program: Any

    def greedy(self, logits: Tensor) -> list[Greedy]:
        return [Greedy(*row) for row in self.program.greedy(logits)]

    def draw(self, logits: Tensor, draws: Sequence[Draw]) -> list[int]:
        tokens: list[int] = self.program.draw(logits, draws) if draws else []
        return tokens

    def describe(self, logits: Tensor, asked: Sequence[tuple[int, int, int]]) -> list[Described]:
        return [Described(*found) for found in self.program.describe(logits, asked)] if asked else []
