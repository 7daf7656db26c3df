"""Plain torch. The contract is in the package."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.linear.codes import Codes


def embed(tokens: Tensor, weight: Tensor) -> Tensor:
    if tokens.ndim != 1 or weight.ndim != 2:
        raise ValueError(
            f"embed: want tokens [T] and weight [V, E], got {list(tokens.shape)} and {list(weight.shape)}"
        )
    if tokens.dtype != torch.int64:
        raise ValueError(f"embed: tokens must be int64, got {tokens.dtype}")
    return weight.index_select(0, tokens)


def embed_codes(tokens: Tensor, weight: Codes, dtype: torch.dtype) -> Tensor:
    if tokens.ndim != 1 or tokens.dtype != torch.int64:
        raise ValueError(f"embed_codes: want int64 tokens [T], got {tokens.dtype} {list(tokens.shape)}")
    return weight.rows(tokens).to(dtype)
