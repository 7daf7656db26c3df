"""A device's own limits, measured: how fast it copies memory, and how fast it multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benches.record import Accelerator

COPY_BYTES = 2 << 30
SIDE = 8192


def measure(device: torch.device, *, copy_bytes: int = COPY_BYTES, side: int = SIDE) -> Accelerator:
    """The best of several copies and of several square products in bfloat16.

    A copy reads and writes every byte, and both count.
    """
    source = torch.ones(copy_bytes // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copy_s = best_s(lambda: target.copy_(source), device)
    left, right = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    product_s = best_s(lambda: torch.mm(left, right), device)
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        name, memory_bytes = facts.name, facts.total_memory
    else:
        name, memory_bytes = "no accelerator", 0
    return Accelerator(
        name=name,
        memory_bytes=memory_bytes,
        copy_bytes_per_s=2 * copy_bytes / copy_s,
        bf16_flop_per_s=2 * side**3 / product_s,
    )


def best_s(work: Callable[[], object], device: torch.device, num_runs: int = 10) -> float:
    """Shortest of several runs after two that are not counted; each waits for the device."""
    times = []
    for _ in range(num_runs + 2):
        started_s = time.perf_counter()
        work()
        settle(device)
        times.append(time.perf_counter() - started_s)
    return min(times[2:])


def settle(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
