"""Weights as codes with scales: how they are made, and what numbers they stand for.

    int8   [O, I] int8            a float32 scale per output, max|w| / 127:        weight = scale * code
    fp8    [O, I] e4m3            a float32 scale per output, max|w| / 448:        weight = scale * code
    int4   [O, padded I / 2]      a bfloat16 scale and minimum for each 64 inputs: weight = scale * code + minimum

An int4 byte holds the code of an even input in its low half and of the odd one after it in its high half; inputs are
padded with zeros to whole groups. int8 and int4 are those of the compiled kernels, number for number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FORMATS = ("int8", "fp8", "int4")
GROUP = 64
"""Inputs that share an int4 scale."""
LARGEST_INT8, LARGEST_FP8 = 127.0, 448.0
NOTHING = 1e-30
"""Outputs that stay below this become zeros."""
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
_CHUNK_ITEMS = 1 << 22
"""Weights that are rounded at a time; int4 takes about eighty bytes for each."""

_ITEMS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "int4": torch.uint8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """A weight [O, I] in a format of FORMATS.

    codes   as the module says
    scales  [O] float32; of int4 [O, groups, 2] bfloat16: scale, minimum
    """

    format: str
    num_in: int
    codes: Tensor
    scales: Tensor

    @classmethod
    def empty(cls, format: str, num_out: int, num_in: int, device: torch.device | str = "cpu") -> Codes:
        """To be filled. Raises ValueError for an unknown format."""
        if format not in FORMATS:
            raise ValueError(f"codes are {', '.join(FORMATS)}, got {format!r}")
        groups = -(-num_in // GROUP)
        width = groups * GROUP // 2 if format == "int4" else num_in
        scales = (num_out, groups, 2) if format == "int4" else (num_out,)
        return cls(
            format=format,
            num_in=num_in,
            codes=torch.empty(num_out, width, dtype=_ITEMS[format], device=device),
            scales=torch.empty(
                scales, dtype=torch.bfloat16 if format == "int4" else torch.float32, device=device
            ),
        )

    @property
    def num_out(self) -> int:
        return self.codes.shape[0]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def fill(self, first: int, rows: Tensor) -> bool:
        """Round outputs `first` .. from [n, I] of any floating dtype; false where a number or a scale is not finite."""
        if rows.ndim != 2 or rows.shape[1] != self.num_in or first + len(rows) > self.num_out:
            raise ValueError(
                f"fill: want rows [n, {self.num_in}] for outputs {first} to {self.num_out - 1}, got {list(rows.shape)}"
            )
        make = {"int8": _int8, "fp8": _fp8, "int4": _int4}[self.format]
        is_finite = True
        for part in torch.split(rows, max(1, _CHUNK_ITEMS // max(self.num_in, 1))):
            wide = part.to(device=self.codes.device, dtype=torch.float32)
            codes, scales = make(wide)
            self.codes[first : first + len(part)] = codes
            self.scales[first : first + len(part)] = scales
            is_finite = is_finite and bool(wide.isfinite().all() & scales.isfinite().all())
            first += len(part)
        return is_finite

    def numbers(self, first: int = 0, last: int | None = None) -> Tensor:
        """What outputs first .. last - 1 stand for, [n, I] float32."""
        codes, scales = self.codes[first:last], self.scales[first:last].to(torch.float32)
        if self.format != "int4":
            return codes.to(torch.float32) * scales[:, None]
        each = torch.stack((codes & 15, codes >> 4), dim=2).view(*scales.shape[:2], GROUP).to(torch.float32)
        return (each * scales[:, :, :1] + scales[:, :, 1:]).flatten(1)[:, : self.num_in]

    def rows(self, tokens: Tensor) -> Tensor:
        """The numbers of some outputs, [T, I] float32: of a head that is the embedding, too.

        Raises ValueError for int4, which no embedding is kept in.
        """
        if self.format == "int4":
            raise ValueError("rows: an embedding is kept in int8 or fp8, not in int4")
        return self.codes.index_select(0, tokens).to(torch.float32) * self.scales[tokens][:, None]


def _int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    top = rows.abs().amax(1)
    codes = (rows * _up(top, LARGEST_INT8)).clamp(-LARGEST_INT8, LARGEST_INT8).round()
    return codes.to(torch.int8), top / LARGEST_INT8


def _fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    top = rows.abs().amax(1)
    codes = (rows * _up(top, LARGEST_FP8)).clamp(-LARGEST_FP8, LARGEST_FP8)
    return codes.to(torch.float8_e4m3fn), top / LARGEST_FP8


def _up(top: Tensor, largest: float) -> Tensor:
    """largest / top [O, 1], rounded once: a number over a tensor would be the reciprocal, times the number."""
    return torch.where(top > NOTHING, torch.full_like(top, largest) / top, 0.0)[:, None]


def _int4(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of several shrunken ranges the one with the least squared error, per group and output.

    Source: range search, as in the weight-only quantizers descended from GPTQ (arXiv 2210.17323).
    """
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % GROUP))
    groups = padded.unflatten(1, (-1, GROUP))
    shrink = torch.tensor(SHRINK, device=rows.device)[:, None, None]
    lows, highs = groups.amin(2).clamp(max=0) * shrink, groups.amax(2).clamp(min=0) * shrink
    errors = _errors(groups, lows, highs)
    best = errors.argmin(0, keepdim=True)
    is_known = errors.amin(0) < torch.inf
    low, high = (torch.where(is_known, side.gather(0, best)[0], 0.0) for side in (lows, highs))
    scale, least = _grid(low, high)
    codes = _codes(groups, scale, least).to(torch.uint8).flatten(1)
    return codes[:, 0::2] | codes[:, 1::2] << 4, torch.stack((scale, least), dim=2).to(torch.bfloat16)


def _errors(groups: Tensor, lows: Tensor, highs: Tensor) -> Tensor:
    """Squared error of each range, summed input by input with one rounding each, as the compiled kernels do it."""
    scale, least = _grid(lows, highs)
    off = scale[..., None] * _codes(groups, scale, least) + least[..., None] - groups
    total = torch.zeros_like(lows)
    for one in off.unbind(-1):
        wide = one.to(torch.float64)
        total = (wide * wide + total).to(torch.float32)
    return total


def _grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum of codes 0 .. 15 over [low, high], rounded to bfloat16."""
    scale = ((high - low) * (1.0 / 15.0)).clamp(min=1e-20)
    return scale.to(torch.bfloat16).to(torch.float32), low.to(torch.bfloat16).to(torch.float32)


def _codes(groups: Tensor, scale: Tensor, least: Tensor) -> Tensor:
    return ((groups - least[..., None]) * (1.0 / scale)[..., None]).clamp(0, 15).round()
