"""The references on a CUDA device as they are: same budgets, same independence of company."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.activation import silu_mul
from octavo.kernels.attention import paged_attention
from octavo.kernels.embedding import embed
from octavo.kernels.kv_store import copy_blocks, write_kv
from octavo.kernels.linear import linear, pack
from octavo.kernels.norm import add_rms_norm, rms_norm
from octavo.kernels.rope import rotate, rotate_and_write, tables
from tests.kernels.dense_attention import dense, page, random_case
from tests.kernels.heads import EPS, random_heads
from tests.kernels.heads import check as check_heads
from tests.kernels.numbers import DTYPES, F32, UNIT, assert_within, same_bits, seeded

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 30])
def test_attention(window: int | None, dtype: torch.dtype) -> None:
    case = random_case([300, 5, 131, 64], [150, 5, 1, 1], 6, 2, 20, dtype, seed=3)
    on_device = [x.cuda() for x in page(case, 8, 5, window)]
    got = paged_attention(case.q.cuda(), *on_device, 20**-0.5, window)
    assert got.is_cuda
    assert_within(got.cpu(), *dense(case, 20**-0.5, window))
    blocks, block_ids, starts, counts = on_device
    alone = paged_attention(
        case.q[155:156].cuda(), blocks, block_ids[2:3], starts[2:3], counts[2:3], 20**-0.5, window
    )
    assert same_bits(alone, got[155:156])


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(dtype: torch.dtype) -> None:
    weight, x = seeded(77, 333, seed=1, dtype=dtype), seeded(290, 333, seed=2, dtype=dtype)
    packed = pack(weight.cuda())
    got = linear(x.cuda(), packed)
    want, mass = x.double() @ weight.double().t(), x.double().abs() @ weight.double().abs().t()
    assert_within(got.cpu(), want, 335 * F32 * mass + UNIT[dtype] * want.abs() * (1 + 2**-7))
    for start, end in ((0, 1), (3, 20), (100, 290)):
        assert same_bits(linear(x[start:end].cuda(), packed), got[start:end])


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_ops(dtype: torch.dtype) -> None:
    x, y, weight = (seeded(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(9, 33), (9, 33), (33,)]))
    normed, total = add_rms_norm(x.cuda(), y.cuda(), weight.cuda(), 1e-5)
    wide = total.cpu().double()
    want = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_within(normed.cpu(), want, want.abs() * (2 * UNIT[dtype] + 21 * F32))
    assert same_bits(rms_norm(total[4:5], weight.cuda(), 1e-5), normed[4:5])
    gated = silu_mul(x.cuda(), y.cuda())
    want = x.double() / (1 + (-x.double()).exp()) * y.double()
    assert_within(gated.cpu(), want, want.abs() * (2 * UNIT[dtype] + 6 * F32))
    assert same_bits(embed(torch.tensor([3, 0], device="cuda"), x.cuda()).cpu(), x[[3, 0]])


@pytest.mark.parametrize("norms", [False, True])
def test_rotate_and_write(norms: bool) -> None:
    case = random_heads(7, 5, 5, 14, 4, torch.bfloat16, norms=norms)
    blocks = case.blocks().cuda()
    weights = [None if weight is None else weight.cuda() for weight in (case.q_norm, case.k_norm)]
    turned = rotate_and_write(
        *case.split("cuda"), case.cos.cuda(), case.sin.cuda(), blocks, case.slots.cuda(), *weights, EPS
    )
    check_heads(case, turned.cpu(), blocks.cpu())


def test_rope_and_store() -> None:
    q, k = seeded(5, 6, 20, seed=1), seeded(5, 2, 20, seed=2)
    inv_freq = torch.tensor([10_000.0 ** (-i / 10) for i in range(10)])
    cos, sin = tables(inv_freq.cuda(), torch.arange(5, device="cuda") * 7)
    turned, _ = rotate(q.cuda(), k.cuda(), cos, sin)
    pairs = torch.complex(q[..., :10].double(), q[..., 10:].double())
    turn = pairs * torch.complex(cos.cpu().double(), sin.cpu().double())[:, None]
    want = torch.cat((turn.real, turn.imag), dim=-1)
    assert_within(turned.cpu(), want, pairs.abs().repeat(1, 1, 2) * 4 * F32)
    blocks = torch.zeros(4, 2, 3, 2, 20, device="cuda")
    write_kv(blocks, k.cuda(), -k.cuda(), torch.tensor([0, 11, 4, 7, 2], device="cuda"))
    assert same_bits(blocks[3, 0, 2].cpu(), k[1])
    assert same_bits(blocks[1, 1, 1].cpu(), -k[2])
    copy_blocks(blocks, [1], [2], [2])
    assert same_bits(blocks[2, :, 1], blocks[1, :, 1])
