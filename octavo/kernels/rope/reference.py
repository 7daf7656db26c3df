"""Plain torch. The contract is in the package."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.kv_store import fp8
from octavo.kernels.kv_store.fp8 import Fp8Blocks
from octavo.kernels.kv_store.reference import check_write, write_kv
from octavo.kernels.norm.reference import rms_norm


def tables(inv_freq: Tensor, positions: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    if inv_freq.ndim != 1 or positions.ndim != 1:
        raise ValueError(
            f"tables: want inv_freq [D/2] and positions [T], got {list(inv_freq.shape)} and {list(positions.shape)}"
        )
    if inv_freq.dtype != torch.float32 or positions.dtype.is_floating_point:
        raise ValueError(
            f"tables: want float32 inv_freq and integer positions, got {inv_freq.dtype} and {positions.dtype}"
        )
    angles = positions.to(torch.float32)[:, None] * inv_freq
    return angles.cos() * scale, angles.sin() * scale


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    check_rotation(q, k, cos, sin)
    cos, sin = cos[:, None], sin[:, None]
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def check_rotation(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    if q.ndim != 3 or k.ndim != 3 or q.shape[::2] != k.shape[::2] or q.shape[2] % 2 or q.dtype != k.dtype:
        raise ValueError(
            f"rotate: want q [T, H, D] and k [T, K, D] of one dtype with D even, "
            f"got {list(q.shape)} {q.dtype} and {list(k.shape)} {k.dtype}"
        )
    want = (q.shape[0], q.shape[2] // 2)
    if cos.shape != want or sin.shape != want or cos.dtype != torch.float32 or sin.dtype != torch.float32:
        raise ValueError(
            f"rotate: want float32 cos and sin {list(want)}, "
            f"got {list(cos.shape)} {cos.dtype} and {list(sin.shape)} {sin.dtype}"
        )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.to(torch.float32).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


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
        q, k = rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps)
    q, k = rotate(q, k, cos, sin)
    if isinstance(blocks, Fp8Blocks):
        fp8.write(blocks, k, v, slots)
    else:
        write_kv(blocks, k, v, slots)
    return q


def check_stored(blocks: Tensor | Fp8Blocks, k: Tensor, v: Tensor, slots: Tensor) -> None:
    if isinstance(blocks, Fp8Blocks):
        fp8.check_write(blocks, k, v, slots)
    else:
        check_write(blocks, k, v, slots)


def check_norms(q_norm: Tensor | None, k_norm: Tensor | None) -> None:
    if (q_norm is None) != (k_norm is None):
        which = "q_norm" if k_norm is None else "k_norm"
        raise ValueError(f"rotate_and_write: only {which} is given; want both norms or neither")
