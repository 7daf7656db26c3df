"""What codes stand for, read byte by byte as the layouts are described. No code of the package."""

from __future__ import annotations

import torch
from torch import Tensor


def e4m3(byte: int) -> float:
    """Sign, four bits of exponent counted from 7, three of fraction; no infinities. Source: OCP 8-bit Floating Point
    Specification 1.0, table 1."""
    sign, exponent, fraction = -1.0 if byte & 128 else 1.0, byte >> 3 & 15, byte & 7
    if exponent == 0:
        return sign * fraction / 8 * 2.0**-6
    if exponent == 15 and fraction == 7:
        return float("nan")
    return sign * (1 + fraction / 8) * 2.0 ** (exponent - 7)


E4M3 = torch.tensor([e4m3(byte) for byte in range(256)], dtype=torch.float64)


def decoded(format: str, codes: Tensor, scales: Tensor, num_in: int) -> Tensor:
    """[O, I] float64. Of int4, scale * code + minimum as float32 rounds it."""
    if format == "int8":
        return codes.double() * scales.double()[:, None]
    if format == "fp8":
        return E4M3[codes.view(torch.uint8).long()] * scales.double()[:, None]
    found = torch.empty(len(codes), num_in, dtype=torch.float64)
    for k in range(num_in):
        byte = codes[:, k // 2].long()
        code = byte % 16 if k % 2 == 0 else byte // 16
        scale, least = scales[:, k // 64].double().unbind(1)
        found[:, k] = scale * code + least
    return found.float().double()


def nearest_codes(sizes: Tensor) -> Tensor:
    """The e4m3 code nearest to each of some sizes of at most 448, of two as near the even one. float64 to int64."""
    table = E4M3[:127]
    above = torch.searchsorted(table, sizes).clamp(max=126)
    below = (above - 1).clamp(min=0)
    to_above, to_below = table[above] - sizes, sizes - table[below]
    even = torch.where(above % 2 == 0, above, below)
    return torch.where(to_above < to_below, above, torch.where(to_below < to_above, below, even))


def rounded_heads(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, D] and exponents [N], uint8: under the least exponent of 1 .. 254 for which no size exceeds 448; NaN
    throughout where a number is not finite."""
    wide = rows.double()
    is_finite = wide.isfinite().all(1)
    wide = torch.where(is_finite[:, None], wide, 0.0)
    largest = 448 * torch.tensor([2.0 ** (exponent - 127) for exponent in range(1, 255)], dtype=torch.float64)
    exponents = 1 + (wide.abs().amax(1)[:, None] > largest).sum(1)
    sizes = wide.abs() / torch.ldexp(torch.ones(len(wide), dtype=torch.float64), exponents - 127)[:, None]
    codes = nearest_codes(sizes) + 128 * torch.signbit(wide)
    codes, exponents = torch.where(is_finite[:, None], codes, 0x7F), torch.where(is_finite, exponents, 0xFF)
    return codes.to(torch.uint8), exponents.to(torch.uint8)


def left_of(rows: Tensor) -> Tensor:
    """What is left of rows [..., D] in e4m3, float64."""
    codes, exponents = rounded_heads(rows.reshape(-1, rows.shape[-1]))
    return (E4M3[codes.long()] * 2.0 ** (exponents.double() - 127)[:, None]).view(rows.shape)


def fp8_memory(blocks: Tensor) -> Tensor:
    """Plain blocks [B, 2, P, K, D] as bytes [B, N], laid as `Fp8Blocks` are."""
    num_blocks, _, P, K, D = blocks.shape
    codes, exponents = rounded_heads(blocks.reshape(-1, D))
    used = 2 * P * K * (D + 1)
    memory = torch.full((num_blocks, -(-used // 16) * 16), 0xAA, dtype=torch.uint8)
    memory[:, : 2 * P * K * D] = codes.view(num_blocks, -1)
    memory[:, 2 * P * K * D : used] = exponents.view(num_blocks, -1)
    return memory
