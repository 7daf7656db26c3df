"""Kinds of layers that keep a state of constant size per sequence instead of keys and values per token.

`flop_per_token` counts the recurrence as it is written, one token after another, which is what a decode step does.
Kernels for prompts go through chunks: more arithmetic, fewer bytes. What is counted here is the lesser.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.arch.tensors import Matrix, Tensor, Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba:
    """Selective state space with a decay of its own for every element. Source: Gu and Dao 2023, arXiv 2312.00752.

    rank            width that the step sizes pass through
    norm_elements   weights of norms of step sizes and of the state's inputs and outputs
    """

    inner: int
    state: int
    rank: int
    kernel: int
    conv_bias: bool = True
    bias: bool = False
    norm_elements: int = 0

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        inner, units = self.inner, self.inner
        found: list[Tensor] = [
            _into("in", hidden, 2 * inner, units, self.bias),
            _each("convolution", inner * (self.kernel + self.conv_bias), units),
            _back("steps and state", inner, self.rank + 2 * self.state, units, False),
            _into("steps", self.rank, inner, units, True),
            _each("decay and skip", inner * (self.state + 1), units),
            _back("out", inner, hidden, units, self.bias),
        ]
        if self.norm_elements:
            found.append(Vector(name="state norms", part="norm", size=self.norm_elements))
        return tuple(found)

    def flop_per_token(self) -> int:
        """Decay, input and sum of each element of the state (3), its read-out (2), and the convolution."""
        return 5 * self.state_elements() + 2 * self.inner * self.kernel

    def state_elements(self) -> int:
        return self.inner * self.state

    def conv_elements(self) -> int:
        """Inputs of the convolution that the next token needs."""
        return self.inner * (self.kernel - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2:
    """State space with one decay per head. Source: Dao and Gu 2024, arXiv 2405.21060.

    groups     sets of state inputs and outputs, shared by heads
    has_norm   the result is normalised before it leaves
    """

    num_heads: int
    head_dim: int
    state: int
    groups: int
    kernel: int
    conv_bias: bool = True
    bias: bool = False
    has_norm: bool = True

    @property
    def inner(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def conv_width(self) -> int:
        return self.inner + 2 * self.groups * self.state

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        heads, inner = self.num_heads, self.inner
        found: list[Tensor] = [
            _into("in", hidden, inner + self.conv_width + heads, heads, self.bias),
            _each("convolution", self.conv_width * (self.kernel + self.conv_bias), heads),
            _each("steps, decay and skip", 3 * heads, heads),
            _back("out", inner, hidden, heads, self.bias),
        ]
        if self.has_norm:
            found.append(Vector(name="state norm", part="norm", size=inner, cut="out", units=heads))
        return tuple(found)

    def flop_per_token(self) -> int:
        """As for Mamba."""
        return 5 * self.state_elements() + 2 * self.conv_width * self.kernel

    def state_elements(self) -> int:
        return self.inner * self.state

    def conv_elements(self) -> int:
        return self.conv_width * (self.kernel - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaNet:
    """Gated delta rule: a matrix per head that forgets, and corrects what it would have answered.

    gate_rank   None: output gates by one matrix and a decay per head; else both through this width, and a decay for
                every key element

    Source: Yang et al. 2024, arXiv 2412.06464 (gated delta net); Kimi Team 2025, arXiv 2510.26692 (by element).
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    gate_rank: int | None = None

    @property
    def conv_width(self) -> int:
        return 2 * self.num_key_heads * self.key_dim + self.num_value_heads * self.value_dim

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        heads, values = self.num_value_heads, self.num_value_heads * self.value_dim
        keys = self.num_key_heads * self.key_dim
        found: list[Tensor] = [
            _into("q, k and v", hidden, self.conv_width, heads, False),
            _each("convolution", self.conv_width * self.kernel, heads),
        ]
        if self.gate_rank is None:
            found += [
                _into("gate", hidden, values, heads, False),
                _into("strength and decay", hidden, 2 * heads, heads, False),
                _each("decay", 2 * heads, heads),
            ]
        else:
            found += [
                Matrix(name="gate down", part="state", inputs=hidden, outputs=self.gate_rank),
                _into("gate up", self.gate_rank, values, heads, False),
                Matrix(name="decay down", part="state", inputs=hidden, outputs=self.gate_rank),
                _into("decay up", self.gate_rank, keys, heads, False),
                _into("strength", hidden, heads, heads, False),
                _each("decay", keys + heads, heads),
            ]
        found += [
            Vector(name="state norm", part="norm", size=self.value_dim),
            _back("out", values, hidden, heads, False),
        ]
        return tuple(found)

    def flop_per_token(self) -> int:
        """Decay (1), what the key would be answered (2), the correction written (2), read-out (2), convolution."""
        return 7 * self.state_elements() + 2 * self.conv_width * self.kernel

    def state_elements(self) -> int:
        return self.num_value_heads * self.key_dim * self.value_dim

    def conv_elements(self) -> int:
        return self.conv_width * (self.kernel - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LightningAttention:
    """Linear attention with a fixed decay per head. Source: MiniMax 2025, arXiv 2501.08313, section 2.2."""

    num_heads: int
    head_dim: int

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        heads, inner = self.num_heads, self.num_heads * self.head_dim
        return (
            _into("q, k and v", hidden, 3 * inner, heads, False),
            _into("gate", hidden, inner, heads, False),
            Vector(name="state norm", part="norm", size=inner, cut="out", units=heads),
            _back("out", inner, hidden, heads, False),
        )

    def flop_per_token(self) -> int:
        """Decay, input and sum of each element of the state (3) and its read-out (2)."""
        return 5 * self.state_elements()

    def state_elements(self) -> int:
        return self.num_heads * self.head_dim * self.head_dim

    def conv_elements(self) -> int:
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConvolution:
    """A gated convolution over a few positions (LFM2; `Lfm2ShortConv` in transformers)."""

    width: int
    kernel: int
    bias: bool = False

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        width = self.width
        return (
            _into("in", hidden, 3 * width, width, self.bias),
            _each("convolution", width * (self.kernel + self.bias), width),
            _back("out", width, hidden, width, self.bias),
        )

    def flop_per_token(self) -> int:
        return 2 * self.width * self.kernel

    def state_elements(self) -> int:
        return 0

    def conv_elements(self) -> int:
        return self.width * (self.kernel - 1)


StateMixer = Mamba | Mamba2 | DeltaNet | LightningAttention | ShortConvolution


def _into(name: str, inputs: int, outputs: int, units: int, bias: bool) -> Matrix:
    return Matrix(name=name, part="state", inputs=inputs, outputs=outputs, bias=bias, cut="out", units=units)


def _back(name: str, inputs: int, outputs: int, units: int, bias: bool) -> Matrix:
    return Matrix(name=name, part="state", inputs=inputs, outputs=outputs, bias=bias, cut="in", units=units)


def _each(name: str, size: int, units: int) -> Vector:
    return Vector(name=name, part="state", size=size, cut="out", units=units)
