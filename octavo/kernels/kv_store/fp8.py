"""Keys and values in e4m3, each head's row of a token with a scale of its own, a power of two.

One block of one layer, in bytes, and what fills it up to a multiple of 16:

    | codes of keys: P x K x D | codes of values: P x K x D | exponents of keys: P x K | of values: P x K |

    number = code * 2^(exponent - 127)

The exponent is the least under which no number of the row exceeds 448, the largest code; a power of two costs a
floating code no precision, and what is read is exact in bfloat16. A row with a number that is not finite is stored as
NaN: all its codes, and its exponent.
Source of the codes: OCP 8-bit Floating Point Specification 1.0; of the exponents: OCP Microscaling Formats 1.0, E8M0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BIAS = 127
LEAST_EXPONENT = 1
NAN_CODE, NAN_EXPONENT = 0x7F, 0xFF
_ALIGN_BYTES = 16


def block_bytes(block_tokens: int, num_kv_heads: int, head_dim: int) -> int:
    """Of one block in one layer."""
    used = 2 * block_tokens * num_kv_heads * (head_dim + 1)
    return -(-used // _ALIGN_BYTES) * _ALIGN_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Blocks:
    """The blocks of one layer.

    memory  [B, block_bytes] uint8, contiguous
    """

    memory: Tensor
    block_tokens: int
    num_kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        want = block_bytes(self.block_tokens, self.num_kv_heads, self.head_dim)
        memory = self.memory
        if memory.ndim != 2 or memory.shape[1] != want or memory.dtype != torch.uint8:
            raise ValueError(f"Fp8Blocks: want uint8 [B, {want}], got {memory.dtype} {list(memory.shape)}")
        if not memory.is_contiguous():
            raise ValueError("Fp8Blocks: want contiguous memory")

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """As of plain blocks, [B, 2, P, K, D]."""
        return (len(self.memory), 2, self.block_tokens, self.num_kv_heads, self.head_dim)

    @property
    def codes(self) -> Tensor:
        """[B, 2, P, K, D] e4m3: a view."""
        num_codes = 2 * self.block_tokens * self.num_kv_heads * self.head_dim
        return self.memory[:, :num_codes].view(torch.float8_e4m3fn).unflatten(1, self.shape[1:])

    @property
    def exponents(self) -> Tensor:
        """[B, 2, P, K] uint8: a view."""
        rows = 2 * self.block_tokens * self.num_kv_heads
        first = rows * self.head_dim
        return self.memory[:, first : first + rows].unflatten(1, self.shape[1:4])

    def numbers(self, block_ids: Tensor) -> Tensor:
        """What some blocks hold, [N, 2, P, K, D] float32."""
        codes = self.codes.view(torch.uint8)[block_ids].view(torch.float8_e4m3fn).to(torch.float32)
        return torch.ldexp(codes, self.exponents[block_ids][..., None].to(torch.int32) - BIAS)


def write(blocks: Fp8Blocks, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """`write_kv`, rounding on the way."""
    check_write(blocks, k, v, slots)
    num_blocks, block_tokens = len(blocks.memory), blocks.block_tokens
    if len(slots) and not bool(((slots >= 0) & (slots < num_blocks * block_tokens)).all()):
        raise IndexError(f"write: slots are 0 .. {num_blocks * block_tokens - 1}, got {slots.tolist()}")
    block, offset = slots.div(block_tokens, rounding_mode="floor"), slots % block_tokens
    codes, exponents = blocks.codes.view(torch.uint8), blocks.exponents
    for side, rows in enumerate((k, v)):
        of_rows, scales = _rounded(rows.to(torch.float32))
        codes[block, side, offset] = of_rows
        exponents[block, side, offset] = scales


def check_write(blocks: Fp8Blocks, k: Tensor, v: Tensor, slots: Tensor) -> None:
    want = (slots.numel(), *blocks.shape[3:])
    if (
        slots.ndim != 1
        or slots.dtype != torch.int64
        or k.shape != want
        or v.shape != want
        or k.dtype != v.dtype
    ):
        raise ValueError(
            f"write: slots {list(slots.shape)} {slots.dtype} want int64 slots [T] and k, v {list(want)} of one dtype,"
            f" got {list(k.shape)} {k.dtype} and {list(v.shape)} {v.dtype}"
        )


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [T, K, D] as bytes, and exponents [T, K] uint8."""
    top = rows.abs().amax(2)
    fraction, power = torch.frexp(top)
    exponent = torch.where(top > 0, power - 9 + (fraction > 0.875), LEAST_EXPONENT - BIAS)
    is_finite = rows.isfinite().all(2)
    exponent = torch.where(is_finite, exponent.clamp(min=LEAST_EXPONENT - BIAS), NAN_EXPONENT - BIAS)
    codes = torch.ldexp(rows, -exponent[..., None]).to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.where(is_finite[..., None], codes, NAN_CODE), (exponent + BIAS).to(torch.uint8)
