"""What the Triton kernels share: when they fit, how they are imported only where they run, and how they start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module, util
from typing import Any

import torch

from octavo.kernels.choose import Need

DTYPES = (torch.bfloat16, torch.float16)
HEAD_DIMS = (16, 32, 64, 128, 256)
FP8_CAPABILITY = (8, 9)
"""The first with conversions from e4m3: PTX ISA, `cvt`."""
MAX_GROUP = 64
"""Query heads that may share a key-value head."""
MAX_SEQUENCES = 4096
"""Of a step: a program of attention reads the counts of all of them."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of a kernel.

    options  its compile-time constants, `num_warps` and `num_stages` among them
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


_recording: ContextVar[list[Launch] | None] = ContextVar("recording", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Start a kernel. The only place that does, so that `recorded` sees every configuration there is.

    Products and sums are rounded apart unless a kernel says `fma`: what a compiler fuses may differ between two kernels
    that must agree bit for bit, and between its versions.
    """
    options["enable_fp_fusion"] = False
    launches = _recording.get()
    if launches is None:
        kernel[grid](*arguments, **options)
    else:
        launches.append(Launch(kernel, grid, arguments, options))


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within, kernels are noted instead of started, in order; what they should have written holds anything.

    Ops may then be called on tensors without memory (device "meta"), of any size.
    """
    launches: list[Launch] = []
    token = _recording.set(launches)
    try:
        yield launches
    finally:
        _recording.reset(token)


def lazily(module: str, name: str) -> Callable[..., Any]:
    """`name` of `module`, imported at the first call: Triton is not everywhere."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(module), name)(*args, **kwargs)

    return run


def refuses(need: Need) -> str | None:
    """Why kernels on rows and matrices do not fit."""
    if need.device != "cuda":
        return f"runs on cuda, not on {need.device}"
    if util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if need.dtype not in DTYPES:
        return f"takes bfloat16 and float16, not {str(need.dtype).removeprefix('torch.')}"
    return None


def refuses_fp8(need: Need) -> str | None:
    """Why kernels on rows and matrices whose numbers lie in e4m3 do not fit."""
    return refuses(need) or _refuses_e4m3()


def refuses_heads(need: Need) -> str | None:
    """Why kernels on heads do not fit."""
    reason = refuses(need)
    if reason is not None:
        return reason
    num_heads, num_kv_heads, head_dim = (need.sizes[name] for name in "HKD")
    if head_dim not in HEAD_DIMS:
        return f"takes heads {', '.join(map(str, HEAD_DIMS))} wide, not {head_dim}"
    if num_heads // num_kv_heads > MAX_GROUP:
        return f"at most {MAX_GROUP} query heads share a key-value head, not {num_heads // num_kv_heads}"
    return None


def refuses_fp8_heads(need: Need) -> str | None:
    """Why kernels on heads whose keys and values lie in e4m3 do not fit."""
    return refuses_heads(need) or _refuses_e4m3()


def _refuses_e4m3() -> str | None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() >= FP8_CAPABILITY:
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"reads e4m3 from compute capability 8.9 on, and this device has {major}.{minor}"
