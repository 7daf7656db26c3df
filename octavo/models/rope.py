"""From positions to the cosines and sines that turn queries and keys.

Inverse frequencies are computed in float32 in the order of operations models are trained with, once, on the
CPU, so that every device and every batch turns a position by the same angles.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from octavo.arch import Rope

Tables = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Angle per position of each pair of dimensions, [D/2] float32, on the CPU.

    For kind "dynamic" these are the angles within the original context; see `RopeTables`.
    Sources: arXiv 2104.09864 sec. 3.4 (default); arXiv 2306.15595 eq. 4 (linear);
    arXiv 2309.00071 sec. 3.2 (yarn); Llama 3.1's published reference (llama3).
    """
    plain = 1.0 / _wavelengths(rope.theta, head_dim)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, head_dim)
    return plain


def _wavelengths(theta: float, head_dim: int) -> Tensor:
    """Positions per radian of each pair, [D/2]."""
    return theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Pairs that turn often within the original context stay; those that seldom do are slowed by `factor`."""
    turns = rope.original_positions / (2 * math.pi / plain)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - kept) * plain / rope.factor + kept * plain
    slowed = torch.where(turns < rope.low_freq_factor, plain / rope.factor, blended)
    return torch.where(turns > rope.high_freq_factor, plain, slowed)


def _yarn(rope: Rope, head_dim: int) -> Tensor:
    """Pairs that turn more than `beta_fast` times within the original context stay as they are; those that
    turn less than `beta_slow` times are interpolated fully; between the two a ramp blends them. The ramp is
    over the pair's index, as in the paper's published code and the models trained with it; the paper's text
    writes it over the number of turns (sec. 3.2).
    """
    wavelengths = _wavelengths(rope.theta, head_dim)

    def pair_turning(turns: float) -> float:
        """Index of the pair that turns so often within the original context; not whole."""
        longest = rope.original_positions / (turns * 2 * math.pi)
        return head_dim * math.log(longest) / (2 * math.log(rope.theta))

    first, last = pair_turning(rope.beta_fast), pair_turning(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first if last != first else 0.001  # a step instead of a ramp
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)
    return ramp * (1.0 / (rope.factor * wavelengths)) + (1 - ramp) * (1.0 / wavelengths)


class RopeTables:
    """Cosines and sines for any positions of one model.

    Kind "dynamic" raises the base with the length of the text. Published code takes the longest sequence of
    whatever is computed together, so keys already cached keep angles of a base that is gone, and results
    depend on chunks and on company. Here the base of a position p depends on p alone: the length that counts
    is p + 1. Up to the original context that is plain RoPE, as in transformers; beyond it, it is what
    transformers does when it decodes token by token with its cache. See docs/decisions/dynamic-ntk.md.
    """

    def __init__(self, rope: Rope, head_dim: int, device: torch.device, tables: Tables) -> None:
        """`tables` is the kernel that turns frequencies and positions into cosines and sines."""
        self.rope, self.head_dim, self._tables = rope, head_dim, tables
        self.inv_freq = inverse_frequencies(rope, head_dim).to(device)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [T, D/2] float32, times the attention factor, for `positions` [T] int64."""
        cos, sin = self._tables(self.inv_freq, positions, self.rope.attention_factor)
        if self.rope.kind == "dynamic":
            for row, position in enumerate(positions.tolist()):
                if position >= self.rope.original_positions:
                    cos[row], sin[row] = self._beyond(position)
        return cos, sin

    def _beyond(self, position: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine [D/2] of one position past the original context."""
        rope, head_dim, device = self.rope, self.head_dim, self.inv_freq.device
        stretch = rope.factor * (position + 1) / rope.original_positions - (rope.factor - 1)
        theta = rope.theta * stretch ** (head_dim / (head_dim - 2))
        inv_freq = (1.0 / _wavelengths(theta, head_dim)).to(device)
        cos, sin = self._tables(inv_freq, torch.tensor([position], device=device), rope.attention_factor)
        return cos[0], sin[0]
