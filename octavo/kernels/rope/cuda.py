"""HEADS heads of one row to a program. The contract is in the package."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.kv_store.fp8 import Fp8Blocks
from octavo.kernels.norm.reference import check as check_norm
from octavo.kernels.rope.reference import check_norms, check_rotation, check_stored
from octavo.kernels.triton import launch

HEADS = 4
"""Heads of a program, whatever H and K: a head's sum runs in the same order everywhere."""


def rotate_and_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    blocks: Tensor | Fp8Blocks,
    slots: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    check_norms(q_norm, k_norm)
    if q_norm is not None and k_norm is not None:
        check_norm("rotate_and_write", q, q_norm)
        check_norm("rotate_and_write", k, k_norm)
    check_rotation(q, k, cos, sin)
    check_stored(blocks, k, v, slots)
    (num_rows, num_heads, head_dim), num_kv_heads = q.shape, k.shape[1]
    q, k, v = (x if x.stride(2) == 1 and x.stride(1) == head_dim else x.contiguous() for x in (q, k, v))
    turned = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    memory = blocks.memory if isinstance(blocks, Fp8Blocks) else blocks
    if num_rows:
        pieces = triton.cdiv(num_heads, HEADS) + 2 * triton.cdiv(num_kv_heads, HEADS)
        launch(
            _rotate_and_write, (num_rows, pieces),
            q, k, v, cos.contiguous(), sin.contiguous(), memory, slots, q_norm, k_norm, turned,
            q.stride(0), k.stride(0), v.stride(0), eps,
            H=num_heads, K=num_kv_heads, P=blocks.shape[2], HALF=head_dim // 2,
            PAIRS=max(8, triton.next_power_of_2(head_dim // 2)), HEADS=HEADS, NORMS=q_norm is not None,
            BLOCK=memory.stride(0), FP8=isinstance(blocks, Fp8Blocks),
            num_warps=1,
        )  # fmt: skip
    return turned


@triton.jit
def _rotate_and_write(
    q, k, v, cos, sin, blocks, slots, q_norm, k_norm, turned, q_row, k_row, v_row, eps,
    H: tl.constexpr, K: tl.constexpr, P: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr,
    HEADS: tl.constexpr, NORMS: tl.constexpr, BLOCK: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Pieces of a row: first those of q, then those of k, then those of v."""
    Q_PIECES: tl.constexpr = (H + HEADS - 1) // HEADS
    KV_PIECES: tl.constexpr = (K + HEADS - 1) // HEADS
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if piece < Q_PIECES:
        target = turned + row * (H * 2 * HALF)
        _turn(
            q + row * q_row,
            target,
            target,
            cos,
            sin,
            q_norm,
            row,
            piece,
            eps,
            H,
            HALF,
            PAIRS,
            HEADS,
            NORMS,
            False,
        )
    else:
        slot = tl.load(slots + row)
        keys = blocks + ((slot // P) * BLOCK + slot % P * (K * 2 * HALF))
        powers = blocks + ((slot // P) * BLOCK + 2 * P * K * 2 * HALF + slot % P * K)
        if piece < Q_PIECES + KV_PIECES:
            piece -= Q_PIECES
            _turn(
                k + row * k_row,
                keys,
                powers,
                cos,
                sin,
                k_norm,
                row,
                piece,
                eps,
                K,
                HALF,
                PAIRS,
                HEADS,
                NORMS,
                FP8,
            )
        else:
            head = (piece - Q_PIECES - KV_PIECES) * HEADS + tl.arange(0, HEADS)
            item = head[:, None] * (2 * HALF) + tl.arange(0, 2 * PAIRS)[None, :]
            inside = (head < K)[:, None] & (tl.arange(0, 2 * PAIRS) < 2 * HALF)[None, :]
            values = keys + P * K * 2 * HALF
            x = tl.load(v + row * v_row + item, mask=inside, other=0.0)
            if FP8:
                x = x.to(tl.float32)
                power, broken = _power_of(tl.max(_bits(x), axis=1))
                tl.store(powers + P * K + head, power.to(tl.uint8), mask=head < K)
                tl.store(values + item, _code(x, power, broken), mask=inside)
            else:
                tl.store(values + item, x, mask=inside)


@triton.jit
def _turn(
    source, target, powers, cos, sin, weight, row, piece, eps,
    NUM_HEADS: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr, HEADS: tl.constexpr, NORMS: tl.constexpr,
    FP8: tl.constexpr,
):  # fmt: skip
    """Norm and rotation of one piece, rounded after each; with FP8 stored in codes, from the rounded numbers."""
    head, pair = piece * HEADS + tl.arange(0, HEADS), tl.arange(0, PAIRS)
    item = head[:, None] * (2 * HALF) + pair[None, :]
    inside = (head < NUM_HEADS)[:, None] & (pair < HALF)[None, :]
    first = tl.load(source + item, mask=inside, other=0.0)
    second = tl.load(source + HALF + item, mask=inside, other=0.0)
    if NORMS:
        x, y = first.to(tl.float32), second.to(tl.float32)
        square = tl.sum(x * x + y * y, axis=1) / (2 * HALF)
        scale = (1.0 / tl.sqrt(square + eps))[:, None]
        x, y = (x * scale).to(first.dtype).to(tl.float32), (y * scale).to(first.dtype).to(tl.float32)
        low = tl.load(weight + pair, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
        high = tl.load(weight + HALF + pair, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
        first, second = (x * low).to(first.dtype), (y * high).to(first.dtype)
    x, y = first.to(tl.float32), second.to(tl.float32)
    c = tl.load(cos + row * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
    s = tl.load(sin + row * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
    low, high = (x * c - y * s).to(first.dtype), (y * c + x * s).to(first.dtype)
    if FP8:
        x, y = low.to(tl.float32), high.to(tl.float32)
        power, broken = _power_of(tl.maximum(tl.max(_bits(x), axis=1), tl.max(_bits(y), axis=1)))
        tl.store(powers + head, power.to(tl.uint8), mask=head < NUM_HEADS)
        tl.store(target + item, _code(x, power, broken), mask=inside)
        tl.store(target + HALF + item, _code(y, power, broken), mask=inside)
    else:
        tl.store(target + item, low, mask=inside)
        tl.store(target + HALF + item, high, mask=inside)


@triton.jit
def _bits(x):
    """Of a number's size, as whole numbers: in the order of sizes, with infinity and NaN above all others."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _power_of(top):
    """For rows whose largest size has the bits `top`: their exponents, and whether some number of theirs is not finite.

    448 is 1.75 times 2^8: the exponent of `top`, less 8, and one more where its fraction exceeds 0.75.
    """
    broken = top >= 0x7F800000
    power = tl.maximum(((top + 0x1FFFFF) >> 23) - 8, 1)
    return tl.where(broken, 255, power), broken


@triton.jit
def _code(x, power, broken):
    """e4m3 of x / 2^(power - 127), to nearest, ties to even: its bits, reckoned in whole numbers."""
    size = tl.abs(x) * ((254 - power) << 23).to(tl.float32, bitcast=True)[:, None]
    bits = size.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    small = (size * 512.0 + 8388608.0).to(tl.int32, bitcast=True) & 0xFF
    code = tl.where(size < 0.015625, small, normal) | ((x.to(tl.int32, bitcast=True) >> 24) & 0x80)
    return tl.where(broken[:, None], 0x7F, code).to(tl.uint8)
