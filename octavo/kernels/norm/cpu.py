"""The compiled kernel. The contract is in the package."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from octavo.kernels.choose import Need
from octavo.kernels.norm.reference import check

_native: ModuleType | None
_absent = ""
try:
    _native = import_module("octavo._cpu")
except ImportError as error:
    _native, _absent = None, str(error)


def refuses(need: Need) -> str | None:
    """Why the compiled kernel cannot serve, or None."""
    if need.device != "cpu":
        return f"runs on cpu, not on {need.device}"
    if need.dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 and bfloat16, not {str(need.dtype).removeprefix('torch.')}"
    if _native is None:
        return f"the compiled module octavo._cpu is missing ({_absent}); `pip install .` builds it"
    return None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    check("rms_norm", x, weight)
    assert _native is not None, "chosen although it refuses"
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel():
        width = x.shape[-1]
        rows = x.detach().contiguous().view(-1, width)
        _native.rms_norm(rows, weight.detach().contiguous(), eps, out.view(-1, width))
    return out
