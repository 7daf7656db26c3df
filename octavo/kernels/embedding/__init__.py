"""Token embeddings."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.choose import Impl, fits_all
from octavo.kernels.embedding import reference


def embed(tokens: Tensor, weight: Tensor) -> Tensor:
    """The rows of `weight` named by `tokens`.

    tokens  [T] int64, each in 0 .. V-1
    weight  [V, E]

    Returns a fresh [T, E], bit for bit the rows. Raises ValueError on wrong shapes or dtype, and IndexError
    (on the CPU) for a token that is no row.
    """
    return reference.embed(tokens, weight)


IMPLS: tuple[Impl, ...] = (Impl("embed", "reference", reference.embed, fits_all),)
