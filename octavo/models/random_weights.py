"""Weights for a shape without a checkpoint, so that any architecture can be run and measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from octavo.errors import LoadError

STD = 0.02
_CHUNK_ITEMS = 1 << 22
_DIGEST_ITEMS = 1 << 14


class RandomWeights:
    """Normal with standard deviation 0.02; the weights of norms are 1.

    Every tensor is drawn from its own generator, seeded by (seed, name), so that a tensor does not depend on
    which others were made before it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._digests: dict[str, bytes] = {}

    def fill(self, name: str, target: Tensor) -> bytes:
        """Draw a tensor into `target`, in float32, then rounded; returns a digest of its first values."""
        if name.endswith("norm.weight"):
            target.fill_(1.0)
        else:
            key = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
            flat = target.view(-1)
            for start in range(0, flat.numel(), _CHUNK_ITEMS):
                part = flat[start : start + _CHUNK_ITEMS]
                part.copy_(torch.randn(part.numel(), generator=generator) * STD)
        first = target.reshape(-1)[:_DIGEST_ITEMS].cpu().to(torch.float32)
        return hashlib.sha256(f"{name} {tuple(target.shape)}".encode() + first.numpy().tobytes()).digest()

    def pieces(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
        """A matrix in one piece; see `octavo.models.loader.Source`."""
        whole = torch.empty(shape, dtype=dtype)
        self._digests[name] = self.fill(name, whole)
        yield whole

    def digest(self, name: str) -> bytes:
        """Of a matrix whose pieces have been taken."""
        return self._digests.pop(name)

    def not_finite(self, name: str, dtype: torch.dtype) -> LoadError:
        return LoadError(f"random weights of {name} are infinite or undefined when cast to {dtype}")
