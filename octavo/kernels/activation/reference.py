"""Plain torch. The contract is in the package."""

from __future__ import annotations

import torch
from torch import Tensor


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"silu_mul: gate is {list(gate.shape)} {gate.dtype}, up is {list(up.shape)} {up.dtype}"
        )
    # torch's own silu and sigmoid finish a buffer's last few elements with another exponential than the rest,
    # so an element's bits would depend on its place. exp alone does not; add and divide are exact IEEE steps.
    wide = gate.to(torch.float32, memory_format=torch.contiguous_format)
    return (wide / (1 + torch.exp(-wide))).to(gate.dtype) * up
