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
