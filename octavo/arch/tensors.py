"""The weights of a model as widths and counts: what parameters, FLOPs, bytes and cuts across ranks are counted from."""

from __future__ import annotations

from dataclasses import dataclass, replace

PARTS = (
    *(
        "embedding",
        "positions",
        "qkv",
        "output",
        "state",
        "mlp",
        "router",
        "experts",
        "shared",
        "norm",
        "head",
    ),
    *("mtp", "vision"),
)
"""What weights belong to: the rows of tables, in this order."""

CUTS = ("none", "in", "out", "vocab")
"""How tensor parallelism takes a weight apart: held whole by every rank, cut along its inputs (and its results
summed), along its outputs, or along the vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A linear map, or `count` alike of which each token passes `used`; experts are the case of used < count.

    bias       adds `outputs` elements to each
    cut        one of CUTS
    units      pieces along the cut that stay whole, such as heads
    repeats    a rank that would get less than one unit holds a whole one, as key and value heads are repeated
    """

    name: str
    part: str
    inputs: int
    outputs: int
    bias: bool = False
    count: int = 1
    used: int = 1
    cut: str = "none"
    units: int = 1
    repeats: bool = False

    @property
    def is_expert(self) -> bool:
        return self.part == "experts"

    def num_weights(self) -> int:
        """Elements that are multiplied, of all copies; biases left out."""
        return self.count * self.inputs * self.outputs

    def num_elements(self) -> int:
        return self.count * self.outputs * (self.inputs + self.bias)

    def num_active_elements(self) -> int:
        """Without the experts that a token does not pass."""
        return (self.used if self.is_expert else self.count) * self.outputs * (self.inputs + self.bias)

    def flop_per_token(self) -> int:
        """Two for each weight a token meets: a multiplication and an addition. Biases are not counted."""
        return 2 * self.used * self.inputs * self.outputs

    def of_each(self, count: int, used: int) -> Matrix:
        return replace(self, count=count, used=used)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """Weights that are added or multiplied element by element: norms, decays, small convolutions, position tables."""

    name: str
    part: str
    size: int
    cut: str = "none"
    units: int = 1
    repeats: bool = False

    def num_elements(self) -> int:
        return self.size

    def num_active_elements(self) -> int:
        return self.size


Tensor = Matrix | Vector
