"""What this machine has: cores and memory, as the process may use them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """num_cores respects affinity and cgroup quota; available_bytes respects the cgroup's limit."""

    num_cores: int
    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class Share:
    """What of the machine one engine may take where its settings leave that open.

    num_engines   that share it
    memory_limit  bytes an earlier engine in the same place took; None where this is the first
    """

    num_engines: int = 1
    memory_limit: int | None = None


WHOLE = Share()


def read_machine(root: Path = Path("/")) -> Machine:
    """This machine as seen from this process. `root` lets tests lay out their own /proc and /sys."""
    meminfo = _meminfo(root / "proc/meminfo")
    total, available = meminfo["MemTotal"], meminfo["MemAvailable"]
    limit, used = _cgroup_memory(root / "sys/fs/cgroup")
    if limit is not None:
        total = min(total, limit)
        available = min(available, max(limit - used, 0))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cores(root / "sys/fs/cgroup")
    if quota is not None:
        cores = max(1, min(cores, int(quota)))
    return Machine(num_cores=cores, total_bytes=total, available_bytes=available)


def _meminfo(path: Path) -> dict[str, int]:
    """Bytes by name. Where there is no /proc, what sysconf says stands for both."""
    if not path.exists():
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {"MemTotal": size, "MemAvailable": size}
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) >= 2}


def _cgroup_memory(folder: Path) -> tuple[int | None, int]:
    limit, used = folder / "memory.max", folder / "memory.current"
    if not limit.exists() or not used.exists():
        return None, 0
    text = limit.read_text().strip()
    return (None if text == "max" else int(text)), int(used.read_text())


def _cgroup_cores(folder: Path) -> float | None:
    path = folder / "cpu.max"
    if not path.exists():
        return None
    quota, period = path.read_text().split()
    return None if quota == "max" else int(quota) / int(period)
