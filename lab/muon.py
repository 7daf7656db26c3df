"""Muon: momentum whose update is made orthogonal, for matrices; AdamW serves the rest.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024): Nesterov momentum,
then five steps of a quintic Newton-Schulz iteration that drives every singular value towards one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)
NUM_STEPS = 5
SINGULAR_RANGE = (0.65, 1.25)
"""Where NUM_STEPS steps of QUINTIC take singular values that start between 0.01 and 1."""


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Near-orthogonal matrices [N, M, K] with the singular vectors of `matrices`.

    Singular values land in SINGULAR_RANGE when they began above a hundredth of the Frobenius norm; smaller
    ones are raised by a factor of 3.4445 ** NUM_STEPS at most.
    """
    a, b, c = QUINTIC
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NUM_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: Tensor = x.mT if tall else x
    return out


class Muon(torch.optim.Optimizer):
    """Muon over matrices; those of one shape are orthogonalised together.

    lr  length of a step in spectral norm for a square matrix; tall ones go further by sqrt(rows / columns)
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update from the gradients at hand; parameters without one are left alone."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for shape, weights in by_shape.items():
                updates = []
                for weight in weights:
                    grad = weight.grad
                    assert grad is not None
                    buffer = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                    buffer.lerp_(grad, 1 - group["momentum"])
                    updates.append(grad.lerp(buffer, group["momentum"]))
                length = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for weight, update in zip(weights, orthogonalize(torch.stack(updates)), strict=True):
                    weight.add_(update.to(weight.dtype), alpha=-length)
