"""What follows attention in a layer: a feed-forward network, or experts of which a router picks a few per token."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.arch.tensors import Matrix, Tensor, Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """One network for every token.

    gated            three matrices (gate, up, down) instead of two
    bias             on what goes in; `out_bias` on what comes out
    extra_elements   learned constants of the activation function
    """

    width: int
    gated: bool = True
    bias: bool = False
    out_bias: bool = False
    extra_elements: int = 0

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        found: list[Tensor] = list(_network("mlp", hidden, self.width, self.gated, self.bias, self.out_bias))
        if self.extra_elements:
            found.append(Vector(name="activation", part="mlp", size=self.extra_elements))
        return tuple(found)

    def active_width(self) -> int:
        """Width of the product that a token's `down` reads, over all networks it passes."""
        return self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Networks of which each token passes `used`, as a router says, and one that every token passes.

    routes            rows of the router: as many as experts, or more where some lead to no weights
    router_bias       elements that the router adds to its scores, learned or balanced
    shared_width      width of the network for every token, several side by side added up; 0 for none
    shared_gate       its output is multiplied by a sigmoid of the input
    """

    count: int
    used: int
    width: int
    gated: bool = True
    bias: bool = False
    routes: int = 0
    router_bias: int = 0
    shared_width: int = 0
    shared_bias: bool = False
    shared_gate: bool = False

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        routes = self.routes or self.count
        found: list[Tensor] = [Matrix(name="router", part="router", inputs=hidden, outputs=routes)]
        if self.router_bias:
            found.append(Vector(name="router bias", part="router", size=self.router_bias))
        for matrix in _network("experts", hidden, self.width, self.gated, self.bias, self.bias):
            found.append(matrix.of_each(self.count, self.used))
        if self.shared_width:
            found += _network(
                "shared", hidden, self.shared_width, self.gated, self.shared_bias, self.shared_bias
            )
        if self.shared_gate:
            found.append(Matrix(name="shared gate", part="shared", inputs=hidden, outputs=1))
        return tuple(found)

    def active_width(self) -> int:
        return self.used * self.width + self.shared_width


def _network(
    part: str, hidden: int, width: int, gated: bool, bias: bool, out_bias: bool
) -> tuple[Matrix, ...]:
    prefix = "" if part == "mlp" else f"{part} "
    names = ("gate", "up") if gated else ("up",)
    into = [
        Matrix(
            name=prefix + name,
            part=part,
            inputs=hidden,
            outputs=width,
            bias=bias,
            cut="out",
            units=width,
        )
        for name in names
    ]
    down = Matrix(
        name=prefix + "down", part=part, inputs=width, outputs=hidden, bias=out_bias, cut="in", units=width
    )
    return (*into, down)
