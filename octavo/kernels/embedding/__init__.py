"""Token embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.choose import Impl, fits_all
from octavo.kernels.embedding import reference
from octavo.kernels.linear.codes import Codes


def embed(tokens: Tensor, weight: Tensor) -> Tensor:
    """The rows of `weight` named by `tokens`.

    tokens  [T] int64, each in 0 .. V-1
    weight  [V, E]

    Returns a fresh [T, E], bit for bit the rows. Raises ValueError on wrong shapes or dtype, and IndexError
    (on the CPU) for a token that is no row.
    """
    return reference.embed(tokens, weight)


def embed_codes(tokens: Tensor, weight: Codes, dtype: torch.dtype) -> Tensor:
    """The rows of a weight in int8 or fp8 codes, each number rounded once to `dtype`.

    tokens  [T] int64, each in 0 .. V-1
    weight  [V, E]

    Returns a fresh [T, E]. Raises as `embed` does, and ValueError for int4.
    """
    return reference.embed_codes(tokens, weight, dtype)


IMPLS: tuple[Impl, ...] = (Impl("embed", "reference", reference.embed, fits_all),)
