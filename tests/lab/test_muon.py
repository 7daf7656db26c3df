"""Orthogonalisation against the singular value decomposition, and the optimizer's bookkeeping."""

import pytest
import torch

from lab.muon import NUM_STEPS, QUINTIC, SINGULAR_RANGE, Muon, orthogonalize

DOUBLE_ROUNDING = 2.0**-53


def iterated(values: torch.Tensor) -> torch.Tensor:
    """What the iteration does to a singular value, on plain numbers."""
    a, b, c = QUINTIC
    for _ in range(NUM_STEPS):
        values = a * values + b * values**3 + c * values**5
    return values


@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (5, 13), (13, 5), (48, 17)])
def test_orthogonalize_moves_only_singular_values(shape):
    """U diag(s) V goes to U diag(p(s / |s|)) V, with p the quintic iterated; U and V by decomposition."""
    rows, columns = shape
    source = torch.Generator().manual_seed(rows * 100 + columns)
    matrices = torch.randn(3, rows, columns, generator=source, dtype=torch.float64)
    got = orthogonalize(matrices, torch.float64)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    length = s.square().sum(-1, keepdim=True).sqrt() + 1e-7
    want = u @ torch.diag_embed(iterated(s / length)) @ v
    # each of the steps takes 3 products of inner length at most min(shape) and may amplify what came before by a
    amplified = QUINTIC[0] ** NUM_STEPS * NUM_STEPS * 3 * min(shape)
    assert (got - want).norm() / want.norm() < amplified * DOUBLE_ROUNDING * 8


def test_the_stated_range_holds_for_every_start():
    starts = torch.linspace(0.01, 1.0, 100_001, dtype=torch.float64)
    ends = iterated(starts)
    assert SINGULAR_RANGE[0] <= ends.min()
    assert ends.max() <= SINGULAR_RANGE[1]


def test_bfloat16_keeps_the_direction():
    """In the dtype used in training the update still has singular values near one and the right vectors."""
    source = torch.Generator().manual_seed(5)
    matrix = torch.randn(1, 32, 64, generator=source)
    got = orthogonalize(matrix)[0].double()
    u, s, v = torch.linalg.svd(matrix[0].double(), full_matrices=False)
    inner = u.T @ got @ v.T
    want = iterated(s / s.norm())
    # 2**-8 is one unit of bfloat16; steps where values already are near one amplify by less than a each
    assert (inner.diagonal() - want).abs().max() < 2.0**-8 * QUINTIC[0] * NUM_STEPS
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 2.0**-8 * QUINTIC[0] * NUM_STEPS


def test_a_step_is_nesterov_momentum_made_orthogonal():
    source = torch.Generator().manual_seed(6)
    weight = torch.nn.Parameter(torch.randn(12, 4, generator=source))
    start = weight.detach().clone()
    optimizer = Muon([weight], lr=0.1, momentum=0.9)
    gradients = [torch.randn(12, 4, generator=source) for _ in range(3)]
    buffer = torch.zeros(12, 4)
    want = start.clone()
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        buffer = 0.9 * buffer + 0.1 * gradient
        update = 0.1 * gradient + 0.9 * buffer
        want -= 0.1 * 3**0.5 * orthogonalize(update[None])[0].float()
    # the buffer is summed in another order, which may move one bfloat16 rounding of the update
    assert (weight.detach() - want).abs().max() < 3 * 0.1 * 3**0.5 * 2.0**-8 * QUINTIC[0] * NUM_STEPS
    assert (weight.detach() - start).norm() > 0.1


def test_parameters_without_gradient_stay():
    still, moved = (torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    moved.grad = torch.eye(3)
    Muon([still, moved], lr=0.1).step()
    assert torch.equal(still.detach(), torch.ones(3, 3))
    assert not torch.equal(moved.detach(), torch.ones(3, 3))
