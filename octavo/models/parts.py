"""Which tensors a checkpoint must hold, and what each of them is for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear layer: weight [O, I], and a bias [O] or None."""

    weight: Weight
    bias: Weight | None = None

    @classmethod
    def of(cls, name: str, out_size: int, in_size: int, *, has_bias: bool) -> Projection:
        bias = Weight(f"{name}.bias", (out_size,)) if has_bias else None
        return cls(Weight(f"{name}.weight", (out_size, in_size)), bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParts:
    """One decoder layer; `q_norm` and `k_norm` [D] only where heads are normalised."""

    attention_norm: Weight
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    mlp_norm: Weight
    gate: Projection
    up: Projection
    down: Projection
    q_norm: Weight | None = None
    k_norm: Weight | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderParts:
    """A whole decoder; `head` is None when the output head is the embedding."""

    embedding: Weight
    layers: tuple[LayerParts, ...]
    final_norm: Weight
    head: Weight | None

    def weights(self) -> Iterator[Weight]:
        """Every tensor, each once, in the order of computation."""
        yield self.embedding
        for layer in self.layers:
            for field in fields(layer):
                part = getattr(layer, field.name)
                if isinstance(part, Projection):
                    yield part.weight
                    part = part.bias
                if part is not None:
                    yield part
        yield self.final_norm
        if self.head is not None:
            yield self.head
