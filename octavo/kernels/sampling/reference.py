"""Plain torch. The contract is in the package."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def greedy(logits: Tensor) -> list[tuple[int, float, int]]:
    if logits.ndim != 2 or logits.dtype != torch.float32:
        raise ValueError(f"greedy: want float32 logits [N, V], got {list(logits.shape)} {logits.dtype}")
    return [_row(row) for row in logits]


def _row(row: Tensor) -> tuple[int, float, int]:
    top = float(row.amax())  # NaN when any entry is
    if math.isnan(top):
        return 0, 0.0, 1
    if math.isinf(top):
        return 0, 0.0, 2 if top > 0 else 3
    token = int(row.argmax())
    return token, float(row.log_softmax(-1)[token]), 0
