"""How far apart two float32 computations of the same logits may be.

A float32 dot product of n terms is the exact dot product of weights that are each off by about sqrt(n) rounding
units, u = 2**-24 (probabilistic rounding analysis: Higham and Mary 2019, theorem 2.4; the worst case has n for
sqrt(n)). So what rounding does to the logits is what weights off by sqrt(n) u do to them. That is found by doing
it: in float64, every weight of the model is moved up or down by that much, signs at random, and the change of
the logits is looked at. The steps between the products (norms, rotation, softmax, SiLU) round a few units each,
fewer than the sqrt(48) units which even the smallest product is granted.

Either of two implementations may be off by that much: the bound is twice the response.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

UNIT = 2.0**-24
NUM_PROBES = 4


def relative_rms(difference: Tensor, reference: Tensor) -> Tensor:
    """Per row: root mean square of the difference over that of the reference, [T]."""
    return (difference.double().pow(2).mean(-1) / reference.double().pow(2).mean(-1)).sqrt()


def rounding_bound(model: torch.nn.Module, logits: Callable[[torch.nn.Module], Tensor]) -> Tensor:
    """Largest relative RMS difference for each row of `logits(model)`, [T]. `model` is float64; it is put back.

    The largest response of a few probes stands for each row.
    """
    generator = torch.Generator().manual_seed(7)
    parameters = list(model.parameters())
    longest = max(parameter.shape[-1] for parameter in parameters)
    kept = [parameter.detach().clone() for parameter in parameters]
    exact = logits(model)
    responses = []
    for _ in range(NUM_PROBES):
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
                parameter.copy_(value * (1 + signs * longest**0.5 * UNIT))
        responses.append(relative_rms(logits(model) - exact, exact))
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return 2 * torch.stack(responses).amax(0)
