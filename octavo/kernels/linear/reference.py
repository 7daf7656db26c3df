"""Library products at fixed row counts. The contract is in the package, the reasons in `octavo.kernels.tiles`."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.kernels.tiles import ALIGN_BYTES, TILES, Ladder, is_aligned, probe_rows, prove

_MAX_TWIN_ELEMENTS = 2**24
"""Smaller weights are tried by a random twin of their shape, larger ones, which memory may not hold twice, themselves.
"""

_FEW_TILES = (4, 16, 64, 256)
"""Tried for large weights, where each trial takes a while."""

_ladders: dict[tuple[object, ...], Ladder] = {}
"""Findings by shape, dtype, device, bias and number of threads."""


@dataclass(slots=True)
class Packed:
    """A weight as `linear` wants it. One copy; `weight` may be shared (tied embeddings).

    weight   [O, I], contiguous, 64-byte aligned
    bias     [O] or None
    ladders  row counts proven, by number of threads
    """

    weight: Tensor
    bias: Tensor | None = None
    ladders: dict[int, Ladder] = field(default_factory=dict, repr=False)

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def note(self) -> str:
        """What the trials found, for `doctor`."""
        return "; ".join(f"{threads} threads: {ladder.because}" for threads, ladder in self.ladders.items())

    def ladder(self) -> Ladder:
        """Row counts proven for the number of threads in force now."""
        threads = torch.get_num_threads()
        found = self.ladders.get(threads)
        if found is None:
            found = self.ladders[threads] = _ladder(self.weight, self.bias, threads)
        return found


def pack(weight: Tensor, bias: Tensor | None = None) -> Packed:
    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        got = f"{list(weight.shape)} and {None if bias is None else list(bias.shape)}"
        raise ValueError(f"pack: want weight [O, I] and bias [O] or None, got {got}")
    if bias is not None and (bias.dtype != weight.dtype or bias.device != weight.device):
        raise ValueError(
            f"pack: weight is {weight.dtype} on {weight.device}, bias is {bias.dtype} on {bias.device}"
        )
    if not is_aligned(weight):
        weight = weight.clone(memory_format=torch.contiguous_format)
    packed = Packed(weight.detach(), None if bias is None else bias.detach().contiguous())
    packed.ladder()
    return packed


def linear(x: Tensor, weight: Packed) -> Tensor:
    matrix = weight.weight
    if x.ndim != 2 or x.shape[1] != matrix.shape[1]:
        raise ValueError(
            f"linear: want x [T, {matrix.shape[1]}] for weight {list(matrix.shape)}, got {list(x.shape)}"
        )
    if x.dtype != matrix.dtype or x.device != matrix.device:
        raise ValueError(f"linear: x is {x.dtype} on {x.device}, weight is {matrix.dtype} on {matrix.device}")
    ladder = weight.ladder()
    num_rows, largest = x.shape[0], ladder.tiles[-1]
    if num_rows <= largest:
        tile = ladder.fit(num_rows)
        return (
            _product(_padded(x, tile), matrix, weight.bias)[:num_rows]
            if num_rows
            else x.new_empty(0, len(matrix))
        )
    if largest * matrix.shape[1] * x.element_size() % ALIGN_BYTES == 0 and not is_aligned(x):
        x = x.clone(memory_format=torch.contiguous_format)
    out = x.new_empty(num_rows, matrix.shape[0])
    start = 0
    while start < num_rows:
        rows = x[start : start + ladder.fit(num_rows - start)]
        tile = ladder.fit(len(rows))
        out[start : start + len(rows)] = _product(_padded(rows, tile), matrix, weight.bias)[: len(rows)]
        start += len(rows)
    return out


def _padded(rows: Tensor, tile: int) -> Tensor:
    """`rows` at an aligned address, followed by zeros up to `tile` rows."""
    if len(rows) == tile:
        return rows if is_aligned(rows) else rows.clone(memory_format=torch.contiguous_format)
    padded = rows.new_zeros(tile, rows.shape[1])
    padded[: len(rows)] = rows
    return padded


def _product(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return torch.mm(rows, matrix.t())
    return torch.addmm(bias, rows, matrix.t())


def _ladder(weight: Tensor, bias: Tensor | None, threads: int) -> Ladder:
    """Row counts proven for this shape. The order of a sum depends on shapes, never on values."""
    num_out, num_in = weight.shape
    if weight.numel() == 0:
        return Ladder((TILES[-1],), "the weight is empty")
    key = (num_out, num_in, weight.dtype, weight.device, bias is None, threads)
    if key in _ladders:
        return _ladders[key]
    small = weight.numel() <= _MAX_TWIN_ELEMENTS
    tried = _twin(weight) if small else weight
    shift = None if bias is None else probe_rows(1, num_out, weight.dtype, weight.device)[0]
    num_probes = 2 if weight.numel() > 2**20 else min(16, 2 + 128 // num_out)
    probes = probe_rows(num_probes, num_in, weight.dtype, weight.device)
    ladder = prove(lambda rows: _product(rows, tried, shift), probes, TILES if small else _FEW_TILES)
    if small or _is_varied(weight):
        _ladders[key] = ladder
    return ladder


def _twin(weight: Tensor) -> Tensor:
    """A random weight of the same shape, from a pool whose length divides no ordinary width."""
    pool = probe_rows(1, 65537, weight.dtype, weight.device)[0]
    repeats = -(-weight.numel() // len(pool))
    return pool.repeat(repeats)[: weight.numel()].view(weight.shape).clone()


def _is_varied(weight: Tensor) -> bool:
    """Whether sums over this weight would show another order; those over zeros or ones would not."""
    sample = weight.flatten()[:: weight.numel() // 4096]
    return len(sample.unique()) >= 64 and int(sample.count_nonzero()) > len(sample) // 2
