"""Plain torch. The contract is in the package."""

from __future__ import annotations

import torch
from torch import Tensor


def embed(tokens: Tensor, weight: Tensor) -> Tensor:
    if tokens.ndim != 1 or weight.ndim != 2:
        raise ValueError(
            f"embed: want tokens [T] and weight [V, E], got {list(tokens.shape)} and {list(weight.shape)}"
        )
    if tokens.dtype != torch.int64:
        raise ValueError(f"embed: tokens must be int64, got {tokens.dtype}")
    return weight.index_select(0, tokens)
